"""Columns of lists of any length."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.io.arrow import ColumnError
from model.io.urls import PART_ROWS, read_lists


def test_lists_of_several_files_and_row_groups_are_read_in_order(tmp_path: Path) -> None:
    lists = [[row] * (row % 4) for row in range(PART_ROWS + 50)]
    parts = {"a": lists[:10], "b": [], "c": lists[10:]}
    for name, part in parts.items():
        table = pa.table({"items": pa.array(part, pa.list_(pa.int32()))})
        pq.write_table(table, tmp_path / name, row_group_size=9_000)
    starts, values = read_lists([str(tmp_path / name) for name in parts], "items")
    assert [values[start:end].tolist() for start, end in pairwise(starts)] == lists
    assert values.dtype == "int32"
    starts, values = read_lists([], "items")
    assert (starts.tolist(), len(values)) == ([0], 0)


@pytest.mark.parametrize("rows", [[[1], None], [[1, None]]])
def test_nulls_are_refused(tmp_path: Path, rows: list[list[int | None] | None]) -> None:
    pq.write_table(pa.table({"items": pa.array(rows, pa.list_(pa.int32()))}), tmp_path / "a")
    with pytest.raises(ColumnError, match=r"column 'items' of .*a: 1 nulls, in [12] rows"):
        read_lists([str(tmp_path / "a")], "items")

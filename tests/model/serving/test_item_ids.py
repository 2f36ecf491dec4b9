"""Ids of items: right for any files and types, and as fast for many items as for few."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.serving.item_ids import ItemIds


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.string()])
def test_ids_of_several_files_come_back_in_their_type(tmp_path: Path, kind: pa.DataType) -> None:
    index = np.random.default_rng(1).permutation(np.arange(2, 502))[:400].astype(np.int32)
    ids = pa.array([n * 7 for n in index.tolist()]).cast(kind)
    for part in range(3):
        rows = slice(part * 150, (part + 1) * 150)
        table = pa.table({"item_index": index[rows], "item_id": ids[rows]})
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=40)
    found = ItemIds.read([str(tmp_path / f"part-{part}.parquet") for part in range(3)])
    assert len(found) == 400
    asked = index[::-1][:50].astype(np.int64)
    wanted = [n * 7 if pa.types.is_integer(kind) else str(n * 7) for n in asked.tolist()]
    assert found.ids_of(asked) == wanted
    assert found.contains(np.array([-1, 0, int(index[0]), 10_000])).tolist() == [False, False, True, False]


def test_an_answer_costs_the_same_in_a_large_catalogue() -> None:
    """Milliseconds would mean that a request walks through the whole column."""
    rows, chunk = 2_000_000, 65_536
    index = np.arange(2, rows + 2)
    for ids in (pa.array(index * 3), pa.array(index * 3).cast(pa.string())):
        found = ItemIds(index, [ids[start : start + chunk] for start in range(0, rows, chunk)])
        asked = np.random.default_rng(2).integers(2, rows, (100, 100))
        since = time.perf_counter()
        for row in asked:
            found.ids_of(row)
        assert (time.perf_counter() - since) / len(asked) < 1e-3


def test_more_than_two_gigabytes_of_text_have_offsets_that_reach() -> None:
    """The type says so: with 32-bit offsets Arrow refuses to join the chunks, or to take from them."""
    texts = pa.array(["a", "b"])
    found = ItemIds(np.array([2, 3, 4, 5]), [texts, texts])
    assert found._ids.type == pa.large_string()

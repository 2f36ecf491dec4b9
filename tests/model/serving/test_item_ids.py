"""Item ids: correct for several files and types, and as fast for many items as for few."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.serving.item_ids import ItemIds


# Files store text. Those of earlier versions store integers, if the ids are integers.
@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.string()])
def test_ids_have_the_type_of_the_items_table_and_may_be_in_several_files(
    tmp_path: Path, kind: pa.DataType, integers: bool
) -> None:
    index = np.random.default_rng(1).permutation(np.arange(2, 502))[:400].astype(np.int32)
    ids = pa.array([n * 7 for n in index.tolist()]).cast(kind)
    for part in range(3):
        rows = slice(part * 150, (part + 1) * 150)
        table = pa.table({"item_index": index[rows], "item_id": ids[rows]})
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=40)
    item_ids = ItemIds.read([str(tmp_path / f"part-{part}.parquet") for part in range(3)], integers=integers)
    assert len(item_ids) == 400
    items = index[::-1][:50].astype(np.int64)
    expected = [n * 7 if integers or pa.types.is_integer(kind) else str(n * 7) for n in items.tolist()]
    assert item_ids.ids_of(items) == expected
    assert item_ids.contains(np.array([-1, 0, int(index[0]), 10_000])).tolist() == [False, False, True, False]


def test_the_cost_of_an_answer_does_not_grow_with_the_catalogue() -> None:
    """An answer that scans the whole column would take milliseconds."""
    rows, chunk = 2_000_000, 65_536
    index = np.arange(2, rows + 2)
    for ids in (pa.array(index * 3), pa.array(index * 3).cast(pa.string())):
        item_ids = ItemIds(index, [ids[start : start + chunk] for start in range(0, rows, chunk)])
        answers = np.random.default_rng(2).integers(2, rows, (100, 100))
        started = time.perf_counter()
        for items in answers:
            item_ids.ids_of(items)
        assert (time.perf_counter() - started) / len(answers) < 1e-3


def test_ids_are_stored_with_64_bit_offsets() -> None:
    """With 32-bit offsets Arrow cannot concatenate or take from more than 2 GiB of text."""
    texts = pa.array(["a", "b"])
    item_ids = ItemIds(np.array([2, 3, 4, 5]), [texts, texts])
    assert item_ids._ids.type == pa.large_string()


def test_an_id_that_is_not_an_integer_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_index": [2, 3], "item_id": ["7", "x"]}), tmp_path / "part.parquet")
    with pytest.raises(ValueError, match="'x'"):
        ItemIds.read([str(tmp_path / "part.parquet")], integers=True)

"""The sample reader: each row exactly once, equal steps on all ranks, a fixed order, and named errors for bad files."""

import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.config import TrainingConfig
from model.data.batching import TooFewRowGroupsError, batches, plan_epoch
from model.data.petastorm_reader import SampleFile, SampleReader, SharedSampleReader
from model.data.prefetch import prefetched
from model.io.arrow import ColumnError, to_arrays
from model.io.urls import BrokenFileError
from tests.model import toy_night

GROUP_ROWS = [13, 12, 13, 12, 13, 7, 1]
COLUMNS = ["row_key", "history", "weight"]


def keys_by_step(files: list[SampleFile], rank: int, world: int, epoch: int = 0, **config: int) -> list[list[int]]:
    settings = TrainingConfig(**{"batch_size": 16, "shuffle_window": 20, **config})
    with SampleReader(files, COLUMNS, settings, seed=3, rank=rank, world_size=world).epoch(epoch) as steps:
        return [step["row_key"].tolist() for step in steps]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_ranks_read_each_row_once_in_equal_steps(tmp_path: Path, world: int) -> None:
    files = toy_night.write_samples(tmp_path, GROUP_ROWS)
    ranks = [keys_by_step(files, rank, world) for rank in range(world)]
    assert len({len(steps) for steps in ranks}) == 1
    assert sorted(itertools.chain(*itertools.chain(*ranks))) == list(range(sum(GROUP_ROWS)))
    starts = np.cumsum([0, *GROUP_ROWS])
    for rank, steps in enumerate(ranks):
        own = [key for group in range(rank, len(GROUP_ROWS), world) for key in range(starts[group], starts[group + 1])]
        assert sorted(itertools.chain(*steps)) == own, "row group g belongs to rank g % world"
        sizes = [len(step) for step in steps]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= plan_epoch(GROUP_ROWS, world, 16).capacity


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_steps_of_three_shards_do_not_depend_on_the_number_of_ranks(tmp_path: Path, world: int) -> None:
    files = toy_night.write_samples(tmp_path, GROUP_ROWS)
    settings = TrainingConfig(batch_size=16, shuffle_window=20)
    expected = [sorted(itertools.chain(*step)) for step in zip(*(keys_by_step(files, r, 3) for r in range(3)))]
    keys: list[list[int]] = [[] for _ in expected[2:]]
    for rank in range(world):
        shared = SharedSampleReader(files, COLUMNS, settings, 3, rank, world, shards=3)
        assert shared.steps == len(expected)
        with shared.epoch(0, skip=2) as steps:
            for step, batch in enumerate(steps):
                assert batch["history"].shape[1] == toy_night.HISTORY
                assert len(batch["row_key"]) <= shared.capacity
                keys[step] += batch["row_key"].tolist()
    assert [sorted(step) for step in keys] == expected[2:]


def test_order_depends_on_the_epoch_but_not_on_threads(tmp_path: Path) -> None:
    files = toy_night.write_samples(tmp_path, GROUP_ROWS)
    first = keys_by_step(files, 0, 2, reader_threads=1)
    assert first == keys_by_step(files, 0, 2, reader_threads=4)
    later = keys_by_step(files, 0, 2, epoch=1)
    assert first != later
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*later))
    assert list(itertools.chain(*first)) != sorted(itertools.chain(*first))


def test_columns_stay_aligned(tmp_path: Path) -> None:
    files = toy_night.write_samples(tmp_path, GROUP_ROWS)
    rows = toy_night.sample_rows(sum(GROUP_ROWS))
    with SampleReader(files, COLUMNS, TrainingConfig(batch_size=9), 3, 0, 1).epoch(0) as steps:
        for step in steps:
            keys = step["row_key"].numpy()
            np.testing.assert_array_equal(step["history"], rows["history"][keys])
            np.testing.assert_array_equal(step["weight"], rows["weight"][keys])


def test_more_ranks_than_row_groups_are_refused(tmp_path: Path) -> None:
    files = toy_night.write_samples(tmp_path, [5, 5])
    with pytest.raises(TooFewRowGroupsError, match=r"3 processes cannot share 2 row groups: set training\.processes"):
        SampleReader(files, COLUMNS, TrainingConfig(), 0, 0, 3)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1, 2], None, [3, 4]]), "column 'history'.*1 of 3 rows are null"),
        (pa.array([[1, 2], [None, 3], [3, 4]]), "column 'history'.*1 null values inside"),
        (pa.array([[1, 2], [1], [3, 4]]), "column 'history'.*lists have 1 to 2 values, 1 of 3 rows"),
        (pa.array([1, None, 2]), "column 'history'.*1 of 3 rows are null"),
        (pa.array(["a", "b", "c"]), "column 'history'.*type string is not a number"),
    ],
)
def test_a_bad_column_is_named(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"row_key": [1, 2, 3], "history": column, "weight": [1.0, 1.0, 1.0]}), path)
    with pytest.raises(ColumnError, match=message):
        keys_by_step([SampleFile(url=str(path), rows=3)], 0, 1)


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.parquet"
    pq.write_table(pa.table({"row_key": [1, 2, 3], "weight": [1.0, 1.0, 1.0]}), path)
    with pytest.raises(ColumnError, match="lacks history"):
        keys_by_step([SampleFile(url=str(path), rows=3)], 0, 1)


def test_a_row_count_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    files = toy_night.write_samples(tmp_path, [10, 10])
    with pytest.raises(ValueError, match="has 10 rows, its manifest says 11"):
        keys_by_step([files[0], files[1].model_copy(update={"rows": 11})], 0, 1)


def test_a_file_with_two_row_groups_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.parquet"
    pq.write_table(toy_night.table(toy_night.sample_rows(20)), path, row_group_size=10)
    with pytest.raises(ValueError, match="1 sample files hold 2 row groups"):
        keys_by_step([SampleFile(url=str(path), rows=20)], 0, 1)


@pytest.mark.parametrize("damage", ["cut", "empty", "pages"])
def test_a_broken_file_is_named(tmp_path: Path, damage: str) -> None:
    files = toy_night.write_samples(tmp_path, GROUP_ROWS)
    file = Path(files[2].url.removeprefix("file://"))
    content = file.read_bytes()
    middle = len(content) // 2
    spoilt = {"cut": content[:middle], "empty": b"", "pages": b"PAR1" + b"\xa5" * middle + content[middle + 4 :]}
    file.write_bytes(spoilt[damage])
    with pytest.raises(BrokenFileError, match=re.escape(f"{file} cannot be read")):
        keys_by_step(files, 0, 1)


def test_reading_prints_and_warns_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = toy_night.write_samples(tmp_path, [10, 10])
    for file in files:  # A column name that starts with another column name, as in the tables of the jobs.
        path = file.url.removeprefix("file://")
        table = pq.read_table(path)
        pq.write_table(table.append_column("history_until", table["weight"]), path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keys_by_step(files, 0, 1)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")


def test_slices_and_fixed_size_lists_convert_as_lists_do() -> None:
    values = np.arange(12, dtype=np.int32).reshape(4, 3)
    lists = toy_night.table({"x": values})
    fixed = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 3)})
    for table in (lists, fixed):
        np.testing.assert_array_equal(to_arrays(table.slice(1, 2))["x"], values[1:3])
        np.testing.assert_array_equal(to_arrays(table.to_batches()[0].slice(2))["x"], values[2:])


def test_empty_batches_have_all_columns() -> None:
    steps = list(batches([{"x": np.zeros((2, 3))}], [0, 1, 0, 1], window=5, rng=None))
    assert [step["x"].shape for step in steps] == [(0, 3), (1, 3), (0, 3), (1, 3)]


def test_prefetch_raises_errors_of_its_source_and_closes_it() -> None:
    closed = []

    def source(fail: bool):  # type: ignore[no-untyped-def]
        try:
            for number in itertools.count():
                if fail and number == 3:
                    raise OSError("disk")
                yield number
        finally:
            closed.append(fail)

    with prefetched(lambda: source(False)) as items:
        assert next(items) == 0
    assert closed == [False]
    with prefetched(lambda: source(True)) as items, pytest.raises(OSError, match="disk"):
        list(items)
    assert closed == [False, True]

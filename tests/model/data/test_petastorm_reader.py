"""Promises of the reader: every row once, equal steps on every rank, a fixed order, and bad columns refused by name."""

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

AWKWARD = [13, 12, 13, 12, 13, 7, 1]
COLUMNS = ["row_key", "history", "weight"]


def keys_by_step(files: list[SampleFile], rank: int, world: int, epoch: int = 0, **config: int) -> list[list[int]]:
    settings = TrainingConfig(**{"batch_size": 16, "shuffle_window": 20, **config})
    with SampleReader(files, COLUMNS, settings, seed=3, rank=rank, world_size=world).epoch(epoch) as steps:
        return [step["row_key"].tolist() for step in steps]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_every_row_once_in_equal_steps_on_any_number_of_ranks(tmp_path: Path, world: int) -> None:
    files = toy_night.write_samples(tmp_path, AWKWARD)
    ranks = [keys_by_step(files, rank, world) for rank in range(world)]
    assert len({len(steps) for steps in ranks}) == 1
    assert sorted(itertools.chain(*itertools.chain(*ranks))) == list(range(sum(AWKWARD)))
    starts = np.cumsum([0, *AWKWARD])
    for rank, steps in enumerate(ranks):
        own = [key for group in range(rank, len(AWKWARD), world) for key in range(starts[group], starts[group + 1])]
        assert sorted(itertools.chain(*steps)) == own, "row group g belongs to rank g % world"
        sizes = [len(step) for step in steps]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= plan_epoch(AWKWARD, world, 16).capacity


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_an_epoch_of_three_shares_has_the_same_steps_on_any_number_of_ranks(tmp_path: Path, world: int) -> None:
    files = toy_night.write_samples(tmp_path, AWKWARD)
    settings = TrainingConfig(batch_size=16, shuffle_window=20)
    expected = [sorted(itertools.chain(*step)) for step in zip(*(keys_by_step(files, r, 3) for r in range(3)))]
    found: list[list[int]] = [[] for _ in expected[2:]]
    for rank in range(world):
        shared = SharedSampleReader(files, COLUMNS, settings, 3, rank, world, shards=3)
        assert shared.steps == len(expected)
        with shared.epoch(0, skip=2) as steps:
            for step, batch in enumerate(steps):
                assert batch["history"].shape[1] == toy_night.HISTORY
                assert len(batch["row_key"]) <= shared.capacity
                found[step] += batch["row_key"].tolist()
    assert [sorted(step) for step in found] == expected[2:]


def test_order_depends_on_seed_and_epoch_and_never_on_threads(tmp_path: Path) -> None:
    files = toy_night.write_samples(tmp_path, AWKWARD)
    first = keys_by_step(files, 0, 2, reader_threads=1)
    assert first == keys_by_step(files, 0, 2, reader_threads=4)
    later = keys_by_step(files, 0, 2, epoch=1)
    assert first != later
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*later))
    assert list(itertools.chain(*first)) != sorted(itertools.chain(*first))


def test_values_stay_with_their_row(tmp_path: Path) -> None:
    files = toy_night.write_samples(tmp_path, AWKWARD)
    rows = toy_night.sample_rows(sum(AWKWARD))
    with SampleReader(files, COLUMNS, TrainingConfig(batch_size=9), 3, 0, 1).epoch(0) as steps:
        for step in steps:
            keys = step["row_key"].numpy()
            np.testing.assert_array_equal(step["history"], rows["history"][keys])
            np.testing.assert_array_equal(step["weight"], rows["weight"][keys])


def test_more_ranks_than_row_groups_is_refused_with_the_remedy(tmp_path: Path) -> None:
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
def test_bad_columns_are_refused_by_name(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"row_key": [1, 2, 3], "history": column, "weight": [1.0, 1.0, 1.0]}), path)
    with pytest.raises(ColumnError, match=message):
        keys_by_step([SampleFile(url=str(path), rows=3)], 0, 1)


def test_a_missing_column_and_a_wrong_count_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.parquet"
    pq.write_table(pa.table({"row_key": [1, 2, 3], "weight": [1.0, 1.0, 1.0]}), path)
    with pytest.raises(ColumnError, match="lacks history"):
        keys_by_step([SampleFile(url=str(path), rows=3)], 0, 1)
    files = toy_night.write_samples(tmp_path, [10, 10])
    with pytest.raises(ValueError, match="has 10 rows, its manifest says 11"):
        keys_by_step([files[0], files[1].model_copy(update={"rows": 11})], 0, 1)


def test_two_row_groups_in_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.parquet"
    pq.write_table(toy_night.table(toy_night.sample_rows(20)), path, row_group_size=10)
    with pytest.raises(ValueError, match="1 sample files hold 2 row groups"):
        keys_by_step([SampleFile(url=str(path), rows=20)], 0, 1)


@pytest.mark.parametrize("damage", ["cut", "empty", "pages"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    files = toy_night.write_samples(tmp_path, AWKWARD)
    file = Path(files[2].url.removeprefix("file://"))
    content = file.read_bytes()
    middle = len(content) // 2
    spoilt = {"cut": content[:middle], "empty": b"", "pages": b"PAR1" + b"\xa5" * middle + content[middle + 4 :]}
    file.write_bytes(spoilt[damage])
    with pytest.raises(BrokenFileError, match=re.escape(f"{file} cannot be read")):
        keys_by_step(files, 0, 1)


def test_reading_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = toy_night.write_samples(tmp_path, [10, 10])
    for file in files:  # A column whose name begins with another one's, as in the tables that jobs write.
        path = file.url.removeprefix("file://")
        table = pq.read_table(path)
        pq.write_table(table.append_column("history_until", table["weight"]), path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        keys_by_step(files, 0, 1)
    assert [str(warning.message) for warning in said] == []
    assert capfd.readouterr() == ("", "")


def test_slices_and_fixed_size_lists_convert_like_lists() -> None:
    values = np.arange(12, dtype=np.int32).reshape(4, 3)
    lists = toy_night.table({"x": values})
    fixed = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 3)})
    for table in (lists, fixed):
        np.testing.assert_array_equal(to_arrays(table.slice(1, 2))["x"], values[1:3])
        np.testing.assert_array_equal(to_arrays(table.to_batches()[0].slice(2))["x"], values[2:])


def test_batches_of_no_rows_keep_their_columns() -> None:
    steps = list(batches([{"x": np.zeros((2, 3))}], [0, 1, 0, 1], window=5, rng=None))
    assert [step["x"].shape for step in steps] == [(0, 3), (1, 3), (0, 3), (1, 3)]


def test_prefetch_passes_errors_on_and_closes_its_source() -> None:
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

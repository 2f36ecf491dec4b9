"""Reading of Feather files: ranges of batches, and columns of any numeric type."""

from pathlib import Path

import pyarrow as pa
import pyarrow.feather as pf
import pytest
from pyspark.sql import SparkSession

from pipelines.datasets import feather
from pipelines.datasets.feather import BatchRange, find_files, inspect_files, read_ranges, to_bool, to_int64


def test_only_the_requested_columns_are_read_in_ranges_of_batches(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"unread": ["x"] * 11, "n": list(range(11)), "f": [0.0, 1.0, None] + [0.0] * 8})
    pf.write_feather(table, str(tmp_path / "many.feather"), compression="lz4", chunksize=2)
    monkeypatch.setattr(feather, "BATCHES_PER_TASK", 4)
    ranges = inspect_files(spark, str(tmp_path), find_files(str(tmp_path)), ["n", "f"])
    path = str(tmp_path / "many.feather")
    assert ranges == [BatchRange(path, 0, 4), BatchRange(path, 4, 6)]
    frame = read_ranges(spark, str(tmp_path), ranges, {"n": feather.WHOLE, "f": feather.FLAG})
    assert frame.rdd.getNumPartitions() == 2
    assert [tuple(row) for row in frame.sort("n").collect()] == [(n, n == 1) for n in range(11)]


def test_columns_of_any_numeric_type_give_the_same_values() -> None:
    floats = pa.array([1.0, 0.0, float("nan"), None, 2.5, 1e300])
    assert to_int64(floats).to_pylist() == [1, 0, None, None, None, None]
    assert to_int64(pa.array([True, None])).to_pylist() == [1, None]
    assert to_int64(pa.array([2**53 + 1], pa.int64())).to_pylist() == [
        2**53 + 1
    ]  # above 2**53 a float cannot represent it
    assert to_bool(floats).to_pylist() == [True, False, False, False, True, True]
    assert to_bool(pa.array([1, 0, None], pa.int8())).to_pylist() == [True, False, False]
    assert to_bool(pa.array([True, None])).to_pylist() == [True, False]

"""Row groups: equal sizes, a multiple of the number of trainers, rows in random order or in the order of time."""

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.samples.row_groups import by_hash, by_time, groups_for, layout_of

pytestmark = pytest.mark.joins


@pytest.mark.parametrize(
    ("rows", "row_group_rows", "trainers", "groups"),
    [(1, 10, 4, 1), (3, 10, 4, 3), (100, 10, 4, 12), (100, 10, 1, 10), (101, 10, 1, 11), (7, 1000, 2, 2)],
)
def test_the_number_of_groups_is_a_multiple_of_the_trainers_if_there_are_enough_rows(
    rows: int, row_group_rows: int, trainers: int, groups: int
) -> None:
    assert groups_for(rows, row_group_rows, trainers) == groups


def test_group_sizes_differ_by_at_most_one_row_and_rows_are_shuffled(spark: SparkSession) -> None:
    rows = spark.range(2003).select(
        F.col("id").alias("row_key"), F.when(F.col("id") < 2000, "train").otherwise("valid").alias("split")
    )
    layout = layout_of(rows, by_hash(17), row_group_rows=100, trainers=3)
    assert layout.groups == {"train": 21, "valid": 3}
    placed = layout.gather(layout.place(rows.repartition(3)).drop("split")).toPandas()
    assert len(placed) == 2003
    for split, rows_of_split in placed.groupby("split"):
        sizes = rows_of_split.groupby("group").size()
        assert list(sizes.index) == [f"{n:05d}" for n in range(layout.groups[split])]
        assert sizes.max() - sizes.min() <= (1 if split == "train" else 0)
    train = placed[placed["split"] == "train"].sort_values("group", kind="stable")
    assert placed.groupby("cell")["group"].nunique().max() == 1
    assert placed.groupby("cell")["split"].nunique().max() == 1
    # The order in the table is independent of the order in the log.
    assert abs(np.corrcoef(train["row_key"], np.arange(len(train)))[0, 1]) < 0.1
    layout = layout_of(rows, by_hash(18), row_group_rows=100, trainers=3)
    other = layout.gather(layout.place(rows).drop("split")).toPandas()
    moved = placed.merge(other, on="row_key")
    assert (moved["group_x"] != moved["group_y"]).mean() > 0.8


def test_rows_without_a_split_have_no_cell(spark: SparkSession) -> None:
    rows = spark.range(30).select(
        F.col("id").alias("row_key"), F.when(F.col("id") < 20, "train").when(F.col("id") < 24, "valid").alias("split")
    )
    placed = layout_of(rows, by_hash(17), row_group_rows=5, trainers=1).place(rows).toPandas()
    assert len(placed) == 30
    assert (placed["cell"].isna() == placed["split"].isna()).all()
    assert placed["cell"].nunique() == 4 + 1


def test_by_time_groups_are_equal_and_in_the_order_of_time(spark: SparkSession) -> None:
    """Half of the rows of a day are within a few milliseconds."""
    at = F.when(F.col("id") % 2 == 0, F.col("id")).otherwise(F.col("id") * 40_000_000)
    rows = spark.range(2000).select(
        F.xxhash64("id").alias("row_key"),
        F.timestamp_micros(at + 1_709_596_800_000_000).alias("event_time"),
        F.lit("train").alias("split"),
    )
    place = by_time("2024-03-04T23:59:59.999999", "2024-03-05T23:59:59.999999")
    layout = layout_of(rows, place, row_group_rows=100, trainers=1)
    placed = layout.gather(layout.place(rows.repartition(3)).drop("split"))
    rows_in_groups = placed.withColumn("at", F.unix_micros("event_time")).toPandas()
    sizes = rows_in_groups.groupby("group").size()
    assert len(sizes) == 20
    assert sizes.max() - sizes.min() <= 1
    in_order = rows_in_groups.sort_values("group", kind="stable")["at"].to_numpy()
    assert (np.diff(in_order) >= 0).all()
    assert in_order[0] >= 1_709_596_800_000_000

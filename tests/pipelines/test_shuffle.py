"""Row groups: equal within one row, enough for the trainers, in an order that nobody could guess."""

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.shuffle import groups_for, layout_of


@pytest.mark.parametrize(
    ("rows", "row_group_rows", "trainers", "groups"),
    [(1, 10, 4, 1), (3, 10, 4, 3), (100, 10, 4, 12), (100, 10, 1, 10), (101, 10, 1, 11), (7, 1000, 2, 2)],
)
def test_groups_are_a_multiple_of_the_trainers_where_rows_allow(
    rows: int, row_group_rows: int, trainers: int, groups: int
) -> None:
    assert groups_for(rows, row_group_rows, trainers) == groups


def test_groups_are_equal_within_one_row_and_shuffled(spark: SparkSession) -> None:
    rows = spark.range(2003).select(
        F.col("id").alias("row_key"), F.when(F.col("id") < 2000, "train").otherwise("valid").alias("split")
    )
    layout = layout_of(rows, 17, row_group_rows=100, trainers=3)
    assert layout.groups == {"train": 21, "valid": 3}
    placed = layout.gather(layout.place(rows.repartition(3)).drop("split")).toPandas()
    assert len(placed) == 2003
    for split, sizes in placed.groupby("split"):
        counted = sizes.groupby("group").size()
        assert list(counted.index) == [f"{n:05d}" for n in range(layout.groups[split])]
        assert counted.max() - counted.min() <= (1 if split == "train" else 0)
    train = placed[placed["split"] == "train"].sort_values("group", kind="stable")
    assert placed.groupby("cell")["group"].nunique().max() == 1
    assert placed.groupby("cell")["split"].nunique().max() == 1
    # Neighbours in the log are not neighbours in the table.
    assert abs(np.corrcoef(train["row_key"], np.arange(len(train)))[0, 1]) < 0.1
    layout = layout_of(rows, 18, row_group_rows=100, trainers=3)
    other = layout.gather(layout.place(rows).drop("split")).toPandas()
    moved = placed.merge(other, on="row_key")
    assert (moved["group_x"] != moved["group_y"]).mean() > 0.8


def test_rows_without_a_split_have_no_place(spark: SparkSession) -> None:
    rows = spark.range(30).select(
        F.col("id").alias("row_key"), F.when(F.col("id") < 20, "train").when(F.col("id") < 24, "valid").alias("split")
    )
    placed = layout_of(rows, 17, row_group_rows=5, trainers=1).place(rows).toPandas()
    assert len(placed) == 30
    assert (placed["cell"].isna() == placed["split"].isna()).all()
    assert placed["cell"].nunique() == 4 + 1

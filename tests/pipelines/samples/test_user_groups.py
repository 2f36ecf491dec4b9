"""Row groups by user: a user's rows stay together, no group is empty, and groups have about as many rows."""

import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.samples.row_groups import RowGroupLayout
from pipelines.samples.user_groups import groups_for_users, layout_by_user, weight_cap

pytestmark = pytest.mark.joins


@pytest.mark.parametrize(
    ("rows", "users", "trainers", "groups"),
    [(100, 50, 4, 12), (100, 11, 4, 8), (100, 4, 4, 4), (100, 3, 4, 3), (5, 5, 2, 2), (1, 1, 4, 1)],
)
def test_the_number_of_groups_is_a_multiple_of_the_trainers_if_there_are_enough_users(
    rows: int, users: int, trainers: int, groups: int
) -> None:
    assert groups_for_users(rows, users, 10, trainers) == groups


def test_very_active_users_weigh_at_most_one_group() -> None:
    assert weight_cap({2: 10}, 5) == 2
    assert weight_cap({1: 9, 1000: 1}, 5) == 2  # (9 + 2) / 5
    assert weight_cap({1: 4, 1000: 1}, 5) == 1
    assert weight_cap({1000: 2, 900: 1}, 3) == 900


def gathered(rows: DataFrame, layout: RowGroupLayout) -> pd.DataFrame:
    placed = layout.place(rows.repartition(3)).drop("split")
    return layout.gather(placed, ["user_id", "row_key"]).toPandas()


def test_a_user_is_in_one_group_of_each_split_and_groups_are_about_equal(spark: SparkSession) -> None:
    rows = spark.range(6000).select(
        F.col("id").alias("row_key"),
        F.concat(F.lit("u"), (F.col("id") % 700).cast("string")).alias("user_id"),
        F.when(F.col("id") < 5600, "train").when(F.col("id") < 5900, "valid").alias("split"),
    )
    layout = layout_by_user(rows, 17, 200, 3)
    assert layout.groups == {"train": 30, "valid": 3}
    table = gathered(rows.where("split is not null"), layout)
    assert len(table) == 5900
    assert table.groupby(["split", "user_id"])["group"].nunique().max() == 1
    for split, of_split in table.groupby("split"):
        sizes = of_split.groupby("group").size()
        assert list(sizes.index) == [f"{n:05d}" for n in range(layout.groups[str(split)])]
        assert sizes.max() - sizes.min() <= 2 * 8  # two users
    assert layout.place(rows).where("split is null and cell is not null").isEmpty()


def test_no_group_is_empty_if_few_users_have_most_rows(spark: SparkSession) -> None:
    user = F.when(F.col("id") < 3000, F.col("id") % 2).otherwise(F.col("id") % 10)
    rows = spark.range(3100).select(
        F.col("id").alias("row_key"), user.cast("string").alias("user_id"), F.lit("train").alias("split")
    )
    layout = layout_by_user(rows, 17, 100, 4)
    assert layout.groups == {"train": 8}
    table = gathered(rows, layout)
    assert table["group"].nunique() == 8
    assert table.groupby("user_id")["group"].nunique().max() == 1

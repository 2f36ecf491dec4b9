"""The meaning of every index: append-only from night to night. 0 is padding, 1 is default, values start at 2."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

PADDING, DEFAULT, FIRST = 0, 1, 2


def grow(previous: DataFrame | None, values: DataFrame) -> DataFrame:
    """Yesterday's vocabulary with today's unseen values behind it.

    `previous`: feature, value, index. `values`: feature, value (repeats and nulls allowed). New values of a feature are
    numbered in their own order, so the same input gives the same indices however it is partitioned.
    """
    unseen = values.where(F.col("value").isNotNull()).distinct()
    if previous is None:
        sizes = unseen.select("feature").distinct().withColumn("start", F.lit(FIRST))
    else:
        unseen = unseen.join(previous, on=["feature", "value"], how="left_anti")
        sizes = previous.groupBy("feature").agg((F.max("index") + 1).alias("start"))
    order = Window.partitionBy("feature").orderBy("value")
    numbered = (
        unseen.join(F.broadcast(sizes), on="feature", how="left")
        .withColumn("index", F.coalesce("start", F.lit(FIRST)) + F.row_number().over(order) - 1)
        .select("feature", "value", F.col("index").cast("int"))
    )
    return numbered if previous is None else previous.select("feature", "value", "index").unionByName(numbered)


def sizes_of(vocabulary: DataFrame, features: list[str]) -> dict[str, int]:
    """Number of indices of each feature, padding and default included (so at least 2)."""
    found = vocabulary.groupBy("feature").agg((F.max("index") + 1).alias("size")).collect()
    return dict.fromkeys(features, FIRST) | {row["feature"]: int(row["size"]) for row in found}


def lookup(vocabulary: DataFrame, feature: str, value: str, index: str) -> DataFrame:
    """One feature's part of the vocabulary, its columns named for a join."""
    return vocabulary.where(F.col("feature") == feature).select(
        F.col("value").alias(value), F.col("index").alias(index)
    )

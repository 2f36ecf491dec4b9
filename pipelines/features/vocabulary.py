"""Vocabularies: the index of each value. 0 is padding, 1 is default, values start at 2.

A vocabulary is append-only: an index never changes its meaning from one night to the next. New values are numbered in the
order of a hash, in two phases: count the values per bucket of hashes, then rank the values within each bucket. So no task
sorts a whole feature, and the indices do not depend on the partitions of the input.
"""

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.contract.indices import FIRST
from pipelines.hashing import hashed
from pipelines.joins import broadcast_few, broadcast_small

BUCKET_BITS = 10  # 1,024 buckets of hashes per feature; the driver collects one count per bucket


def unseen_values(
    previous: DataFrame | None, values: DataFrame, min_counts: Mapping[str, int] | None = None
) -> DataFrame:
    """Values that the vocabulary lacks and that occur often enough: feature, value, without repeats.

    `previous`: feature, value, index; None in a bootstrap. `values`: feature, value, count (repeats and nulls allowed).
    `min_counts`: the occurrences that a value needs, by feature (default 1).
    """
    counted = values.where(F.col("value").isNotNull()).groupBy("feature", "value").agg(F.sum("count").alias("count"))
    for feature, least in (min_counts or {}).items():
        if least > 1:
            counted = counted.where((F.col("feature") != feature) | (F.col("count") >= least))
    frequent = counted.select("feature", "value")
    return frequent if previous is None else frequent.join(previous, on=["feature", "value"], how="left_anti")


def append(previous: DataFrame | None, unseen: DataFrame) -> tuple[DataFrame, dict[str, int]]:
    """(yesterday's vocabulary with the unseen values appended, the number of indices of each feature).

    `unseen`: feature, value, without repeats. It is read twice (counted now, ranked when the result is written), so persist
    it first.
    """
    sizes = {} if previous is None else sizes_of(previous)
    # Hash the feature too, so that a value that many features have does not fill one bucket.
    hashes = unseen.withColumn("hash", hashed("word", 0, F.col("feature"), F.col("value"))).withColumn(
        "bucket", F.shiftrightunsigned("hash", 64 - BUCKET_BITS).cast("int")
    )
    counted = hashes.groupBy("feature", "bucket").agg(F.count(F.lit(1)).alias("values")).collect()
    starts = []
    for row in sorted(counted, key=lambda r: (r["feature"], r["bucket"])):
        start = sizes.get(row["feature"], FIRST)
        starts.append((row["feature"], row["bucket"], start))
        sizes[row["feature"]] = start + int(row["values"])
    start_of = unseen.sparkSession.createDataFrame(starts, "feature string, bucket int, start int")
    within = Window.partitionBy("feature", "bucket").orderBy("hash", "value")
    numbered = (
        hashes.withColumn("rank", F.row_number().over(within) - 1)
        .join(broadcast_few(start_of), on=["feature", "bucket"], how="inner")
        .select("feature", "value", (F.col("start") + F.col("rank")).cast("int").alias("index"))
    )
    if previous is not None:
        numbered = previous.select("feature", "value", "index").unionByName(numbered)
    return numbered, sizes


def sizes_of(vocabulary: DataFrame) -> dict[str, int]:
    """Number of indices of each feature in the vocabulary, including padding and default."""
    sizes = vocabulary.groupBy("feature").agg((F.max("index") + 1).alias("size")).collect()
    return {row["feature"]: int(row["size"]) for row in sizes}


def lookup(vocabulary: DataFrame, feature: str, value: str, index: str, size: int | None = None) -> DataFrame:
    """The values and indices of one feature, for a join. `value`, `index`: names of the two columns.

    `size`: number of indices of the feature, from a manifest. A small vocabulary is broadcast. For a large or unknown size
    Spark decides, because a large vocabulary must not pass through the driver.
    """
    rows = vocabulary.where(F.col("feature") == feature).select(
        F.col("value").alias(value), F.col("index").alias(index)
    )
    return broadcast_small(rows, size)


def bucket_of(feature: str, value: Column, buckets: int) -> Column:
    """The index of a hashed value: 2 + hash mod buckets, the same on all nights. Null for a null value."""
    bucket = F.pmod(hashed("bucket", 0, F.lit(feature), value), F.lit(buckets)) + F.lit(FIRST)
    return F.when(value.isNotNull(), bucket.cast("int"))

"""The meaning of every index: append-only from night to night. 0 is padding, 1 is default, values start at 2.

New values are numbered in the order of a hash, in two phases: values a bucket of hashes, then ranks within a bucket. So
no task ever sorts a feature, and the same values get the same indices however they are partitioned.
"""

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.contract.indices import FIRST
from pipelines.hashing import hashed
from pipelines.joins import broadcast_few, broadcast_small

BUCKET_BITS = 10  # 1,024 buckets of hashes a feature: what the driver sees of a vocabulary is so many counts


def unseen_values(
    previous: DataFrame | None, values: DataFrame, min_counts: Mapping[str, int] | None = None
) -> DataFrame:
    """Values that the vocabulary lacks and that occur often enough: feature, value, each once.

    `previous`: feature, value, index. `values`: feature, value, count (repeats and nulls allowed). `min_counts`:
    occurrences from which a value of a feature enters (elsewhere 1).
    """
    counted = values.where(F.col("value").isNotNull()).groupBy("feature", "value").agg(F.sum("count").alias("count"))
    for feature, least in (min_counts or {}).items():
        if least > 1:
            counted = counted.where((F.col("feature") != feature) | (F.col("count") >= least))
    found = counted.select("feature", "value")
    return found if previous is None else found.join(previous, on=["feature", "value"], how="left_anti")


def append(previous: DataFrame | None, unseen: DataFrame) -> tuple[DataFrame, dict[str, int]]:
    """Yesterday's vocabulary with the unseen values behind it, and the number of indices of each feature.

    `unseen`: feature, value, each once; it is read twice (counted now, ranked on writing), so persist it before.
    """
    sizes = {} if previous is None else sizes_of(previous)
    # The hash knows the feature, so that one value of many features does not crowd one bucket.
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
    whole = numbered if previous is None else previous.select("feature", "value", "index").unionByName(numbered)
    return whole, sizes


def sizes_of(vocabulary: DataFrame) -> dict[str, int]:
    """Number of indices of each feature that has values, padding and default included."""
    found = vocabulary.groupBy("feature").agg((F.max("index") + 1).alias("size")).collect()
    return {row["feature"]: int(row["size"]) for row in found}


def lookup(vocabulary: DataFrame, feature: str, value: str, index: str, size: int | None = None) -> DataFrame:
    """One feature's part of the vocabulary, its columns named for a join. `size`: its indices, where a manifest says it.

    A small one is broadcast; of a large or unknown one Spark decides: it must not pass through the driver.
    """
    words = vocabulary.where(F.col("feature") == feature).select(
        F.col("value").alias(value), F.col("index").alias(index)
    )
    return broadcast_small(words, size)


def bucket_of(feature: str, value: Column, buckets: int) -> Column:
    """The index of a hashed value: 2 + hash mod buckets, for ever; null where the value is null."""
    bucket = F.pmod(hashed("bucket", 0, F.lit(feature), value), F.lit(buckets)) + F.lit(FIRST)
    return F.when(value.isNotNull(), bucket.cast("int"))

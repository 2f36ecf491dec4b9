"""A global shuffle at write time, and row groups that are equal within one row.

Trainers read row groups: a shard is whole row groups, so equal groups make equal shards, and a shuffle on disk makes
a small window shuffle while reading enough. The place of a row is its rank by hash; ranks are counted in two phases
(rows a bucket of hashes, then ranks within a bucket), so no single task ever sorts the table.
"""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from pipelines.hashing import hashed

BUCKETS = 1024


def groups_for(rows: int, row_group_rows: int, trainers: int) -> int:
    """Number of row groups: about `row_group_rows` each, a multiple of `trainers`, never more groups than rows."""
    wanted = max(1, -(-rows // row_group_rows))
    return max(1, min(rows, -(-wanted // trainers) * trainers))


def assign_groups(rows: DataFrame, seed: int, row_group_rows: int, trainers: int) -> tuple[DataFrame, dict[str, int]]:
    """Rows (row_key, split, …) with `group` (string, 00000…) and `place`, and the number of groups of each split."""
    placed = rows.withColumn("hash", hashed("shuffle", seed, F.col("row_key"))).withColumn(
        "bucket", F.shiftrightunsigned("hash", 54).cast("int")
    )
    counts = placed.groupBy("split", "bucket").agg(F.count(F.lit(1)).alias("rows")).collect()
    totals: dict[str, int] = {}
    starts = []
    for row in sorted(counts, key=lambda r: (r["split"], r["bucket"])):
        starts.append((row["split"], row["bucket"], totals.get(row["split"], 0)))
        totals[row["split"]] = totals.get(row["split"], 0) + row["rows"]
    groups = {split: groups_for(total, row_group_rows, trainers) for split, total in totals.items()}
    spark = rows.sparkSession
    start = spark.createDataFrame(starts, "split string, bucket int, start long")
    size = spark.createDataFrame(
        [(split, totals[split], groups[split]) for split in totals], "split string, total long, groups long"
    )
    within = Window.partitionBy("split", "bucket").orderBy("hash", "row_key")
    place = F.col("start") + F.row_number().over(within) - 1
    placed = (
        placed.join(F.broadcast(start), on=["split", "bucket"], how="inner")
        .join(F.broadcast(size), on="split", how="inner")
        .withColumn("place", place)
        .withColumn("group", F.format_string("%05d", F.floor(F.col("place") * F.col("groups") / F.col("total"))))
        .drop("hash", "bucket", "start", "total", "groups")
    )
    return placed, groups


def gather_groups(rows: DataFrame, groups: int) -> DataFrame:
    """One task a group, its rows in place: what `partitionBy(split, group)` then writes is one file a group."""
    return (
        rows.repartition(min(groups, 200), "split", "group")
        .sortWithinPartitions("split", "group", "place")
        .drop("place")
    )

"""A global shuffle at write time, and row groups that are equal within one row.

Trainers read row groups: a shard is whole row groups, so equal groups make equal shards, and a shuffle on disk makes
a small window shuffle while reading enough. Rows are ordered by a hash, and the hashes at which groups begin are found
once: in two phases (rows a bucket of hashes, then ranks within a bucket), so no single task ever sorts the table. Then
any frame with row keys knows its groups without a shuffle.
"""

from dataclasses import dataclass
from itertools import pairwise

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.hashing import hashed

BITS = 12  # buckets: 2**BITS
GROUPS_A_TASK = 8


@dataclass(frozen=True)
class Layout:
    """Where each row stands: its group by hash, and its place there."""

    seed: int
    groups: dict[str, int]  # split -> number of row groups
    # The stretches of places that belong to one group, cut at buckets: split, bucket, low, high, cell.
    stretches: DataFrame

    def place(self, rows: DataFrame) -> DataFrame:
        """Rows (row_key, split, …) with `cell` (int): the group that each belongs to; null without a split."""
        placed, stretches = _hashed(rows, self.seed).alias("row"), F.broadcast(self.stretches).alias("stretch")
        within = (F.col("place") >= F.col("low")) & (F.col("place") <= F.col("high"))
        same = (F.col("row.split") == F.col("stretch.split")) & (F.col("row.bucket") == F.col("stretch.bucket"))
        joined = placed.join(stretches, on=same & within, how="left")
        return joined.select(*[F.col(f"row.{name}") for name in rows.columns], "cell")

    def gather(self, rows: DataFrame) -> DataFrame:
        """Rows (row_key, cell, …) moved to the task that writes their group, in order; with `group` (00000…) and `split`."""
        moved = rows.repartition(self.tasks, "cell").sortWithinPartitions(_place(self.seed))
        group = F.when(F.col("cell") < 0, -1 - F.col("cell")).otherwise(F.col("cell"))
        digits = group.cast("string")
        return moved.withColumn("split", F.when(F.col("cell") < 0, "valid").otherwise("train")).withColumn(
            "group", F.when(group > 99_999, digits).otherwise(F.lpad(digits, 5, "0"))
        )

    @property
    def tasks(self) -> int:
        """Tasks that write: a few groups each, and no fewer than run at once."""
        groups = sum(self.groups.values())
        cores = self.stretches.sparkSession.sparkContext.defaultParallelism
        return max(-(-groups // GROUPS_A_TASK), min(groups, cores))


def groups_for(rows: int, row_group_rows: int, trainers: int) -> int:
    """Number of row groups: about `row_group_rows` each, a multiple of `trainers`, never more groups than rows."""
    wanted = max(1, -(-rows // row_group_rows))
    return max(1, min(rows, -(-wanted // trainers) * trainers))


def layout_of(rows: DataFrame, seed: int, row_group_rows: int, trainers: int) -> Layout:
    """The layout of all rows (row_key, split) that have a split."""
    placed = _hashed(rows.where("split is not null").select("row_key", "split"), seed)
    counts = {(r["split"], r["bucket"]): r["count"] for r in placed.groupBy("split", "bucket").count().collect()}
    totals: dict[str, int] = {}
    starts = {}
    for split, bucket in sorted(counts):
        starts[split, bucket] = totals.get(split, 0)
        totals[split] = totals.get(split, 0) + counts[split, bucket]
    groups = {split: groups_for(total, row_group_rows, trainers) for split, total in totals.items()}

    # The first rank of group g is ceil(g * total / groups): only ranks of these buckets need counting.
    wanted = []
    for split, total in totals.items():
        firsts = [-(-group * total // groups[split]) for group in range(1, groups[split])]
        wanted += _ranks_by_bucket(split, firsts, starts, counts)
    spark = rows.sparkSession
    schema = "split string, bucket int, first_group int, ranks array<long>"
    needed = spark.createDataFrame(wanted, schema)
    within = Window.partitionBy("split", "bucket").orderBy("place")
    bounds = (
        placed.join(F.broadcast(needed.where(F.size("ranks") > 0)), on=["split", "bucket"], how="inner")
        .withColumn("rank", (F.row_number().over(within) - 1).cast("long"))
        .where(F.array_contains("ranks", F.col("rank")))
        .groupBy("split", "bucket")
        .agg(F.array_sort(F.collect_list("place")).alias("bounds"))
        .collect()
    )
    found = {(row["split"], row["bucket"]): row["bounds"] for row in bounds}
    table = []
    for split, bucket, first, _ in wanted:
        edges = [bucket << (63 - BITS), *found.get((split, bucket), []), (bucket + 1) << (63 - BITS)]
        for group, (low, after) in enumerate(pairwise(edges), first):
            table.append((split, bucket, low, after - 1, group if split == "train" else -1 - group))
    schema = "split string, bucket int, low long, high long, cell int"
    return Layout(seed, groups, spark.createDataFrame(table, schema))


def _ranks_by_bucket(
    split: str, firsts: list[int], starts: dict[tuple[str, int], int], counts: dict[tuple[str, int], int]
) -> list[tuple[str, int, int, list[int]]]:
    """(split, bucket, group in which the bucket begins, ranks within the bucket at which a later group begins)."""
    rows = []
    group = 0
    for (name, bucket), start in sorted(starts.items()):
        if name != split:
            continue
        stop = start + counts[name, bucket]
        inside = []
        at_start = group
        while group < len(firsts) and firsts[group] < stop:
            inside.append(firsts[group] - start)
            group += 1
        rows.append((split, bucket, at_start, inside))
    return rows


def _hashed(rows: DataFrame, seed: int) -> DataFrame:
    """Adds `place` and `bucket`, its upper bits."""
    bucket = F.shiftrightunsigned("place", 63 - BITS).cast("int")
    return rows.withColumn("place", _place(seed)).withColumn("bucket", bucket)


def _place(seed: int) -> Column:
    """The order of all rows, from row_key; never negative."""
    return F.shiftrightunsigned(hashed("shuffle", seed, F.col("row_key")), 1)

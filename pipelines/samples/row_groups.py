"""A global order at write time, and row groups that are equal within one row.

Trainers read row groups: a shard is whole row groups, so equal groups make equal shards, and a shuffle on disk makes
a small window shuffle while reading enough. A row's place is a hash of it (or, where time must stay, its time), and the
places at which groups begin are found once: in two phases (rows a bucket of places, then ranks within a bucket), so no
single task ever sorts the table. Then any frame with places knows its groups without a shuffle.
"""

from dataclasses import dataclass
from itertools import pairwise

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.hashing import hashed
from pipelines.joins import broadcast_few

BITS = 12  # buckets: 2**BITS
PLACES = 63  # bits of a place
GROUPS_A_TASK = 8


@dataclass(frozen=True)
class Layout:
    """Where each row stands: its group by hash, and its place there."""

    place_of: Column  # of by_hash or by_time
    groups: dict[str, int]  # split -> number of row groups
    # The stretches of places that belong to one group, cut at buckets: split, bucket, low, high, cell.
    stretches: DataFrame

    def place(self, rows: DataFrame) -> DataFrame:
        """Rows (row_key, event_time, split, …) with `cell` (int): the group that each belongs to; null without a split."""
        placed, stretches = _placed(rows, self.place_of).alias("row"), broadcast_few(self.stretches).alias("stretch")
        within = (F.col("place") >= F.col("low")) & (F.col("place") <= F.col("high"))
        same = (F.col("row.split") == F.col("stretch.split")) & (F.col("row.bucket") == F.col("stretch.bucket"))
        joined = placed.join(stretches, on=same & within, how="left")
        return joined.select(*[F.col(f"row.{name}") for name in rows.columns], "cell")

    def gather(self, rows: DataFrame) -> DataFrame:
        """Rows (row_key, event_time, cell, …) moved to the task that writes their group, in order; with split and `group`."""
        group = F.when(F.col("cell") < 0, -1 - F.col("cell")).otherwise(F.col("cell"))
        digits = group.cast("string")
        split = F.when(F.col("cell") < 0, "valid").otherwise("train")
        name = F.when(group > 99_999, digits).otherwise(F.lpad(digits, 5, "0"))
        moved = rows.repartition(self.tasks, "cell").withColumns({"split": split, "group": name})
        # By folder first, as the writer wants them: else it sorts again by folders alone.
        return moved.sortWithinPartitions("split", "group", self.place_of, "row_key")

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


def by_hash(seed: int) -> Column:
    """The place of a row (row_key) in an order that nobody could guess."""
    return F.shiftrightunsigned(hashed("shuffle", seed, F.col("row_key")), 64 - PLACES)


def by_time(since: str, until: str) -> Column:
    """The place of a row (event_time, of this span) in the order of time; spread over all buckets."""
    first, last = (F.unix_micros(F.lit(moment).cast("timestamp")) for moment in (since, until))
    step = F.floor(F.lit(2**PLACES - 1) / (last - first + 1)).cast("long")
    return (F.unix_micros("event_time") - first) * step


def layout_of(rows: DataFrame, place_of: Column, row_group_rows: int, trainers: int) -> Layout:
    """The layout of all rows (row_key, event_time, split) that have a split."""
    placed = _placed(rows.where("split is not null"), place_of).select("split", "place", "bucket")
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
        placed.join(broadcast_few(needed.where(F.size("ranks") > 0)), on=["split", "bucket"], how="inner")
        .withColumn("rank", (F.row_number().over(within) - 1).cast("long"))
        .where(F.array_contains("ranks", F.col("rank")))
        .groupBy("split", "bucket")
        .agg(F.array_sort(F.collect_list("place")).alias("bounds"))
        .collect()
    )
    found = {(row["split"], row["bucket"]): row["bounds"] for row in bounds}
    table = []
    for split, bucket, first, _ in wanted:
        edges = [bucket << (PLACES - BITS), *found.get((split, bucket), []), (bucket + 1) << (PLACES - BITS)]
        for group, (low, after) in enumerate(pairwise(edges), first):
            table.append((split, bucket, low, after - 1, group if split == "train" else -1 - group))
    schema = "split string, bucket int, low long, high long, cell int"
    return Layout(place_of, groups, spark.createDataFrame(table, schema))


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


def _placed(rows: DataFrame, place_of: Column) -> DataFrame:
    """Adds `place` (never negative) and `bucket`, its upper bits."""
    bucket = F.shiftrightunsigned("place", PLACES - BITS).cast("int")
    return rows.withColumn("place", place_of).withColumn("bucket", bucket)

"""Orders samples globally when they are written, and cuts them into row groups whose sizes differ by at most one row.

A trainer reads whole row groups, so equal groups make equal shards. Because rows are shuffled on disk, a small shuffle
window is enough while reading.

The place of a row is a hash of the row, or its time if rows must stay in the order of time. The places where groups start
are computed in two phases: rows per bucket of places, then ranks within a bucket. So no task sorts the whole table, and
later a row's group follows from its place, without a shuffle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.hashing import hashed
from pipelines.joins import broadcast_few

BITS = 12  # buckets: 2**BITS
PLACES = 63  # bits of a place
GROUPS_PER_TASK = 8


@dataclass(frozen=True)
class RowGroupLayout:
    """The row group of each row, and its place within the group."""

    place_of: Column  # from by_hash or by_time
    groups: dict[str, int]  # split -> number of row groups
    # Ranges of places, each of one group and one bucket: split, bucket, low, high (inclusive), cell.
    ranges: DataFrame

    def place(self, rows: DataFrame) -> DataFrame:
        """Add `cell` (int) to rows (row_key, event_time, split, …): the group, -1 - group for `valid`, null if no split."""
        placed, ranges = with_places(rows, self.place_of).alias("row"), broadcast_few(self.ranges).alias("range")
        within = (F.col("place") >= F.col("low")) & (F.col("place") <= F.col("high"))
        same = (F.col("row.split") == F.col("range.split")) & (F.col("row.bucket") == F.col("range.bucket"))
        joined = placed.join(ranges, on=same & within, how="left")
        return joined.select(*[F.col(f"row.{name}") for name in rows.columns], "cell")

    def gather(self, rows: DataFrame, order: Sequence[str] | None = None) -> DataFrame:
        """Move rows (row_key, event_time, cell, …) to the task that writes their group. Add split and group.

        Sorts each group by the columns of `order`; by default by place and row key.
        """
        group = F.when(F.col("cell") < 0, -1 - F.col("cell")).otherwise(F.col("cell"))
        digits = group.cast("string")
        split = F.when(F.col("cell") < 0, "valid").otherwise("train")
        name = F.when(group > 99_999, digits).otherwise(F.lpad(digits, 5, "0"))
        moved = rows.repartition(self.tasks, "cell").withColumns({"split": split, "group": name})
        # Sorted by partition folder first: otherwise the writer sorts again, by folder only.
        return moved.sortWithinPartitions("split", "group", *(order or (self.place_of, "row_key")))

    @property
    def tasks(self) -> int:
        """Number of tasks that write: GROUPS_PER_TASK groups each, but at least one task per core."""
        groups = sum(self.groups.values())
        cores = self.ranges.sparkSession.sparkContext.defaultParallelism
        return max(-(-groups // GROUPS_PER_TASK), min(groups, cores))


def groups_for(rows: int, row_group_rows: int, trainers: int) -> int:
    """Number of row groups: about `row_group_rows` rows each, a multiple of `trainers`, at most as many as rows."""
    wanted = max(1, -(-rows // row_group_rows))
    return max(1, min(rows, -(-wanted // trainers) * trainers))


def by_hash(seed: int) -> Column:
    """The place of a row (row_key) in a random order that depends on the seed."""
    return F.shiftrightunsigned(hashed("shuffle", seed, F.col("row_key")), 64 - PLACES)


def by_time(since: str, until: str) -> Column:
    """The place of a row in the order of event_time. The span [since, until] is scaled to all buckets."""
    first, last = (F.unix_micros(F.lit(moment).cast("timestamp")) for moment in (since, until))
    step = F.floor(F.lit(2**PLACES - 1) / (last - first + 1)).cast("long")
    return (F.unix_micros("event_time") - first) * step


def layout_of(rows: DataFrame, place_of: Column, row_group_rows: int, trainers: int) -> RowGroupLayout:
    """The layout of the rows (row_key, event_time, split) that have a split."""
    placed = with_places(rows.where("split is not null"), place_of).select("split", "place", "bucket")
    counts = {(r["split"], r["bucket"]): r["count"] for r in placed.groupBy("split", "bucket").count().collect()}
    totals: dict[str, int] = {}
    starts = {}
    for split, bucket in sorted(counts):
        starts[split, bucket] = totals.get(split, 0)
        totals[split] = totals.get(split, 0) + counts[split, bucket]
    groups = {split: groups_for(total, row_group_rows, trainers) for split, total in totals.items()}

    # Group g starts at rank ceil(g * total / groups). Rows are ranked only in buckets where a group starts.
    buckets = []
    for split, total in totals.items():
        firsts = [-(-group * total // groups[split]) for group in range(1, groups[split])]
        buckets += _ranks_by_bucket(split, firsts, starts, counts)
    spark = rows.sparkSession
    schema = "split string, bucket int, first_group int, ranks array<long>"
    starts_in = spark.createDataFrame(buckets, schema).where(F.size("ranks") > 0)
    within = Window.partitionBy("split", "bucket").orderBy("place")
    bounds = (
        placed.join(broadcast_few(starts_in), on=["split", "bucket"], how="inner")
        .withColumn("rank", (F.row_number().over(within) - 1).cast("long"))
        .where(F.array_contains("ranks", F.col("rank")))
        .groupBy("split", "bucket")
        .agg(F.array_sort(F.collect_list("place")).alias("bounds"))
        .collect()
    )
    bounds_of = {(row["split"], row["bucket"]): row["bounds"] for row in bounds}
    table = []
    for split, bucket, first, _ in buckets:
        edges = [bucket << (PLACES - BITS), *bounds_of.get((split, bucket), []), (bucket + 1) << (PLACES - BITS)]
        for group, (low, after) in enumerate(pairwise(edges), first):
            table.append((split, bucket, low, after - 1, group if split == "train" else -1 - group))
    schema = "split string, bucket int, low long, high long, cell int"
    return RowGroupLayout(place_of, groups, spark.createDataFrame(table, schema))


def _ranks_by_bucket(
    split: str, firsts: list[int], starts: dict[tuple[str, int], int], counts: dict[tuple[str, int], int]
) -> list[tuple[str, int, int, list[int]]]:
    """Per bucket of the split: (split, bucket, group of its first row, ranks in the bucket at which a later group starts)."""
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


def with_places(rows: DataFrame, place_of: Column) -> DataFrame:
    """Add `place` (>= 0) and `bucket`, its upper bits."""
    bucket = F.shiftrightunsigned("place", PLACES - BITS).cast("int")
    return rows.withColumn("place", place_of).withColumn("bucket", bucket)

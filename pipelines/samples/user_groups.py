"""Row groups of packed samples: all rows of a user are in one group of their split, and groups hold about as many positives.

The place of a row is a hash of its user. Users are cut into groups as `row_groups` cuts rows, except that each user weighs
as many rows as they have. The weight of very active users is capped at the size of a group, so that no group is empty.
"""

from collections import defaultdict
from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.hashing import hashed
from pipelines.joins import broadcast_few
from pipelines.samples.row_groups import BITS, PLACES, RowGroupLayout, with_places


def by_user(seed: int) -> Column:
    """The place of a row (user_id): users are in a random order that depends on the seed."""
    return F.shiftrightunsigned(hashed("user shuffle", seed, F.col("user_id")), 64 - PLACES)


def groups_for_users(rows: int, users: int, row_group_rows: int, trainers: int) -> int:
    """Number of row groups: about `row_group_rows` rows each, a multiple of `trainers`, at most as many as users."""
    wanted = -(-max(1, -(-rows // row_group_rows)) // trainers) * trainers
    if users >= wanted:
        return wanted
    return users // trainers * trainers if users >= trainers else max(1, users)


def weight_cap(users_by_rows: Mapping[int, int], groups: int) -> int:
    """The largest weight of a user: no group is empty if groups have equal weights and no user weighs more than a group.

    `users_by_rows`: number of rows -> number of users with so many; at least `groups` users in all.
    """

    def fits(cap: int) -> bool:
        return sum(min(rows, cap) * users for rows, users in users_by_rows.items()) >= cap * groups

    low, high = 1, max(users_by_rows)  # `low` always fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def layout_by_user(rows: DataFrame, seed: int, row_group_rows: int, trainers: int) -> RowGroupLayout:
    """The layout of the rows (user_id, split) that have a split. Collects one number per bucket and group, none per user."""
    place_of = by_user(seed)
    placed = with_places(rows.where("split is not null"), place_of)
    users = placed.groupBy("split", "bucket", "place").agg(F.count(F.lit(1)).alias("rows")).persist()
    try:
        sizes: dict[str, dict[int, int]] = defaultdict(dict)
        for row in users.groupBy("split", "rows").agg(F.count(F.lit(1)).alias("users")).collect():
            sizes[row["split"]][row["rows"]] = row["users"]
        groups = {
            split: groups_for_users(
                sum(rows * users for rows, users in of.items()), sum(of.values()), row_group_rows, trainers
            )
            for split, of in sizes.items()
        }
        cap = F.lit(None).cast("long")
        for split, of in sizes.items():
            cap = F.when(F.col("split") == split, weight_cap(of, groups[split])).otherwise(cap)
        table = _ranges(users.withColumn("weight", F.least("rows", cap)), groups)
    finally:
        users.unpersist()
    schema = "split string, bucket int, low long, high long, cell int"
    return RowGroupLayout(place_of, groups, rows.sparkSession.createDataFrame(table, schema))


def _ranges(users: DataFrame, groups: Mapping[str, int]) -> list[tuple[str, int, int, int, int]]:
    """Ranges of places, each of one group and one bucket: (split, bucket, low, high, cell).

    `users`: split, bucket, place, weight. A user whose predecessors weigh C of a total W is in group C * groups / W.
    """
    weights = users.groupBy("split", "bucket").agg(F.sum("weight").alias("weight")).collect()
    buckets = sorted((row["split"], row["bucket"], row["weight"]) for row in weights)
    totals: dict[str, int] = defaultdict(int)
    starts = []
    for split, bucket, weight in buckets:
        starts.append((split, bucket, totals[split]))
        totals[split] += weight
    several = []
    firsts: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (split, bucket) -> (group, first place), ascending
    for (split, bucket, start), (_, _, weight) in zip(starts, buckets):
        group, last = (rank * groups[split] // totals[split] for rank in (start, start + weight - 1))
        if group == last:
            firsts[split, bucket] = [(group, bucket << (PLACES - BITS))]
        else:
            several.append((split, bucket, start, groups[split], totals[split]))
    for split, bucket, group, place in _first_places(users, several):
        firsts.setdefault((split, bucket), []).append((group, place))
    table = []
    for (split, bucket), begins in firsts.items():
        begins.sort()
        # The ranges of a bucket cover all of its places.
        lows = [bucket << (PLACES - BITS), *(place for _, place in begins[1:]), (bucket + 1) << (PLACES - BITS)]
        for (group, _), low, after in zip(begins, lows, lows[1:]):
            table.append((split, bucket, low, after - 1, group if split == "train" else -1 - group))
    return table


def _first_places(users: DataFrame, buckets: list[tuple[str, int, int, int, int]]) -> list[tuple[str, int, int, int]]:
    """The groups of the users of some buckets: (split, bucket, group, place of its first user).

    `buckets`: split, bucket, weight of all earlier buckets, number of groups, total weight.
    """
    schema = "split string, bucket int, start long, groups long, total long"
    chosen = users.sparkSession.createDataFrame(buckets, schema)
    within = Window.partitionBy("split", "bucket").orderBy("place").rowsBetween(Window.unboundedPreceding, 0)
    rank = F.col("start") + F.sum("weight").over(within) - F.col("weight")
    ranked = users.join(broadcast_few(chosen), on=["split", "bucket"], how="inner").withColumn("rank", rank)
    group = F.expr("`rank` * `groups` div `total`").alias("number")
    found = ranked.groupBy("split", "bucket", group).agg(F.min("place").alias("place")).collect()
    return [(row["split"], row["bucket"], row["number"], row["place"]) for row in found]

"""Recent positives per item: counts that halve with age. The recency prior of a release is made from them.

Counts of all half-lives are multiplied to the same total, the positives of the window. A constant that is added to each of
them then is the same share of the whole, and half-lives differ in nothing but how fast they forget.

An item that was not there on all days has had less time to be taken. Its count is raised to the one expected if it had been
there: a rate of positives per day, shrunk to the rate of the mean item. An item that has not been there yet is then as likely
as the mean item, and not as unlikely as an old item that nobody wants.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.day_events import late_counts
from pipelines.night import Night
from pipelines.positives.popularity import MASS, day_ordinal

UNKNOWN_TIME = 0.5  # of an item's first day, if only the day is known
MICROSECONDS_PER_DAY = 86_400 * 10**6


@dataclass(frozen=True)
class HalfLife:
    """Counts and days of one half-life, in days. Ages are counted to the day `as_of` (days since 1970-01-01)."""

    days: float
    as_of: int

    def count(self, *, until: int | None = None) -> Column:
        """Decayed positives of an item, summed in the order of the days: the same bits on every run."""

        def add(total: Column, day: Column) -> Column:
            age = F.greatest(F.lit(0), F.lit(self.as_of) - day["day_ordinals"])
            decayed = total + day["day_counts"] * F.pow(F.lit(0.5), age / F.lit(self.days))
            return decayed if until is None else F.when(day["day_ordinals"] <= F.lit(until), decayed).otherwise(total)

        return F.aggregate(F.arrays_zip("day_ordinals", "day_counts"), F.lit(0.0), add)

    def whole(self, start: int) -> float:
        """Decayed number of days from `start` to `as_of`."""
        kept = 0.5 ** (1 / self.days)
        return float((1 - kept ** (self.as_of + 1 - start)) / (1 - kept))

    def exposure(self, first: Column, start: int) -> Column:
        """Decayed number of days that an item was there, from `start` on.

        `first`: when it came, in days with a fraction: of its first day it gets the rest. 0 if that is after `as_of`.
        """
        kept = F.lit(0.5 ** (1 / self.days))
        first_day = F.floor(first)
        age = F.lit(self.as_of) - first_day
        later = (F.lit(1.0) - F.pow(kept, age + 1)) / (F.lit(1.0) - kept) - F.pow(kept, age) * (first - first_day)
        return F.when(first <= start, self.whole(start)).when(age < 0, 0.0).otherwise(later)


def came_at(available_from: Column, publish_time: Column) -> Column:
    """When an item came: days since 1970-01-01 with a fraction (UTC); null if it was there from the beginning.

    That is its time of publication if it is known and on the day `available_from`, else the middle of this day.
    """
    day = F.datediff(F.to_date(available_from.cast("string"), "yyyyMMdd"), F.lit("1970-01-01"))
    published = F.unix_micros(publish_time) / F.lit(MICROSECONDS_PER_DAY)
    return F.when(F.floor(published) == day, published).otherwise(day + UNKNOWN_TIME)


def recent_counts(
    night: Night, half_lives: Sequence[float], *, as_of: str, since: str | None, unseen_count: float
) -> DataFrame:
    """Decayed counts of all live items: item_index, item_id, recent_counts, counts_before_holdout (arrays, by half-life).

    A positive of day D counts s 0.5^(age / half-life), its age being the days from D to `as_of` (0 for later days); s is the
    same for all and makes the counts until `as_of` sum to their number. With n of such counts in E of F days (decayed alike),
    an item has the count (n + a) (F + a/r) / (E + a/r) - a, where r is the mean item's rate and a is `unseen_count`. F
    begins with the first day that is counted, E when the item came (`came_at`).
    `counts_before_holdout` leaves out the positives of ds at or after `since` (UTC); None: there are none.
    """
    halves = [HalfLife(days, day_ordinal(as_of)) for days in half_lives]
    stats = night.warehouse.read("item_stats", night.ds).where("live")
    features = night.warehouse.read("item_features", night.ds)
    available = features.select("item_index", came_at(F.col("available_from"), F.col("publish_time")).alias("came"))
    rows = stats.join(available, on="item_index", how="left").select(
        "item_index",
        "item_id",
        "day_ordinals",
        F.coalesce("came", F.lit(0.0)).alias("came"),
        *(half.count().alias(f"c{n}") for n, half in enumerate(halves)),
        *(half.count(until=half.as_of).alias(f"u{n}") for n, half in enumerate(halves)),
        HalfLife(math.inf, day_ordinal(as_of)).count(until=day_ordinal(as_of)).alias("number"),
    )
    start = _first_day(rows, day_ordinal(as_of))
    # An item was there when it was first taken, whatever its publish time says.
    taken = F.array_min("day_ordinals")
    came = F.when(taken < F.floor("came"), taken + UNKNOWN_TIME).otherwise(F.col("came"))
    rows = rows.withColumn("first", F.greatest(came, F.lit(float(start))))
    scales, rates = _scales_and_rates(rows, halves, start)
    if since is None:
        rows = rows.withColumn("late", F.lit(0))
    else:
        late = late_counts(night, since).withColumnRenamed("count", "late")
        rows = rows.join(late, on="item_index", how="left").withColumn("late", F.coalesce("late", F.lit(0)))

    def expected(decayed: Column, half: HalfLife, scale: float, rate: float) -> Column:
        count = decayed * F.lit(scale)
        if not rate:
            return count
        there = half.exposure(F.col("first"), start)
        missing = F.lit(half.whole(start)) - there
        return count + (count + F.lit(unseen_count)) * missing / (there + F.lit(unseen_count / rate))

    counts = [F.col(f"c{n}") for n in range(len(halves))]
    # Late positives are of ds, so each of them counts 1. The last bits of the difference may be below 0.
    before = [F.greatest(F.lit(0.0), count - F.col("late")) for count in counts]
    return rows.select(
        "item_index",
        "item_id",
        F.array(*map(expected, counts, halves, scales, rates)).alias("recent_counts"),
        F.array(*map(expected, before, halves, scales, rates)).alias("counts_before_holdout"),
    ).sort("item_index")


def _first_day(rows: DataFrame, last: int) -> int:
    """The first day with positives; `last` if there are none."""
    found = rows.agg(F.min(F.array_min("day_ordinals"))).first()
    return min(last, found[0]) if found and found[0] is not None else last


def _scales_and_rates(rows: DataFrame, halves: Sequence[HalfLife], start: int) -> tuple[list[float], list[float]]:
    """By half-life: number of positives over their decayed sum, and positives (so multiplied) per day that an item was there.

    Sums of decimals do not depend on the order of rows. Without positives of days after `as_of`, so that an update within the
    day keeps both from its night.
    """
    sums = [F.sum(F.col(f"u{n}").cast(MASS)) for n in range(len(halves))]
    sums += [F.sum(half.exposure(F.col("first"), start).cast(MASS)) for half in halves]
    found = rows.agg(*sums, F.sum(F.col("number").cast(MASS))).first()
    *totals, number = [float(value or 0) for value in found] if found else [0.0] * (len(sums) + 1)
    scales = [number / decayed if decayed else 1.0 for decayed in totals[: len(halves)]]
    return scales, [number / days if days else 0.0 for days in totals[len(halves) :]]

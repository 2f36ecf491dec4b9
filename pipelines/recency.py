"""Recent positives per item: counts that halve with age. The recency prior of a release is made from them."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.day_events import late_counts
from pipelines.night import Night
from pipelines.positives.popularity import day_ordinal


def recent_counts(night: Night, half_lives: Sequence[float], *, as_of: str, since: str | None) -> DataFrame:
    """Decayed counts of all live items: item_index, item_id, recent_counts, counts_before_holdout (arrays, by half-life).

    A positive of day D counts 0.5^(age / half-life), its age being the days from D to `as_of` (0 for later days).
    `counts_before_holdout` leaves out the positives of ds at or after `since` (UTC); None: there are none.
    """
    stats = night.warehouse.read("item_stats", night.ds).where("live")
    rows = stats.select("item_index", "item_id", *(_decayed(h, as_of).alias(f"c{n}") for n, h in enumerate(half_lives)))
    if since is None:
        rows = rows.withColumn("late", F.lit(0))
    else:
        late = late_counts(night, since).withColumnRenamed("count", "late")
        rows = rows.join(late, on="item_index", how="left").withColumn("late", F.coalesce("late", F.lit(0)))
    counts = [F.col(f"c{n}") for n in range(len(half_lives))]
    # Late positives are of ds, so each of them counts 1. The last bits of the difference may be below 0.
    before = [F.greatest(F.lit(0.0), count - F.col("late")) for count in counts]
    return rows.select(
        "item_index",
        "item_id",
        F.array(*counts).alias("recent_counts"),
        F.array(*before).alias("counts_before_holdout"),
    ).sort("item_index")


def _decayed(half_life: float, as_of: str) -> Column:
    """The sum over the days of item_stats, which are in order: the same bits on every run."""
    days = F.arrays_zip("day_ordinals", "day_counts")

    def add(total: Column, day: Column) -> Column:
        age = F.greatest(F.lit(0), F.lit(day_ordinal(as_of)) - day["day_ordinals"])
        return total + day["day_counts"] * F.pow(F.lit(0.5), age / F.lit(half_life))

    return F.aggregate(days, F.lit(0.0), add)

"""Popularity as features of items: how many positives an item had in the days before each snapshot."""

from collections.abc import Mapping

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.feature_config import Features
from pipelines.features.item_versions import ItemSnapshots
from pipelines.night import Night
from pipelines.positives.popularity import count_days, day_ordinal

LISTED = "_listed"


def with_popularity(
    snapshots: Mapping[str, DataFrame], days: ItemSnapshots, features: Features, events: DataFrame, night: Night
) -> dict[str, DataFrame]:
    """Add the columns of `features.item_popularity` to items snapshots: log(1 + positives in the last N days).

    Only days strictly before the day of the snapshot count. A row sees the newest snapshot strictly before its event, so
    the feature of a row ends two days before it, in training as in serving.

    Some rows see a snapshot of their own day or a later one, and must not see their own label:
    - rows of an item that no earlier snapshot has: in the first snapshot that has an item, its popularity is 0;
    - rows of days before the oldest snapshot: there only days before those rows count.

    `snapshots`: by day; item_id and other columns. `events`: the positives of the night: item_id, ds.
    """
    if not features.item_popularity:
        return dict(snapshots)
    counts, ordered = _count_days(events, night), sorted(snapshots)
    counted = {}
    for before, ds in zip([None, *ordered], ordered, strict=False):
        if before is None:
            rows, until = snapshots[ds].withColumn(LISTED, F.lit(True)), min([ds, *days.later])
        else:
            listed = snapshots[before].select("item_id", F.lit(True).alias(LISTED))
            rows, until = snapshots[ds].join(listed, on="item_id", how="left"), ds
        counted[ds] = _counted(rows, counts, features, until).drop(LISTED)
    return counted


def _count_days(events: DataFrame, night: Night) -> DataFrame:
    """Positives per item and day, those of the state of yesterday included: item_id, day (ordinal), count."""
    today = count_days(events)
    if not night.yesterday:
        return today
    days = F.inline(F.arrays_zip("day_ordinals", "day_counts"))
    past = night.warehouse.read("item_stats", night.yesterday).select("item_id", days)
    return today.unionByName(
        past.select("item_id", F.col("day_ordinals").alias("day"), F.col("day_counts").alias("count"))
    )


def _counted(rows: DataFrame, counts: DataFrame, features: Features, until: str) -> DataFrame:
    """Add the columns to the rows of one snapshot. Positives of `until` and later days do not count."""
    end = day_ordinal(until)
    names = [feature.name for feature in features.popularity_features]
    sums = [
        F.sum(F.when(F.col("day") >= end - days, F.col("count")).otherwise(F.lit(0))).alias(name)
        for days, name in zip(features.item_popularity, names, strict=True)
    ]
    totals = counts.where(F.col("day") < end).groupBy("item_id").agg(*sums)
    joined = rows.drop(*names).join(totals, on="item_id", how="left")
    count = {name: F.when(F.col(LISTED), F.coalesce(F.col(name), F.lit(0))).otherwise(F.lit(0)) for name in names}
    return joined.withColumns({name: F.log1p(count[name].cast("double")) for name in names})

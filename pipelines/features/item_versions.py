"""Items as of each day: the snapshot that the rows of a day see, the items that were live then, and their features.

A row sees the newest snapshot strictly before the day of its event, for items as for users. A snapshot of that day or a
later one may already contain the event: a column `clicks_7d` would hold the row's own label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.feature_config import CategoricalFeatureConfig, MultiCategoricalFeatureConfig, VectorFeatureConfig
from pipelines.features.side import Side
from pipelines.inputs.tables import InputTables
from pipelines.joins import broadcast_few

NEVER_REPLACED = 99_999_999  # valid_before of an item's last version, if the newest snapshot lacks the item
FROM_THE_START = 0  # available_from of an item that is in the oldest snapshot of the night


def number(ds: str) -> int:
    """A day as the number YYYYMMDD, the format of item_snapshot and valid_before."""
    return int(ds.replace("-", ""))


@dataclass(frozen=True)
class ItemSnapshots:
    """The items snapshots that the days of a night use."""

    seen: dict[str, str]  # day of events -> the snapshot that its rows see
    at: dict[str, str | None]  # day of events -> the newest snapshot at or before it
    newest: str  # the snapshot of ds, whose items are recalled and served
    later: list[str]  # days without an earlier snapshot: their rows see one of the same day or a later one

    @classmethod
    def of(cls, inputs: InputTables, days: list[str], newest: str) -> "ItemSnapshots":
        """Find the snapshots for days of events. `newest`: the snapshot of ds."""
        snapshots = [day for day in inputs.days("items") if day <= newest]
        seen, at, later = {}, {}, []
        for day in days:
            before = inputs.snapshot_at("items", day, strictly_before=True)
            if before is None:
                later.append(day)
                before = next(snapshot for snapshot in snapshots if snapshot >= day)
            seen[day], at[day] = before, inputs.snapshot_at("items", day, strictly_before=False)
        return cls(seen, at, newest, later)

    @property
    def to_read(self) -> list[str]:
        """The snapshots to read, oldest first."""
        return sorted({*self.seen.values(), *(day for day in self.at.values() if day), self.newest})

    def snapshot_of(self, ds: Column) -> Column:
        """The snapshot that a row of a day sees, as a number."""
        pairs = [F.lit(part) for day, snapshot in self.seen.items() for part in (day, number(snapshot))]
        return F.create_map(*pairs)[ds].cast("int")

    def warning(self) -> str | None:
        """A warning if rows see a snapshot that is not older than their events; else None."""
        if not self.later:
            return None
        oldest = self.seen[self.later[0]]
        days = self.later[0] if len(self.later) == 1 else f"{self.later[0]} to {self.later[-1]}"
        return (
            f"items: the oldest snapshot is of {oldest}: {len(self.later)} days of rows ({days}) see item features from "
            f"after their events. Keep a snapshot of the day before the first day of logs where features change"
        )


def spans(snapshots: Mapping[str, DataFrame], side: Side, end: str) -> DataFrame:
    """One row per run of snapshots in which an item does not change.

    `snapshots`: by day; item_id, publish_time and the columns of features. `end`: drop items that are published later.
    Returns item_id, publish_time, feature columns, first, last, since: the first and last snapshot of the run, and the
    first snapshot that has the item (YYYYMMDD).
    """
    days = sorted(snapshots)
    columns = _columns(side)
    parts = [
        snapshots[day].where(published_by(end)).select("item_id", "publish_time", *columns, F.lit(place).alias("place"))
        for place, day in enumerate(days)
    ]
    if len(parts) == 1:
        day = F.lit(number(days[0]))
        return parts[0].drop("place").withColumns({"first": day, "last": day, "since": day})
    by_item = Window.partitionBy("item_id").orderBy("place")
    content = F.struct("publish_time", *side_columns(side))
    follows = (F.lag("place").over(by_item) == F.col("place") - 1) & F.lag(content).over(by_item).eqNullSafe(content)
    begins = F.when(F.coalesce(follows, F.lit(False)), 0).otherwise(1)
    running = by_item.rowsBetween(Window.unboundedPreceding, 0)
    marked = reduce(DataFrame.unionByName, parts).withColumn("begins", begins)
    runs = (
        marked.withColumn("span", F.sum("begins").over(running))
        .groupBy("item_id", "span")
        .agg(F.first(content).alias("content"), F.min("place").alias("first"), F.max("place").alias("last"))
    )
    numbers = F.array(*(F.lit(number(day)) for day in days))
    whole = Window.partitionBy("item_id").rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    runs = runs.withColumn("since", F.min("first").over(whole))
    return runs.select(
        "item_id",
        "content.*",
        *(F.element_at(numbers, F.col(name) + 1).alias(name) for name in ("first", "last", "since")),
    )


def published_by(end: str) -> Column:
    """Whether an item is published by a moment (UTC). Items without a publish_time are."""
    return F.col("publish_time").isNull() | (F.col("publish_time") <= F.lit(end).cast("timestamp"))


def side_columns(side: Side) -> list[str]:
    """The columns of a snapshot that features are made from, without repeats."""
    names = []
    for feature in side.features:
        names.append(feature.name)
        if isinstance(feature, MultiCategoricalFeatureConfig) and feature.weights:
            names.append(feature.weights)
    return list(dict.fromkeys(names))


def _columns(side: Side) -> list[Column]:
    """`side_columns`, cast to one type for all snapshots: the types of a column may differ between days."""
    types: dict[str, str] = {}
    for feature in side.features:
        if isinstance(feature, MultiCategoricalFeatureConfig):
            types[feature.name] = "array<string>"
            if feature.weights:
                types[feature.weights] = "array<float>"
        elif isinstance(feature, VectorFeatureConfig):
            types[feature.name] = "array<float>"
        else:
            types[feature.name] = "string" if isinstance(feature, CategoricalFeatureConfig) else "double"
    return [F.col(name).cast(types[name]).alias(name) for name in side_columns(side)]


def current(encoded: DataFrame, newest: str) -> DataFrame:
    """The rows of the newest snapshot, whose items are recalled and served. `encoded`: spans with encoded features."""
    return encoded.where(F.col("last") == number(newest))


def earlier(encoded: DataFrame, columns: list[str], newest: str) -> DataFrame:
    """The versions of items that rows of earlier snapshots see, with `valid_before`.

    A version that equals the next one of its item is left out. To find what a training row sees, take the first version
    of the item whose valid_before is after the row's snapshot; if there is none, take the current version. So an item
    that the snapshot lacks has the features that it had before or, if it is new, those that it came with.

    `encoded`: spans with encoded features. `columns`: the encoded features.
    """
    by_item = Window.partitionBy("item_id").orderBy("first")
    content = F.struct(*columns) if columns else F.lit(0)
    replaced = F.lead("first").over(by_item)
    same = replaced.isNotNull() & F.lead(content).over(by_item).eqNullSafe(content)
    versions = encoded.withColumns({"same": same, "replaced": replaced})
    versions = versions.where(~F.col("same") & (F.col("last") != number(newest)))
    return versions.withColumn("valid_before", F.coalesce("replaced", F.lit(NEVER_REPLACED))).drop("same", "replaced")


def available_from(spanned: DataFrame, oldest: str) -> Column:
    """The first day (YYYYMMDD) on which an item was in a snapshot and published. 0: on all days of the night."""
    listed = F.when(F.col("since") > number(oldest), F.col("since")).otherwise(FROM_THE_START)
    published = F.coalesce(F.date_format("publish_time", "yyyyMMdd").cast("int"), F.lit(FROM_THE_START))
    return F.greatest(listed, published)


def live_days(item_days: DataFrame, spanned: DataFrame, days: ItemSnapshots) -> DataFrame:
    """Whether an item could be recalled on a day: item_id, ds, count, live, later.

    An item was live on a day if it was published by then and is in the snapshot before that day or in that of the day.
    A new item, which no snapshot has by then, was live if a later snapshot has it. `later`: the rows of the item see a
    snapshot from after their events.

    `item_days`: from popularity.count_days. `spanned`: from `spans`.
    """
    rows = [
        (ds, 0 if ds in days.later else number(seen), number(at) if (at := days.at[ds]) else 0)
        for ds, seen in days.seen.items()
    ]
    snapshots = item_days.sparkSession.createDataFrame(rows, "ds string, seen int, at int")
    snapshots = snapshots.withColumn("day", F.datediff("ds", F.lit("1970-01-01")))
    with_snapshots = item_days.join(broadcast_few(snapshots), on="day", how="inner")
    item_spans = spanned.select("item_id", "publish_time", "first", "last")
    joined = with_snapshots.join(item_spans, on="item_id", how="left")
    published = F.col("publish_time").isNull() | (F.col("publish_time") < F.date_add("ds", 1).cast("timestamp"))
    listed = F.col("seen").between(F.col("first"), F.col("last")) | F.col("at").between(F.col("first"), F.col("last"))
    return joined.groupBy("item_id", "ds", "count").agg(
        F.coalesce(
            F.max(listed & published)
            | ((F.min("first") > F.first("at")) & F.max(F.col("first").isNotNull() & published)),
            F.lit(False),
        ).alias("live"),
        F.coalesce(F.min("first") > F.first("seen"), F.lit(False)).alias("later"),
    )


def facts_of(live: DataFrame, days: ItemSnapshots) -> dict[str, Any]:
    """Facts of the manifest of `positives`: the snapshots that rows see. `live`: from `live_days`."""
    row = live.where("later").agg(F.sum("count").alias("rows")).first()
    assert row is not None
    return {
        "item_snapshots": days.seen,
        "later_snapshot_days": days.later,
        "later_snapshot_rows": int(row["rows"] or 0),
    }

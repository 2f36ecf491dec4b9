"""Events of a day as they happened: who the user was at that moment, what the user had, and what the user took.

Gates judge releases on these events. Samples would not do: they are thinned by popularity, capped, and do not say what a
user had.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Features
from pipelines.features import encode
from pipelines.hashing import hashed
from pipelines.joins import broadcast_few
from pipelines.night import Night
from pipelines.positives.popularity import day_ordinal

SPARE = 4  # events looked at for each one wanted: many are of items that the user had


def day_events(night: Night, features: Features, most: int, *, since: str | None, new_items_only: bool) -> DataFrame:
    """Up to `most` positives of ds, chosen by hash: user_id, user_index, user_NAME…, history (padded left), item_index, had.

    Positives that down-sampling or the cap dropped are among them; those of items that cannot be recalled are not. `history`
    and `had` (array<int>) hold what was strictly before the event. `since`: only events from this time on (UTC).
    `new_items_only`: only events of items that the user did not have.
    """
    rows = night.warehouse.read("positives", night.ds).where(
        F.col("event_time") >= F.lit(night.window[0]).cast("timestamp")
    )
    events = rows.where(F.col("event_time") >= F.lit(since or night.ds).cast("timestamp"))
    live = night.warehouse.read("item_stats", night.ds).where("live").select("item_index")
    events = events.join(live, on="item_index", how="left_semi")
    order = [hashed("judged", night.seed, F.col("row_key")), F.col("row_key")]
    events = _with_past(events.orderBy(*order).limit(SPARE * most), rows, night)
    if new_items_only:
        events = events.where(~F.array_contains("had", F.col("item_index")))
    length = features.history.length if features.history else 1
    past = "had" if features.history and features.history.order == "leave_one_out" else "past"
    return (
        events.orderBy(*order)
        .limit(most)
        .select(
            "user_id",
            "user_index",
            *encode.sides(features)[0].encoded_columns(),
            encode.pad_left(F.col(past), length).alias("history"),
            "item_index",
            "had",
        )
    )


def _with_past(events: DataFrame, rows: DataFrame, night: Night) -> DataFrame:
    """Events with `past` (the history) and `had` (every item known to be had), both of strictly before the event.

    `rows`: the positives of the window.
    """
    users = broadcast_few(events.select("user_id").distinct())
    nothing = F.array().cast("array<int>")
    day = F.array_sort(F.collect_list(F.struct("event_time", "row_key", "item_index"))).alias("day")
    days = rows.join(users, on="user_id", how="left_semi").groupBy("user_id").agg(day)
    events = events.join(days, on="user_id", how="left")
    if night.yesterday:
        state = night.warehouse.read("user_histories", night.yesterday).join(users, on="user_id", how="left_semi")
        events = events.join(state.select("user_id", "history_items", "known_items"), on="user_id", how="left")
    else:
        events = events.withColumns({"history_items": nothing, "known_items": nothing})
    before = F.transform(
        F.filter("day", lambda did: did["event_time"] < F.col("event_time")), lambda did: did["item_index"]
    )
    past = F.concat(F.coalesce("history_items", nothing), before)
    known = F.concat(F.coalesce("known_items", nothing), before)
    # Reversed twice, so that of an item that comes twice the last place counts.
    had = F.reverse(F.array_distinct(F.reverse(known)))
    return events.withColumns({"past": past, "had": had}).drop("day", "history_items", "known_items")


def popular_items(night: Night, days: int, most: int, *, since: str) -> DataFrame:
    """The `most` live items with most positives in the last `days` days, without those from `since` (UTC) on: item_index.

    The most popular first; of equal ones the lower index.
    """
    first = day_ordinal(night.ds) - days + 1
    stats = night.warehouse.read("item_stats", night.ds).where("live")
    counts = stats.select("item_index", F.inline(F.arrays_zip("day_ordinals", "day_counts")))
    counts = counts.where(F.col("day_ordinals") >= first).select("item_index", F.col("day_counts").alias("count"))
    late = night.warehouse.read("positives", night.ds).where(F.col("event_time") >= F.lit(since).cast("timestamp"))
    late = late.join(stats.select("item_index"), on="item_index", how="left_semi")
    late = late.groupBy("item_index").agg((-F.count(F.lit(1))).alias("count"))
    totals = counts.unionByName(late).groupBy("item_index").agg(F.sum("count").alias("count")).where("count > 0")
    return totals.orderBy(F.desc("count"), "item_index").limit(most).select("item_index")

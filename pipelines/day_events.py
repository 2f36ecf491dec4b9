"""Events of a day for evaluation: the user's features at that moment, the items that the user had, and the item taken.

Gates compare releases on these events. Samples do not suffice: they are down-sampled by popularity, capped, and lack the
items that a user had.
"""

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from pipelines.feature_config import Features
from pipelines.features.encode import pad_left
from pipelines.features.feature_schema import HISTORY_ACTIONS, HISTORY_AGES
from pipelines.features.side import context_side, sides
from pipelines.hashing import hashed
from pipelines.histories.cuts import ages_at
from pipelines.histories.user_histories import action_of, actions_of
from pipelines.joins import broadcast_few
from pipelines.night import Night
from pipelines.positives.popularity import day_ordinal

STATE = ("history_items", "history_times", HISTORY_ACTIONS, "known_items")  # columns of user_histories
SPARE = 4  # candidate events per requested one: many are of items that the user already had


def day_events(night: Night, features: Features, most: int, *, since: str | None, new_items_only: bool) -> DataFrame:
    """Up to `most` positives of ds, chosen by hash: user_id, user_index, user_NAME..., context_NAME..., history, item_index,
    had.

    With features.history.ages also history_ages: seconds from each item of the history to the event. With
    features.history.actions also history_actions: the action of each item.

    They include positives that down-sampling or the cap dropped, but only of items that can be recalled. `history` (padded
    left) and `had` (all known items) are arrays of item indices from strictly before the event.

    `since`: only events at or after this time (UTC). `new_items_only`: only events of items that the user did not have.
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
    of_past = []
    if features.history and features.history.ages:
        of_past.append(ages_at(F.col("event_time"), F.col("past_times"), length).alias(HISTORY_AGES))
    if features.history and features.history.actions:
        of_past.append(pad_left(F.col("past_actions"), length).alias(HISTORY_ACTIONS))
    return (
        events.orderBy(*order)
        .limit(most)
        .select(
            "user_id",
            "user_index",
            *sides(features)[0].encoded_columns(),
            *context_side(features).encoded_columns(),
            pad_left(F.col(past), length).alias("history"),
            *of_past,
            "item_index",
            "had",
        )
    )


def _with_past(events: DataFrame, rows: DataFrame, night: Night) -> DataFrame:
    """Adds `past` (the user's last items), `past_times`, `past_actions` and `had` (all known items of the user), from before
    the event.

    `rows`: the positives of the window.
    """
    users = broadcast_few(events.select("user_id").distinct())
    empty, no_times = F.array().cast("array<int>"), F.array().cast("array<timestamp>")
    event = F.struct("event_time", "row_key", "item_index", action_of(rows).alias("action"))
    day = F.array_sort(F.collect_list(event)).alias("day")
    days = rows.join(users, on="user_id", how="left_semi").groupBy("user_id").agg(day)
    events = events.join(days, on="user_id", how="left")
    if night.yesterday:
        state = night.warehouse.read("user_histories", night.yesterday).join(users, on="user_id", how="left_semi")
        state = state.withColumn(HISTORY_ACTIONS, actions_of(state))
        events = events.join(state.select("user_id", *STATE), on="user_id", how="left")
    else:
        nothing = {"history_items": empty, "history_times": no_times, HISTORY_ACTIONS: empty, "known_items": empty}
        events = events.withColumns(nothing)
    earlier = F.filter("day", lambda event: event["event_time"] < F.col("event_time"))
    before = F.transform(earlier, lambda event: event["item_index"])
    times = F.concat(F.coalesce("history_times", no_times), F.transform(earlier, lambda event: event["event_time"]))
    past = F.concat(F.coalesce("history_items", empty), before)
    actions = F.concat(F.coalesce(HISTORY_ACTIONS, empty), F.transform(earlier, lambda event: event["action"]))
    all_items = F.concat(F.coalesce("known_items", empty), before)
    # Reverse twice to keep the last occurrence of each item.
    had = F.reverse(F.array_distinct(F.reverse(all_items)))
    added = {"past": past, "past_times": times, "past_actions": actions, "had": had}
    return events.withColumns(added).drop("day", *STATE)


def popular_items(night: Night, windows: Sequence[int], most: int, *, since: str) -> DataFrame:
    """The `most` most popular live items of each window: window_days, rank (from 1), item_index.

    Popularity is the number of positives in the last `window_days` days; ties by lower index. Positives at or after `since`
    (UTC) do not count.
    """
    last = day_ordinal(night.ds)
    stats = night.warehouse.read("item_stats", night.ds).where("live")
    counts = stats.select("item_index", F.inline(F.arrays_zip("day_ordinals", "day_counts")))
    counts = counts.select("item_index", F.col("day_ordinals").alias("day"), F.col("day_counts").alias("count"))
    late = late_counts(night, since).select("item_index", F.lit(last).alias("day"), (-F.col("count")).alias("count"))
    late = late.join(stats.select("item_index"), on="item_index", how="left_semi")
    each_window = F.explode(F.array(*[F.lit(days) for days in windows])).alias("window_days")
    rows = counts.unionByName(late).select("item_index", "day", "count", each_window)
    rows = rows.where(F.col("day") > F.lit(last) - F.col("window_days"))
    totals = rows.groupBy("window_days", "item_index").agg(F.sum("count").alias("count")).where("count > 0")
    best = Window.partitionBy("window_days").orderBy(F.desc("count"), "item_index")
    ranked = totals.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= most)
    return ranked.select("window_days", "rank", "item_index")


def late_counts(night: Night, since: str) -> DataFrame:
    """Positives of ds at or after `since` (UTC) per item, as item_stats counts them: item_index, count."""
    late = night.warehouse.read("positives", night.ds).where(F.col("event_time") >= F.lit(since).cast("timestamp"))
    return late.groupBy("item_index").agg(F.count(F.lit(1)).alias("count"))

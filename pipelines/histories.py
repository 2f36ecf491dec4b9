"""What a user did before an event, and what is known of a user at the end of a day.

Both come from a streaming pass (pipelines/streams.py) over rows sorted by user, time and row key. Ties in time have the
order of the row key, a hash of what happened: the same whichever indices the ids have.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipelines.encode import pad_left
from pipelines.hashing import hashed
from pipelines.streams import cut_histories, last_rows
from pipelines.vocabulary import DEFAULT

# Whose rows lie together, and in which order. The key is a hash of the id: sorting by a number costs a fraction of
# sorting by texts that all begin alike; the id behind it keeps users apart whose hashes are equal.
USER = ["user_key", "user_id"]
WITHIN = ["event_time", "row_key"]


def user_key() -> Column:
    """The number that stands ahead of user_id wherever rows are sorted or joined by user."""
    return F.xxhash64("user_id").alias("user_key")


def mark_first(events: DataFrame) -> DataFrame:
    """Events with `first`: whether a row is its user's first, which is the one that carries the user's state."""
    return events.withColumn("first", F.row_number().over(Window.partitionBy(*USER).orderBy(*WITHIN)) == 1)


def attach_histories(events: DataFrame, state: DataFrame | None, length: int) -> DataFrame:
    """Events with `history`: array<int> of exactly `length`, the user's last positives strictly before, 0-padded left.

    `events`: user_key, user_id, event_time, item_index, row_key, kept and first (booleans), and anything else. Rows that
    are not kept are part of the histories but do not come out. Events at the same instant never see each other. `state`:
    user_histories of the night before, or None. Adds `history_until`, the time of the newest item of the history (null
    where there is none).
    """
    columns = [name for name in events.columns if name not in ("user_key", "kept", "first")]
    schema = T.StructType(
        [
            *events.select(*columns).schema.fields,
            T.StructField("history", T.ArrayType(T.IntegerType())),
            T.StructField("history_until", T.TimestampType()),
        ]
    )
    if state is None:
        nothing = {"past": F.lit(None).cast("array<int>"), "past_until": F.lit(None).cast("timestamp")}
        rows = events.withColumns(nothing)
    else:
        past = state.select(
            user_key(),
            "user_id",
            F.col("history_items").alias("past"),
            F.element_at("history_times", -1).alias("past_until"),
        )
        # The state travels with the first row of its user alone: a user's events do not each carry fifty items.
        rows = events.join(past, on=USER, how="left").withColumn("past", F.when(F.col("first"), F.col("past")))
    ordered = rows.sortWithinPartitions(*USER, *WITHIN)
    return ordered.mapInArrow(lambda batches: cut_histories(batches, length, columns), schema)


def leave_one_out(events: DataFrame, rolled: DataFrame, length: int) -> DataFrame:
    """Events with `history`: the user's last other positives, whatever their order, 0-padded left; `history_until` null.

    `events`: user_key, user_id, item_index, kept and anything else; rows that are not kept do not come out. `rolled`:
    user_histories of this very night. The newest length + 1 distinct items of a user are enough: at most one of them is
    the row's own.
    """
    pool = rolled.select(user_key(), "user_id", F.slice(F.reverse("known_items"), 1, length + 1).alias("pool"))
    others = F.reverse(F.slice(F.filter("pool", lambda item: item != F.col("item_index")), 1, length))
    return (
        events.where("kept")
        .join(pool, on=USER, how="left")
        .withColumn("history", pad_left(others, length))
        .withColumn("history_until", F.lit(None).cast("timestamp"))
        .drop("user_key", "kept", "first", "pool")
    )


def last_of_users(events: DataFrame, length: int, known: int) -> DataFrame:
    """One row a user of the day: the last `length` positives and the last `known` distinct ones.

    `events`: user_key, user_id, item_id, item_index, event_time, row_key. Returns user_id, items_today and times_today in
    the order of (event_time, row_key), known_today in that of (last touch, a hash of user and item).
    """
    pair = hashed("touch", 0, F.col("user_id"), F.col("item_id")).alias("pair")
    ordered = events.select(*USER, *WITHIN, "item_index", pair).sortWithinPartitions(*USER, *WITHIN)
    schema = "user_id string, items_today array<int>, times_today array<timestamp>, known_today array<int>"
    return ordered.mapInArrow(lambda batches: last_rows(batches, length, known), schema)


def roll_histories(today: DataFrame, state: DataFrame | None, length: int, known: int) -> DataFrame:
    """user_histories at the end of the day: yesterday's state and today's positives, cut to the last ones again.

    `today`: of last_of_users, with user_index (null: not in the vocabulary). Rolling from night to night and reading all
    nights at once give the same rows: every order is of time and of hashes, none of indices.
    """
    if state is None:
        state = today.select("user_id", "user_index").where(F.lit(False))
        nothing = {"history_items": "array<int>", "history_times": "array<timestamp>", "known_items": "array<int>"}
        state = state.withColumns({name: F.lit(None).cast(kind) for name, kind in nothing.items()})
    merged = state.withColumnRenamed("user_index", "index_before").join(today, on="user_id", how="full_outer")

    def joined(before: str | Column, after: str, size: int) -> Column:
        behind = F.concat(F.coalesce(before, F.array()), F.coalesce(after, F.array()))
        return F.when(F.size(behind) > size, F.slice(behind, -size, size)).otherwise(behind)

    untouched = F.coalesce(F.array_except("known_items", "known_today"), "known_items")
    return merged.select(
        "user_id",
        F.coalesce("user_index", "index_before", F.lit(DEFAULT)).alias("user_index"),
        joined("history_items", "items_today", length).alias("history_items"),
        joined("history_times", "times_today", length).alias("history_times"),
        joined(untouched, "known_today", known).alias("known_items"),
    )

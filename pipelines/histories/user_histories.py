"""User histories at the end of a day: the last positives of each user, and the distinct items among more of them.

A streaming pass (pipelines/histories/history_arrays.py) computes them from rows sorted by user, time and row key. Rows of
the same time are ordered by row key, a hash of the event, so the order does not depend on the indices of ids.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.contract.indices import DEFAULT
from pipelines.features.feature_schema import ACTION_INDEX, HISTORY_ACTIONS
from pipelines.hashing import hashed
from pipelines.histories.history_arrays import last_rows
from pipelines.histories.user_stream import key_of

# Partition and sort by USER, then sort by WITHIN. user_key is a hash of the id: sorting by a number costs a fraction of
# sorting by texts with a common prefix. user_id separates users whose hashes collide.
USER = ["user_key", "user_id"]
WITHIN = ["event_time", "row_key"]


def user_key() -> Column:
    """The column user_key: the hash of user_id that precedes it in all sorts and joins by user."""
    return key_of("user_id").alias("user_key")


def last_of_users(events: DataFrame, length: int, known_items: int) -> DataFrame:
    """One row per user of the day: the last `length` positives and the last `known_items` distinct items.

    `events`: user_key, user_id, item_id, item_index, event_time, row_key, and action_index if histories have actions. Returns
    user_id, items_today, times_today, known_today, and actions_today if there are actions. Arrays are in the order of
    (event_time, row_key), only known_today is in the order of (last event of the item, a hash of user and item).
    """
    actions = [name for name in events.columns if name == ACTION_INDEX]
    pair = hashed("touch", 0, F.col("user_id"), F.col("item_id")).alias("pair")
    # The window makes Spark put all rows of a user in one partition, whatever the joins before it did. If they already are
    # in one, nothing is shuffled. The sort is the same as that of the window.
    number = F.row_number().over(Window.partitionBy(*USER).orderBy(*WITHIN)).alias("number")
    ordered = events.select(*USER, *WITHIN, "item_index", *actions, pair, number).sortWithinPartitions(*USER, *WITHIN)
    schema = "user_id string, items_today array<int>, times_today array<timestamp>, known_today array<int>"
    schema += ", actions_today array<int>" if actions else ""
    has_actions = bool(actions)
    return ordered.mapInArrow(lambda batches: last_rows(batches, length, known_items, actions=has_actions), schema)


def roll_histories(today: DataFrame, state: DataFrame | None, length: int, known_items: int) -> DataFrame:
    """user_histories at the end of the day: yesterday's histories with today's positives appended, cut to the last ones.

    `today`: from last_of_users, with user_index (null: not in the vocabulary). `state`: user_histories of the night
    before; None in a bootstrap. With actions_today the result has history_actions. Rolling night by night and reading all
    days at once give the same rows, because all orders are by time and hashes, never by index.
    """
    if state is None:
        state = today.select("user_id", "user_index").where(F.lit(False))
        empty = {"history_items": "array<int>", "history_times": "array<timestamp>", "known_items": "array<int>"}
        state = state.withColumns({name: F.lit(None).cast(kind) for name, kind in empty.items()})
    with_actions = "actions_today" in today.columns
    if with_actions:
        state = state.withColumn(HISTORY_ACTIONS, actions_of(state))
    merged = state.withColumnRenamed("user_index", "index_before").join(today, on="user_id", how="full_outer")

    def joined(before: str | Column, after: str, size: int) -> Column:
        both = F.concat(F.coalesce(before, F.array()), F.coalesce(after, F.array()))
        return F.when(F.size(both) > size, F.slice(both, -size, size)).otherwise(both)

    untouched = F.coalesce(F.array_except("known_items", "known_today"), "known_items")
    actions = [joined(HISTORY_ACTIONS, "actions_today", length).alias(HISTORY_ACTIONS)] if with_actions else []
    return merged.select(
        "user_id",
        F.coalesce("user_index", "index_before", F.lit(DEFAULT)).alias("user_index"),
        joined("history_items", "items_today", length).alias("history_items"),
        joined("history_times", "times_today", length).alias("history_times"),
        *actions,
        joined(untouched, "known_today", known_items).alias("known_items"),
    )


def actions_of(state: DataFrame) -> Column:
    """history_actions of a state. All are DEFAULT in a state of a night that did not write them."""
    if HISTORY_ACTIONS in state.columns:
        return F.col(HISTORY_ACTIONS)
    return F.transform("history_items", lambda _: F.lit(DEFAULT))


def action_of(positives: DataFrame) -> Column:
    """action_index of positives; DEFAULT for those of a night that did not write it."""
    return F.col(ACTION_INDEX) if ACTION_INDEX in positives.columns else F.lit(DEFAULT)

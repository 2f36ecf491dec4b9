"""User histories at the end of a day: the last positives of each user, and the distinct items among more of them.

A streaming pass (pipelines/histories/history_arrays.py) computes them from rows sorted by user, time and row key. Rows of
the same time are ordered by row key, a hash of the event, so the order does not depend on the indices of ids.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.contract.indices import DEFAULT
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

    `events`: user_key, user_id, item_id, item_index, event_time, row_key. Returns user_id, items_today, times_today and
    known_today. The first two arrays are in the order of (event_time, row_key), known_today in the order of (last event of
    the item, a hash of user and item).
    """
    pair = hashed("touch", 0, F.col("user_id"), F.col("item_id")).alias("pair")
    # The window makes Spark put all rows of a user in one partition, whatever the joins before it did. If they already are
    # in one, nothing is shuffled. The sort is the same as that of the window.
    number = F.row_number().over(Window.partitionBy(*USER).orderBy(*WITHIN)).alias("number")
    ordered = events.select(*USER, *WITHIN, "item_index", pair, number).sortWithinPartitions(*USER, *WITHIN)
    schema = "user_id string, items_today array<int>, times_today array<timestamp>, known_today array<int>"
    return ordered.mapInArrow(lambda batches: last_rows(batches, length, known_items), schema)


def roll_histories(today: DataFrame, state: DataFrame | None, length: int, known_items: int) -> DataFrame:
    """user_histories at the end of the day: yesterday's histories with today's positives appended, cut to the last ones.

    `today`: from last_of_users, with user_index (null: not in the vocabulary). `state`: user_histories of the night
    before; None in a bootstrap. Rolling night by night and reading all days at once give the same rows, because all orders
    are by time and hashes, never by index.
    """
    if state is None:
        state = today.select("user_id", "user_index").where(F.lit(False))
        empty = {"history_items": "array<int>", "history_times": "array<timestamp>", "known_items": "array<int>"}
        state = state.withColumns({name: F.lit(None).cast(kind) for name, kind in empty.items()})
    merged = state.withColumnRenamed("user_index", "index_before").join(today, on="user_id", how="full_outer")

    def joined(before: str | Column, after: str, size: int) -> Column:
        both = F.concat(F.coalesce(before, F.array()), F.coalesce(after, F.array()))
        return F.when(F.size(both) > size, F.slice(both, -size, size)).otherwise(both)

    untouched = F.coalesce(F.array_except("known_items", "known_today"), "known_items")
    return merged.select(
        "user_id",
        F.coalesce("user_index", "index_before", F.lit(DEFAULT)).alias("user_index"),
        joined("history_items", "items_today", length).alias("history_items"),
        joined("history_times", "times_today", length).alias("history_times"),
        joined(untouched, "known_today", known_items).alias("known_items"),
    )

"""What is known of a user at the end of a day.

A streaming pass (pipelines/histories/history_arrays.py) makes it from rows sorted by user, time and row key. Rows of the
same time are ordered by row key, a hash of the event: the order does not depend on the indices that ids have.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.contract.indices import DEFAULT
from pipelines.hashing import hashed
from pipelines.histories.history_arrays import last_rows
from pipelines.histories.user_stream import key_of

# Whose rows lie together, and in which order. The key is a hash of the id: sorting by a number costs a fraction of
# sorting by texts that all begin alike; the id behind it keeps users apart whose hashes are equal.
USER = ["user_key", "user_id"]
WITHIN = ["event_time", "row_key"]


def user_key() -> Column:
    """The number that stands ahead of user_id wherever rows are sorted or joined by user."""
    return key_of("user_id").alias("user_key")


def last_of_users(events: DataFrame, length: int, known: int) -> DataFrame:
    """One row a user of the day: the last `length` positives and the last `known` distinct ones.

    `events`: user_key, user_id, item_id, item_index, event_time, row_key. Returns user_id, items_today and times_today in
    the order of (event_time, row_key), known_today in that of (last touch, a hash of user and item).
    """
    pair = hashed("touch", 0, F.col("user_id"), F.col("item_id")).alias("pair")
    # The window makes Spark bring the rows of a user together, whatever the joins before it did. Where they already lie
    # in one partition, nothing is moved; then the sort asks for the order of this window.
    number = F.row_number().over(Window.partitionBy(*USER).orderBy(*WITHIN)).alias("number")
    ordered = events.select(*USER, *WITHIN, "item_index", pair, number).sortWithinPartitions(*USER, *WITHIN)
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

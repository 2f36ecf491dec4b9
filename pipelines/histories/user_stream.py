"""One stream of rows per user, sorted by role: excluded items, items that the funnel dropped, items that a release ranks,
past positives, then samples.

Users and items are identified by 64-bit hashes of their ids, because joins and sorts of numbers cost a fraction of those of
text. Among a hundred million ids, the probability that any two have the same hash is 0.03%.
"""

from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

EXCLUDED, DROPPED, RANKED, PAST, ROW = range(5)  # roles of rows, in the order of the stream
ORDER = ("user_key", "role", "at", "key")
CONTEXT = "user_key long, role int, at long, key long, values array<long>"
# Most values per row: the size of an Arrow batch is limited by rows, not by bytes. A multiple of 2 and 3: see `interleaved`.
CHUNK = 510


def key_of(column: str) -> Column:
    """The 64-bit hash of an id."""
    return F.xxhash64(column)


def context(frame: DataFrame, role: int, values: Column, at: Column | None = None) -> DataFrame:
    """Rows of schema CONTEXT with up to CHUNK values each; `key` numbers the rows of an array. An empty array gives no row.

    `frame`: user_key and the columns that `values` and `at` use.
    """
    nothing = F.lit(None).cast("long")
    return frame.select(
        "user_key",
        F.lit(role).alias("role"),
        (nothing if at is None else at).alias("at"),
        F.posexplode(_chunks(values.cast("array<long>"))).alias("key", "values"),
    ).withColumn("key", F.col("key").cast("long"))


def interleaved(items: Column, times: Column, actions: Column | None = None) -> Column:
    """Item, time (microseconds) and action of each event, one after the other in one array. `_chunks` cuts no event."""
    events = F.zip_with(items, times, lambda item, time: F.array(item.cast("long"), F.unix_micros(time)))
    if actions is not None:
        events = F.zip_with(events, actions, lambda event, action: F.concat(event, F.array(action.cast("long"))))
    return F.flatten(events)


def _chunks(values: Column) -> Column:
    """The array cut into arrays of CHUNK values; no array if it is empty."""
    pieces = F.transform(
        F.sequence(F.lit(0), F.floor((F.size(values) - 1) / CHUNK).cast("int")),
        lambda piece: F.slice(values, piece * CHUNK + 1, F.lit(CHUNK)),
    )
    whole = F.when(F.size(values) <= CHUNK, F.array(values)).otherwise(pieces)
    return F.filter(whole, lambda piece: F.size(piece) > 0)


def stream_of(rows: DataFrame, contexts: list[DataFrame]) -> DataFrame:
    """`rows` and `contexts` in one frame, partitioned by user and sorted by ORDER.

    `rows`: user_key, at (microseconds), key (the row key), and further columns. `contexts`: frames of schema CONTEXT.
    """
    parts = [rows.withColumn("role", F.lit(ROW)), *contexts]
    whole = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), parts)
    return whole.repartition("user_key").sortWithinPartitions(*ORDER)

"""One stream for all that decides a user's rows, sorted by user: what the user must not get, what the funnel dropped, what
the user did before, then the rows.

Users and items are told apart by the 64-bit hashes of their ids: a number costs a fraction of a text in every join and sort.
Among a hundred million ids, the chance that any two share one is 0.03%.
"""

from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

EXCLUDED, DROPPED, PAST, ROW = range(4)  # roles in the stream, in their order
ORDER = ("user_key", "role", "at", "key")
CONTEXT = "user_key long, role int, at long, key long, values array<long>"
CHUNK = 512  # values a row: Arrow counts rows a batch, not bytes


def key_of(column: str) -> Column:
    """The number that stands for an id."""
    return F.xxhash64(column)


def context(frame: DataFrame, role: int, values: Column, at: Column | None = None) -> DataFrame:
    """Rows of CONTEXT, CHUNK values each, their number as the key. `frame`: user_key and whatever the columns are made of.
    Empty arrays give none."""
    nothing = F.lit(None).cast("long")
    return frame.select(
        "user_key",
        F.lit(role).alias("role"),
        (nothing if at is None else at).alias("at"),
        F.posexplode(_chunks(values.cast("array<long>"))).alias("key", "values"),
    ).withColumn("key", F.col("key").cast("long"))


def pairs(items: Column, times: Column) -> Column:
    """What a user did as the values of one row: item and time (microseconds) by turns. CHUNK is even, so no pair is cut."""
    pair = F.zip_with(items, times, lambda item, time: F.array(item.cast("long"), F.unix_micros(time)))
    return F.flatten(pair)


def _chunks(values: Column) -> Column:
    pieces = F.transform(
        F.sequence(F.lit(0), F.floor((F.size(values) - 1) / CHUNK).cast("int")),
        lambda piece: F.slice(values, piece * CHUNK + 1, F.lit(CHUNK)),
    )
    whole = F.when(F.size(values) <= CHUNK, F.array(values)).otherwise(pieces)
    return F.filter(whole, lambda piece: F.size(piece) > 0)


def stream_of(rows: DataFrame, contexts: list[DataFrame]) -> DataFrame:
    """Everything by user, in ORDER. `rows`: user_key, at (microseconds), key (the row key), and columns of their own.
    `contexts`: rows of CONTEXT."""
    parts = [rows.withColumn("role", F.lit(ROW)), *contexts]
    whole = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), parts)
    return whole.repartition("user_key").sortWithinPartitions(*ORDER)

"""What a user did before an event, and what is known of a user at the end of a day.

Histories are cut in one streaming pass over rows sorted by user and time: a row costs the same whether its user has
ten events or a million, and nothing but the last L rows of one user is carried from batch to batch.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

STATE, EVENT, CONTEXT = 0, 1, 2  # roles in the sorted stream


def attach_histories(events: DataFrame, state: DataFrame | None, length: int) -> DataFrame:
    """Events with `history`: array<int> of exactly `length`, the user's last positives strictly before, 0-padded left.

    `events`: user_id, event_time, item_index, kept (boolean), and anything else. Rows that are not kept are part of the
    histories but do not come out. Events at the same instant never see each other. `state`: user_histories of the
    night before, or None.
    """
    rows = events.withColumn("role", F.lit(EVENT))
    if state is not None:
        active = events.select("user_id").distinct()
        past = (
            state.join(active, on="user_id", how="left_semi")
            .select("user_id", F.explode(F.arrays_zip("history_items", "history_times")).alias("past"))
            .select(
                "user_id",
                F.col("past.history_items").alias("item_index"),
                F.col("past.history_times").alias("event_time"),
                F.lit(STATE).alias("role"),
                F.lit(False).alias("kept"),
            )
        )
        rows = rows.unionByName(past, allowMissingColumns=True)
    ordered = rows.repartition("user_id").sortWithinPartitions("user_id", "event_time", "role", "item_index", "row_key")
    columns = [name for name in events.columns if name != "kept"]
    schema = T.StructType(
        [*ordered.select(*columns).schema.fields, T.StructField("history", T.ArrayType(T.IntegerType()))]
    )
    return ordered.mapInArrow(lambda batches: _cut_histories(batches, length, columns), schema)


def _cut_histories(batches: Iterable[pa.RecordBatch], length: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Sorted rows in, kept rows with their history out."""
    carried: pa.Table | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        fresh = pa.Table.from_batches([batch])
        table = fresh if carried is None else pa.concat_tables([carried, fresh])
        already_out = 0 if carried is None else carried.num_rows
        user = table.column("user_id").combine_chunks()
        time = table.column("event_time").combine_chunks()
        rows = np.arange(table.num_rows)
        new_user, new_time = _changes(user), _changes(time)
        user_start = np.maximum.accumulate(np.where(new_user, rows, 0))
        instant_start = np.maximum.accumulate(np.where(new_user | new_time, rows, 0))

        out = np.flatnonzero(table.column("kept").to_numpy() & (rows >= already_out))
        places = instant_start[out, None] - length + np.arange(length)
        items = table.column("item_index").to_numpy()
        history = np.where(places >= user_start[out, None], items[np.maximum(places, 0)], 0).astype(np.int32)
        offsets = pa.array(np.arange(len(out) + 1) * length, type=pa.int32())
        kept = table.select(columns).take(pa.array(out)).combine_chunks()
        kept = kept.append_column("history", pa.ListArray.from_arrays(offsets, pa.array(history.ravel())))
        yield from kept.to_batches()

        # Carry what the next batch may still need: the last L rows before the open instant, and the last L of it.
        open_user, open_instant = user_start[-1], instant_start[-1]
        before = np.arange(max(open_user, open_instant - length), open_instant)
        within = np.arange(max(open_instant, table.num_rows - length), table.num_rows)
        carried = table.take(pa.array(np.concatenate([before, within])))


def _changes(values: pa.Array) -> np.ndarray:
    """Whether each value differs from the one before it; the first always does."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    differs = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[True], differs])


def roll_histories(events: DataFrame, state: DataFrame | None, length: int, known: int) -> DataFrame:
    """user_histories at the end of the day: yesterday's state and today's positives, cut to the last ones again.

    `events`: user_id, user_index, item_index, event_time, row_key.
    """
    latest = Window.partitionBy("user_id").orderBy(F.desc("event_time"), F.desc("item_index"), F.desc("row_key"))
    # Cut before collecting: an array never holds more than the state keeps, however much one user did today.
    recent = events.withColumn("rank", F.row_number().over(latest)).where(F.col("rank") <= length)
    history = recent.groupBy("user_id").agg(
        F.first("user_index").alias("user_index"),
        F.array_sort(F.collect_list(F.struct("event_time", "item_index", "row_key"))).alias("today"),
    )
    last_touch = events.groupBy("user_id", "item_index").agg(F.max("event_time").alias("event_time"))
    by_touch = Window.partitionBy("user_id").orderBy(F.desc("event_time"), F.desc("item_index"))
    known_today = (
        last_touch.withColumn("rank", F.row_number().over(by_touch))
        .where(F.col("rank") <= known)
        .groupBy("user_id")
        .agg(F.array_sort(F.collect_list(F.struct("event_time", "item_index"))).alias("known_today"))
    )
    today = history.join(known_today, on="user_id", how="inner").select(
        "user_id",
        "user_index",
        F.col("today.item_index").alias("items_today"),
        F.col("today.event_time").alias("times_today"),
        F.col("known_today.item_index").alias("known_today"),
    )
    if state is None:
        return today.select(
            "user_id",
            "user_index",
            F.col("items_today").alias("history_items"),
            F.col("times_today").alias("history_times"),
            F.col("known_today").alias("known_items"),
        )
    past = state.withColumnRenamed("user_index", "index_before")
    merged = past.join(today, on="user_id", how="full_outer")

    def joined(before: str, after: str, size: int) -> F.Column:
        behind = F.concat(F.coalesce(before, F.array()), F.coalesce(after, F.array()))
        return F.when(F.size(behind) > size, F.slice(behind, -size, size)).otherwise(behind)

    return merged.withColumn(
        "known_items", F.coalesce(F.array_except("known_items", "known_today"), "known_items")
    ).select(
        "user_id",
        F.coalesce("index_before", "user_index").alias("user_index"),
        joined("history_items", "items_today", length).alias("history_items"),
        joined("history_times", "times_today", length).alias("history_times"),
        joined("known_items", "known_today", known).alias("known_items"),
    )

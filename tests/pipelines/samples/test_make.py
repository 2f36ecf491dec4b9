"""Samples from the stream of contexts and rows: independent of batch boundaries, with negatives of the right kinds."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import COARSE, FINE, NONE, POPULARITY, UNIFORM
from pipelines.histories.user_stream import CHUNK, DROPPED, EXCLUDED, PAST, ROW, context, key_of
from pipelines.samples.draws import AliasTable
from pipelines.samples.funnel import (
    COARSE_RANKED,
    DAY_MICROS,
    FINE_RANKED,
    ITEM_BITS,
    RERANKED,
    STAGE_SHIFT,
    requests_of,
)
from pipelines.samples.make import complete, make_samples
from pipelines.samples.user_context import SamplingSettings, with_contexts

pytestmark = pytest.mark.joins

ITEMS = 200
SCHEMA = pa.schema(
    [
        ("user_key", pa.int64()),
        ("role", pa.int32()),
        ("at", pa.int64()),
        ("key", pa.int64()),
        ("values", pa.list_(pa.int64())),
        ("request_key", pa.int64()),
        ("item_index", pa.int32()),
        ("cell", pa.int32()),
        ("carried", pa.bool_()),
    ]
)
CONFIG = Negatives(uniform=2, popularity=1, coarse=2, fine=2, fine_share=0.5)
MONDAY, TUESDAY = 19786, 19787  # 2024-03-04 and the day after, in days since 1970


def settings(config: Negatives = CONFIG) -> SamplingSettings:
    items = np.arange(2, ITEMS)
    table = AliasTable.build(items, np.ones(len(items)))
    return SamplingSettings(config, 17, ITEMS, {UNIFORM: table, POPULARITY: table}, history_length=3)


def packed(stage: int, *items: int) -> list[int]:
    return [stage << STAGE_SHIFT | place << ITEM_BITS | item for place, item in enumerate(items)]


def stream() -> list[tuple[object, ...]]:
    """Five users in order. User 3 has no rows, user 4 no context. User 5 has two requests of one day and one of the next."""
    rows: list[tuple[object, ...]] = []
    for user in (-7, 1, 3, 4, 5):
        if user != 4:
            rows.append((user, EXCLUDED, None, None, [50 + user % 5, 60]))
            rows.append((user, EXCLUDED, None, None, [70]))
            # In two pieces, not in order.
            first = packed(COARSE_RANKED, 10, 11, 60) + packed(RERANKED, 20, 21) + packed(FINE_RANKED, 22, 23, 70, 24)
            rows.append((user, DROPPED, MONDAY, 100, first[5:][::-1]))
            rows.append((user, DROPPED, MONDAY, 100, first[:5]))
        if user == 5:
            rows.append((user, DROPPED, MONDAY, 101, packed(COARSE_RANKED, 12, 13, 14)))
            rows.append((user, DROPPED, TUESDAY, 102, packed(COARSE_RANKED, 15)))
        if user == 1:
            rows.append((user, PAST, None, None, [81, MONDAY * DAY_MICROS - 2, 82, MONDAY * DAY_MICROS - 1]))
        if user != 3:
            # Key 0 has no cell: it is a positive but no sample. Request 102 is on Tuesday, so its rows come last.
            for key in sorted(range(13), key=lambda key: (user == 5 and key % 4 == 2, key)):
                request = (100, 101, 102, None)[key % 4] if user == 5 else 100
                day = TUESDAY if request == 102 else MONDAY
                rows.append(
                    (user, ROW, day * DAY_MICROS + key, user * 1000 + key, None, request, 90 + key, key or None)
                )
    return rows


def batches(size: int) -> Iterator[pa.RecordBatch]:
    rows = [row + (None,) * (len(SCHEMA) - len(row)) for row in stream()]
    for start in range(0, len(rows), size):
        columns = zip(*rows[start : start + size])
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)]
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def samples(size: int, config: Negatives = CONFIG) -> dict[int, dict[str, list[float]]]:
    shared = settings(config)
    samples = {}
    for rows, contexts, group in with_contexts(batches(size), shared):
        for row in complete(rows, contexts, group, ["key", "item_index"], shared).to_pylist():
            samples[row["key"]] = row
    return samples


ONE_BATCH = samples(1000)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 40])
def test_samples_do_not_depend_on_batch_boundaries(size: int) -> None:
    assert samples(size) == ONE_BATCH


def test_rows_without_a_cell_extend_histories_and_are_not_returned() -> None:
    assert [ONE_BATCH[1000 + key]["history"] for key in (1, 3, 4)] == [[81, 82, 90], [90, 91, 92], [91, 92, 93]]
    assert ONE_BATCH[4001]["history"] == [0, 0, 90]
    assert 1000 not in ONE_BATCH


def test_hard_negatives_come_from_the_own_request_and_easy_negatives_fill_the_rest() -> None:
    assert len(ONE_BATCH) == 48
    for key, row in ONE_BATCH.items():
        user = -7 if key < 0 else key // 1000
        by_kind = {kind: set() for kind in (UNIFORM, POPULARITY, COARSE, FINE, NONE)}
        for item, kind in zip(row["negatives"], row["negative_kinds"]):
            by_kind[kind].add(item)
        assert not by_kind[NONE]
        assert len(set(row["negatives"])) == 7
        assert not set(row["negatives"]) & ({row["item_index"]} | ({50 + user % 5, 60, 70} if user != 4 else set()))
        if user == 4:
            assert not by_kind[COARSE] | by_kind[FINE]
            assert len(by_kind[POPULARITY]) == 5  # 1 popularity slot and 4 hard slots
        elif user != 5 or key % 4 == 0:
            # The fine list is 20 21 22 23 70 24, its last half is 23 70 24. Items 60 and 70 are excluded.
            assert by_kind[COARSE] == {10, 11}
            assert by_kind[FINE] == {23, 24}
        elif key % 4 == 1:
            assert by_kind[COARSE] < {12, 13, 14}
            assert by_kind[FINE] == {23, 24}  # from the user's other request of that day
        elif key % 4 == 2:
            assert by_kind[COARSE] == {15}  # the only item of its day: an easy negative fills the other slot
            assert not by_kind[FINE]
            assert len(by_kind[POPULARITY]) == 4
        else:  # an event without a request: all requests of the day
            assert by_kind[COARSE] < {10, 11, 12, 13, 14}
            assert by_kind[FINE] == {23, 24}


def test_without_a_popularity_quota_uniform_negatives_fill_hard_slots() -> None:
    config = Negatives(uniform=1, popularity=0, coarse=1, fine=1)
    kinds = {kind for key, row in samples(7, config).items() if key // 1000 == 4 for kind in row["negative_kinds"]}
    assert kinds == {UNIFORM}


def test_without_hard_quotas_there_are_only_easy_negatives() -> None:
    config = Negatives(uniform=1, popularity=2, coarse=0, fine=0)
    assert all(row["negative_kinds"] == [UNIFORM, POPULARITY, POPULARITY] for row in samples(7, config).values())


def test_long_lists_are_cut_into_chunks(spark: SparkSession) -> None:
    sizes = [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK]
    frame = spark.createDataFrame([(n, list(range(n))) for n in sizes], "user_key int, items array<long>")
    rows = context(frame, EXCLUDED, F.col("items")).collect()
    chunks = sorted((row["user_key"], row["values"]) for row in rows)
    assert [(user, len(values)) for user, values in chunks] == [
        (1, 1),
        (CHUNK, CHUNK),
        (CHUNK + 1, CHUNK),
        (CHUNK + 1, 1),
        *[(3 * CHUNK, CHUNK) for _ in range(3)],
    ]
    assert [item for user, values in chunks if user == CHUNK + 1 for item in values] == list(range(CHUNK + 1))


def test_one_user_and_one_request_may_be_very_large(spark: SparkSession) -> None:
    """One user with 100,000 rows and one request with 100,000 dropped items, among 100 users with one row."""
    rows = spark.range(100_100).select(
        F.when(F.col("id") < 100_000, 1).otherwise(F.col("id")).alias("user_key"),
        F.lit(MONDAY * DAY_MICROS).alias("at"),
        F.col("id").alias("key"),
        F.xxhash64(F.lit("r")).alias("request_key"),
        F.lit(2).alias("item_index"),
        F.lit(False).alias("carried"),
        F.lit(0).alias("cell"),
    )
    width = 150_000
    logs = spark.range(3, 100_003).select(
        "id",
        F.lit("r").alias("request_id"),
        F.lit("u").alias("user_id"),
        F.col("id").cast("string").alias("item_id"),
        F.lit("coarse").alias("stage"),
        F.lit(None).cast("int").alias("position"),
        F.lit(True).alias("is_candidate"),
        F.lit("2024-03-04 10:00:00").cast("timestamp").alias("event_time"),
    )
    items = logs.select(key_of("item_id").alias("item_key"), F.col("id").alias("item_index"))
    requests = requests_of(logs, items).withColumn("user_key", F.lit(1).cast("long"))
    histories = spark.createDataFrame([(1, list(range(3, 2003)))], "user_key long, known_items array<int>")
    catalogue = np.arange(2, width)
    table = AliasTable.build(catalogue, np.ones(len(catalogue)))
    shared = SamplingSettings(CONFIG, 17, width, {UNIFORM: table, POPULARITY: table})
    contexts = [context(histories, EXCLUDED, F.col("known_items")), requests]
    out = make_samples(rows.withColumn("user", F.col("user_key")), contexts, ["key", "user"], shared)
    counts = out.select(
        F.count(F.lit(1)).alias("rows"),
        F.sum(F.size(F.filter("negative_kinds", lambda kind: kind == COARSE))).alias("coarse"),
        F.sum(F.when(F.col("user") == 1, F.size(F.filter("negatives", lambda item: (item > 2) & (item < 2003))))).alias(
            "forbidden"
        ),
        F.sum(F.size(F.array_distinct("negatives"))).alias("distinct"),
    ).first()
    assert counts.asDict() == {"rows": 100_100, "coarse": 200_000, "forbidden": 0, "distinct": 7 * 100_100}

"""The stream of contexts and rows: the same negatives wherever batches are cut, and hard ones from the right lists."""

from collections.abc import Iterator
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Negatives
from pipelines.draws import COARSE, FINE, NONE, POPULARITY, UNIFORM, AliasTable
from pipelines.funnel import CHUNK, EXPOSED, NOT_FINE, RANKED, RERANKED, chunks, requests_of
from pipelines.negatives import DROPPED, EXCLUDED, ROW, Setting, draw_negatives, exclusions, with_contexts
from pipelines.negatives import _fill as fill

ITEMS = 200
SCHEMA = pa.schema(
    [
        ("user_key", pa.int64()),
        ("role", pa.int32()),
        ("day", pa.date32()),
        ("request_key", pa.int64()),
        ("chunk", pa.int32()),
        ("values", pa.list_(pa.int64())),
        ("row_key", pa.int64()),
        ("item_index", pa.int32()),
    ]
)
CONFIG = Negatives(uniform=2, popularity=1, coarse=2, fine=2, fine_share=0.5)
MONDAY, TUESDAY = date(2024, 3, 4), date(2024, 3, 5)


def setting(config: Negatives = CONFIG) -> Setting:
    items = np.arange(2, ITEMS)
    table = AliasTable.build(items, np.ones(len(items)))
    return Setting(config, 17, ITEMS, {UNIFORM: table, POPULARITY: table})


def packed(stage: int, *items: int) -> list[int]:
    return [stage << 60 | place << 32 | item for place, item in enumerate(items)]


def stream() -> list[tuple[object, ...]]:
    """Five users in order; user 3 has no rows, user 4 no context, user 5 two requests of one day and one of another."""
    rows: list[tuple[object, ...]] = []
    for user in (-7, 1, 3, 4, 5):
        if user != 4:
            rows.append((user, EXCLUDED, None, None, 0, [50 + user % 5, 60]))
            rows.append((user, EXCLUDED, None, None, 1, [70]))
            first = packed(NOT_FINE, 10, 11, 60) + packed(RERANKED, 20, 21) + packed(RANKED, 22, 23, 70, 24)
            rows.append((user, DROPPED, MONDAY, 100, 0, first[:4]))
            rows.append((user, DROPPED, MONDAY, 100, 1, first[4:]))
        if user == 5:
            rows.append((user, DROPPED, MONDAY, 101, 0, packed(NOT_FINE, 12, 13, 14)))
            rows.append((user, DROPPED, TUESDAY, 102, 0, packed(NOT_FINE, 15)))
        if user != 3:
            for key in range(12):
                request = (100, 101, 102, None)[key % 4] if user == 5 else 100
                day = TUESDAY if request == 102 else MONDAY
                rows.append((user, ROW, day, request, None, None, user * 1000 + key, 90 + key))
    return rows


def batches(size: int) -> Iterator[pa.RecordBatch]:
    rows = [row + (None,) * (len(SCHEMA) - len(row)) for row in stream()]
    for start in range(0, len(rows), size):
        columns = zip(*rows[start : start + size])
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)]
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def drawn(size: int, config: Negatives = CONFIG) -> dict[int, dict[str, list[float]]]:
    shared = setting(config)
    found = {}
    for rows, context, group in with_contexts(batches(size), shared):
        for row in fill(rows, context, group, ["row_key", "item_index"], shared).to_pylist():
            found[row["row_key"]] = row
    return found


WHOLE = drawn(1000)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 40])
def test_batches_may_be_cut_anywhere(size: int) -> None:
    assert drawn(size) == WHOLE


def test_hard_negatives_are_of_the_own_request_and_easy_ones_fill_up() -> None:
    assert len(WHOLE) == 48
    for key, row in WHOLE.items():
        user = -7 if key < 0 else key // 1000
        by_kind = {kind: set() for kind in (UNIFORM, POPULARITY, COARSE, FINE, NONE)}
        for item, kind in zip(row["negatives"], row["negative_kinds"]):
            by_kind[kind].add(item)
        assert not by_kind[NONE]
        assert len(set(row["negatives"])) == 7
        assert not set(row["negatives"]) & ({row["item_index"]} | ({50 + user % 5, 60, 70} if user != 4 else set()))
        if user == 4:
            assert not by_kind[COARSE] | by_kind[FINE]
            assert len(by_kind[POPULARITY]) == 5  # one of its own, four of the hard ones'
        elif user != 5 or key % 4 == 0:
            # The fine list is 20 21 22 23 70 24, its last half 23 70 24; 60 and 70 belong to the user.
            assert by_kind[COARSE] == {10, 11}
            assert by_kind[FINE] == {23, 24}
        elif key % 4 == 1:
            assert by_kind[COARSE] < {12, 13, 14}
            assert by_kind[FINE] == {23, 24}  # of the user's other request that day
        elif key % 4 == 2:
            assert by_kind[COARSE] == {15}  # alone on its day: an easy one takes the other place
            assert not by_kind[FINE]
            assert len(by_kind[POPULARITY]) == 4
        else:  # an event without a request: the day's requests
            assert by_kind[COARSE] < {10, 11, 12, 13, 14}
            assert by_kind[FINE] == {23, 24}


def test_without_a_popularity_quota_uniform_takes_the_places() -> None:
    config = Negatives(uniform=1, popularity=0, coarse=1, fine=1)
    kinds = {kind for key, row in drawn(7, config).items() if key // 1000 == 4 for kind in row["negative_kinds"]}
    assert kinds == {UNIFORM}


def test_a_night_without_hard_quotas_has_none() -> None:
    config = Negatives(uniform=1, popularity=2, coarse=0, fine=0)
    assert all(row["negative_kinds"] == [UNIFORM, POPULARITY, POPULARITY] for row in drawn(7, config).values())


def test_requests_are_packed_by_user_and_request(spark: SparkSession) -> None:
    logs = spark.createDataFrame(
        [
            ("r", "u", "a", "exposed", 1, True),
            ("r", "u", "b", "fine", 7, True),
            ("r", "u", "c", "rerank", 9, True),
            ("r", "u", "d", "fine", None, True),
            ("r", "u", "e", "recall", 3, True),
            ("r", "u", "gone", "recall", 4, True),
            ("r", "v", "a", "coarse", 2, True),
            ("old", "u", "b", "fine", 1, False),
            ("old", "u", "c", "exposed", 2, False),
        ],
        "request_id string, user_id string, item_id string, stage string, position int, own boolean",
    ).withColumn("event_time", F.lit("2024-03-04 10:00:00").cast("timestamp"))
    items = spark.createDataFrame([(c, n) for n, c in enumerate("abcde", 2)], "item_id string, item_index int")
    keys = spark.createDataFrame([("u", "r"), ("v", "r"), ("u", "old")], "user_id string, request_id string")
    named = keys.select("*", F.xxhash64("user_id").alias("user_key"), F.xxhash64("request_id").alias("request_key"))
    found = {
        (row["user_id"], row["request_id"]): row
        for row in requests_of(logs, items).join(named, on=["user_key", "request_key"]).collect()
    }
    mine = found["u", "r"]
    assert mine["exposed"] == [2]
    assert [(value >> 60, value & 0xFFFFFFFF) for value in mine["dropped"]] == [
        (NOT_FINE, 6),
        (RERANKED, 4),
        (RANKED, 3),
        (RANKED, 5),  # without a position: last
    ]
    assert mine["day"] == MONDAY
    assert found["v", "r"]["dropped"] == [NOT_FINE << 60 | 2 << 32 | 2]
    assert (found["u", "old"]["exposed"], found["u", "old"]["dropped"]) == ([4], [])  # its exposures alone count
    assert EXPOSED < NOT_FINE


def test_long_lists_travel_in_pieces(spark: SparkSession) -> None:
    sizes = [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK]
    frame = spark.createDataFrame([(n, list(range(n))) for n in sizes], "n int, items array<long>")
    rows = frame.select("n", chunks(F.col("items"))).orderBy("n", "chunk").collect()
    assert [(row["n"], row["chunk"], len(row["values"])) for row in rows] == [
        (1, 0, 1),
        (CHUNK, 0, CHUNK),
        (CHUNK + 1, 0, CHUNK),
        (CHUNK + 1, 1, 1),
        *[(3 * CHUNK, piece, CHUNK) for piece in range(3)],
    ]
    assert [item for row in rows if row["n"] == CHUNK + 1 for item in row["values"]] == list(range(CHUNK + 1))


def test_a_user_and_a_request_of_any_size_pass(spark: SparkSession) -> None:
    """One user with 100,000 rows and one request of 100,000 dropped items, beside ordinary ones."""
    rows = spark.range(100_100).select(
        F.when(F.col("id") < 100_000, 1).otherwise(F.col("id")).alias("user_key"),
        F.lit(5).cast("long").alias("request_key"),
        F.lit(MONDAY).alias("day"),
        F.col("id").alias("row_key"),
        F.lit(2).alias("item_index"),
    )
    wide = 150_000
    requests = spark.range(1).select(
        F.lit(1).cast("long").alias("user_key"),
        F.lit(5).cast("long").alias("request_key"),
        F.lit(MONDAY).alias("day"),
        F.array().cast("array<long>").alias("exposed"),
        F.transform(
            F.sequence(F.lit(3), F.lit(100_002)), lambda item: F.lit(NOT_FINE << 60).bitwiseOR(item.cast("long"))
        ).alias("dropped"),
    )
    known = spark.createDataFrame([(1, list(range(3, 2003)))], "user_key long, known_items array<int>")
    did = spark.createDataFrame([], "user_key long, item_index int")
    items = np.arange(2, wide)
    table = AliasTable.build(items, np.ones(len(items)))
    shared = Setting(CONFIG, 17, wide, {UNIFORM: table, POPULARITY: table})
    out = draw_negatives(rows, exclusions(known, did, requests), requests, ["row_key", "user_key"], shared)
    found = out.select(
        F.count(F.lit(1)).alias("rows"),
        F.sum(F.size(F.filter("negative_kinds", lambda kind: kind == COARSE))).alias("coarse"),
        F.sum(
            F.when(F.col("user_key") == 1, F.size(F.filter("negatives", lambda item: (item > 2) & (item < 2003))))
        ).alias("forbidden"),
        F.sum(F.size(F.array_distinct("negatives"))).alias("distinct"),
    ).first()
    assert found.asDict() == {"rows": 100_100, "coarse": 200_000, "forbidden": 0, "distinct": 7 * 100_100}

"""The stream of contexts and rows: the same samples wherever batches are cut, and hard negatives from the right lists."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import COARSE, FINE, NONE, POPULARITY, UNIFORM
from pipelines.histories.user_stream import CHUNK, DROPPED, EXCLUDED, PAST, ROW, context, key_of
from pipelines.samples.draws import AliasTable, Forbidden
from pipelines.samples.funnel import (
    COARSE_RANKED,
    DAY_MICROS,
    FINE_RANKED,
    ITEM,
    ITEM_BITS,
    LAST_POSITION,
    PACKED_BITS,
    RECALLED,
    RERANKED,
    STAGE_BITS,
    STAGE_SHIFT,
    Candidates,
    requests_of,
)
from pipelines.samples.make import complete, make_samples
from pipelines.samples.user_context import Setting, with_contexts

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


def setting(config: Negatives = CONFIG) -> Setting:
    items = np.arange(2, ITEMS)
    table = AliasTable.build(items, np.ones(len(items)))
    return Setting(config, 17, ITEMS, {UNIFORM: table, POPULARITY: table}, history=3)


def packed(stage: int, *items: int) -> list[int]:
    return [stage << STAGE_SHIFT | place << ITEM_BITS | item for place, item in enumerate(items)]


def stream() -> list[tuple[object, ...]]:
    """Five users in order; user 3 has no rows, user 4 no context, user 5 two requests of one day and one of another."""
    rows: list[tuple[object, ...]] = []
    for user in (-7, 1, 3, 4, 5):
        if user != 4:
            rows.append((user, EXCLUDED, None, None, [50 + user % 5, 60]))
            rows.append((user, EXCLUDED, None, None, [70]))
            # In pieces, and not in order.
            first = packed(COARSE_RANKED, 10, 11, 60) + packed(RERANKED, 20, 21) + packed(FINE_RANKED, 22, 23, 70, 24)
            rows.append((user, DROPPED, MONDAY, 100, first[5:][::-1]))
            rows.append((user, DROPPED, MONDAY, 100, first[:5]))
        if user == 5:
            rows.append((user, DROPPED, MONDAY, 101, packed(COARSE_RANKED, 12, 13, 14)))
            rows.append((user, DROPPED, TUESDAY, 102, packed(COARSE_RANKED, 15)))
        if user == 1:
            rows.append((user, PAST, None, None, [81, MONDAY * DAY_MICROS - 2, 82, MONDAY * DAY_MICROS - 1]))
        if user != 3:
            # Key 0 was a positive and is no sample; 102 is Tuesday's, so those come last.
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


def drawn(size: int, config: Negatives = CONFIG) -> dict[int, dict[str, list[float]]]:
    shared = setting(config)
    found = {}
    for rows, known, group in with_contexts(batches(size), shared):
        for row in complete(rows, known, group, ["key", "item_index"], shared).to_pylist():
            found[row["key"]] = row
    return found


WHOLE = drawn(1000)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 40])
def test_batches_may_be_cut_anywhere(size: int) -> None:
    assert drawn(size) == WHOLE


def test_rows_that_are_no_samples_are_part_of_histories() -> None:
    assert [WHOLE[1000 + key]["history"] for key in (1, 3, 4)] == [[81, 82, 90], [90, 91, 92], [91, 92, 93]]
    assert WHOLE[4001]["history"] == [0, 0, 90]
    assert 1000 not in WHOLE


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


@pytest.mark.parametrize(
    ("stages", "coarse", "fine"),
    [
        ({}, {10}, {21, 22}),
        ({"coarse_stages": ["recall"]}, {11}, {21, 22}),
        ({"coarse_stages": ["recall", "coarse"]}, {10, 11}, {21, 22}),
        ({"coarse_stages": ["fine"], "fine_stages": ["rerank"]}, {22}, {20, 21}),
        ({"coarse_stages": ["recall"], "fine_stages": ["coarse", "rerank", "fine"]}, {11}, {10, 22}),
    ],
)
def test_each_hard_kind_is_drawn_from_the_stages_that_the_config_names(
    stages: dict[str, list[str]], coarse: set[int], fine: set[int]
) -> None:
    rows = packed(RECALLED, 11) + packed(COARSE_RANKED, 10) + packed(RERANKED, 20, 21) + packed(FINE_RANKED, 22)
    zeros = np.zeros(len(rows), np.int64)
    nothing = Forbidden.build(zeros[:0])
    shares = {"fine_share": 1.0 if stages.get("fine_stages") == ["rerank"] else 0.7}
    config = Negatives.model_validate(stages | shares)
    built = Candidates.build(zeros, zeros, zeros, np.array(rows), nothing, ITEMS, config)
    assert (set(built.items[COARSE].tolist()), set(built.items[FINE].tolist())) == (coarse, fine)


def test_a_request_is_found_on_the_day_of_its_click_then_on_the_day_before_then_after() -> None:
    rows = [
        (MONDAY, 7, packed(COARSE_RANKED, 10)),
        (MONDAY, 8, packed(COARSE_RANKED, 11)),
        (TUESDAY, 8, packed(COARSE_RANKED, 12)),
        (TUESDAY, 9, packed(COARSE_RANKED, 13)),
        (TUESDAY + 1, 6, packed(COARSE_RANKED, 14)),
        (TUESDAY + 2, 7, packed(COARSE_RANKED, 15)),
    ]
    days, keys, items = (np.array(column).ravel() for column in zip(*rows))
    group = np.zeros(len(rows), np.int64)
    built = Candidates.build(group, days, keys, items, Forbidden.build(group[:0]), ITEMS, CONFIG)
    asked = np.array([7, 8, 9, 6, 5])  # of clicks on Tuesday
    own, wide = built.lists(COARSE, np.zeros(5, np.int64), np.full(5, TUESDAY), asked)
    found = [own.items[start:stop].tolist() for start, stop in zip(own.start_N, own.stop_N)]
    assert found == [[10], [12], [13], [14], []]
    assert {tuple(wide.items[start:stop]) for start, stop in zip(wide.start_N, wide.stop_N)} == {(12, 13)}


def test_without_a_popularity_quota_uniform_takes_the_places() -> None:
    config = Negatives(uniform=1, popularity=0, coarse=1, fine=1)
    kinds = {kind for key, row in drawn(7, config).items() if key // 1000 == 4 for kind in row["negative_kinds"]}
    assert kinds == {UNIFORM}


def test_a_night_without_hard_quotas_has_none() -> None:
    config = Negatives(uniform=1, popularity=2, coarse=0, fine=0)
    assert all(row["negative_kinds"] == [UNIFORM, POPULARITY, POPULARITY] for row in drawn(7, config).values())


LOGS = "request_id string, user_id string, item_id string, stage string, position int, own boolean"


@pytest.mark.any_joins  # How far rows are packed saves time where items are broadcast; no row depends on it.
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
        LOGS,
    ).withColumn("event_time", F.lit("2024-03-04 10:00:00").cast("timestamp"))
    items = spark.createDataFrame([(c, n) for n, c in enumerate("abcde", 2)], "item_id string, item_index int")
    items = items.select(key_of("item_id").alias("item_key"), "item_index")
    keys = spark.createDataFrame([("u",), ("v",)], "user_id string").select(
        "*", F.xxhash64("user_id").alias("user_key")
    )
    request = spark.range(1).select(F.xxhash64(F.lit("r"))).first()[0]
    rows = requests_of(logs, items).join(keys, on="user_key").collect()
    shown = sorted((row["user_id"], row["at"], row["values"]) for row in rows if row["role"] == EXCLUDED)
    assert shown == [("u", None, [2]), ("u", None, [4])]  # of the old request its exposures alone
    dropped = {row["user_id"]: row for row in rows if row["role"] == DROPPED}
    assert len(rows) == len(shown) + len(dropped)
    assert {(row["at"], row["key"]) for row in dropped.values()} == {(MONDAY, request)}
    assert [(value >> STAGE_SHIFT, value & ITEM) for value in sorted(dropped["u"]["values"])] == [
        (RERANKED, 4),
        (FINE_RANKED, 3),
        (FINE_RANKED, 5),  # without a position: last
        (RECALLED, 6),
    ]
    assert dropped["v"]["values"] == [COARSE_RANKED << STAGE_SHIFT | 2 << ITEM_BITS | 2]
    assert max(row["values"][0] for row in rows) < 2**PACKED_BITS
    assert LAST_POSITION < 2 ** (PACKED_BITS - STAGE_BITS - ITEM_BITS)


@pytest.mark.any_joins  # How far rows are packed saves time where items are broadcast; no row depends on it.
def test_requests_that_lie_scattered_are_gathered(spark: SparkSession) -> None:
    """Rows of 100 requests of 7 users, in the order of the items: none beside another of its request."""
    logs = spark.range(0, 5000, 1, 2).select(
        F.concat(F.lit("r"), F.col("id") % 100).alias("request_id"),
        F.concat(F.lit("u"), F.col("id") % 100 % 7).alias("user_id"),
        F.concat(F.lit("i"), F.floor(F.col("id") / 100)).alias("item_id"),
        F.when(F.col("id") < 500, "exposed").otherwise("coarse").alias("stage"),
        F.lit(None).cast("int").alias("position"),
        F.lit(True).alias("own"),
        F.lit("2024-03-04 10:00:00").cast("timestamp").alias("event_time"),
    )
    items = spark.range(50).select(
        F.xxhash64(F.concat(F.lit("i"), "id")).alias("item_key"), (F.col("id") + 2).cast("int").alias("item_index")
    )
    rows = requests_of(logs, items).collect()
    assert len(rows) < 400  # two tasks, each with every request, shown and dropped
    found: dict[int, list[int]] = {}
    for row in rows:
        if row["role"] == DROPPED:
            found.setdefault(row["key"], []).extend(value & ITEM for value in row["values"])
    assert len(found) == 100
    assert all(sorted(items) == list(range(7, 52)) for items in found.values())


def test_long_lists_travel_in_pieces(spark: SparkSession) -> None:
    sizes = [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK]
    frame = spark.createDataFrame([(n, list(range(n))) for n in sizes], "user_key int, items array<long>")
    rows = context(frame, EXCLUDED, F.col("items")).collect()
    pieces = sorted((row["user_key"], row["values"]) for row in rows)
    assert [(user, len(values)) for user, values in pieces] == [
        (1, 1),
        (CHUNK, CHUNK),
        (CHUNK + 1, CHUNK),
        (CHUNK + 1, 1),
        *[(3 * CHUNK, CHUNK) for _ in range(3)],
    ]
    assert [item for user, values in pieces if user == CHUNK + 1 for item in values] == list(range(CHUNK + 1))


def test_a_user_and_a_request_of_any_size_pass(spark: SparkSession) -> None:
    """One user with 100,000 rows and one request of 100,000 dropped items, beside ordinary ones."""
    rows = spark.range(100_100).select(
        F.when(F.col("id") < 100_000, 1).otherwise(F.col("id")).alias("user_key"),
        F.lit(MONDAY * DAY_MICROS).alias("at"),
        F.col("id").alias("key"),
        F.xxhash64(F.lit("r")).alias("request_key"),
        F.lit(2).alias("item_index"),
        F.lit(False).alias("carried"),
        F.lit(0).alias("cell"),
    )
    wide = 150_000
    logs = spark.range(3, 100_003).select(
        "id",
        F.lit("r").alias("request_id"),
        F.lit("u").alias("user_id"),
        F.col("id").cast("string").alias("item_id"),
        F.lit("coarse").alias("stage"),
        F.lit(None).cast("int").alias("position"),
        F.lit(True).alias("own"),
        F.lit("2024-03-04 10:00:00").cast("timestamp").alias("event_time"),
    )
    items = logs.select(key_of("item_id").alias("item_key"), F.col("id").alias("item_index"))
    requests = requests_of(logs, items).withColumn("user_key", F.lit(1).cast("long"))
    known = spark.createDataFrame([(1, list(range(3, 2003)))], "user_key long, known_items array<int>")
    corpus = np.arange(2, wide)
    table = AliasTable.build(corpus, np.ones(len(corpus)))
    shared = Setting(CONFIG, 17, wide, {UNIFORM: table, POPULARITY: table})
    contexts = [context(known, EXCLUDED, F.col("known_items")), requests]
    out = make_samples(rows.withColumn("user", F.col("user_key")), contexts, ["key", "user"], shared)
    found = out.select(
        F.count(F.lit(1)).alias("rows"),
        F.sum(F.size(F.filter("negative_kinds", lambda kind: kind == COARSE))).alias("coarse"),
        F.sum(F.when(F.col("user") == 1, F.size(F.filter("negatives", lambda item: (item > 2) & (item < 2003))))).alias(
            "forbidden"
        ),
        F.sum(F.size(F.array_distinct("negatives"))).alias("distinct"),
    ).first()
    assert found.asDict() == {"rows": 100_100, "coarse": 200_000, "forbidden": 0, "distinct": 7 * 100_100}

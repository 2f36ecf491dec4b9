"""Hard candidates: ranking logs are packed by request, and each row gets the candidates of its own request first."""

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import COARSE, FINE
from pipelines.histories.user_stream import DROPPED, EXCLUDED, key_of
from pipelines.samples.draws import Forbidden
from pipelines.samples.funnel import (
    COARSE_RANKED,
    FINE_RANKED,
    ITEM,
    ITEM_BITS,
    LAST_POSITION,
    PACKED_BITS,
    RECALLED,
    RERANKED,
    STAGE_BITS,
    STAGE_SHIFT,
    FunnelCandidates,
    requests_of,
)

pytestmark = pytest.mark.joins

ITEMS = 200
MONDAY, TUESDAY = 19786, 19787  # 2024-03-04 and the day after, in days since 1970


def packed(stage: int, *items: int) -> list[int]:
    return [stage << STAGE_SHIFT | place << ITEM_BITS | item for place, item in enumerate(items)]


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
def test_each_hard_kind_comes_from_its_configured_stages(
    stages: dict[str, list[str]], coarse: set[int], fine: set[int]
) -> None:
    rows = packed(RECALLED, 11) + packed(COARSE_RANKED, 10) + packed(RERANKED, 20, 21) + packed(FINE_RANKED, 22)
    zeros = np.zeros(len(rows), np.int64)
    no_pairs = Forbidden.build(zeros[:0])
    shares = {"fine_share": 1.0 if stages.get("fine_stages") == ["rerank"] else 0.7}
    config = Negatives.model_validate(stages | shares)
    built = FunnelCandidates.build(zeros, zeros, zeros, np.array(rows), no_pairs, ITEMS, config)
    assert (set(built.items[COARSE].tolist()), set(built.items[FINE].tolist())) == (coarse, fine)


def test_a_request_is_looked_up_on_the_day_of_the_click_then_the_day_before_then_the_day_after() -> None:
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
    built = FunnelCandidates.build(group, days, keys, items, Forbidden.build(group[:0]), ITEMS, Negatives())
    requests = np.array([7, 8, 9, 6, 5])  # of clicks on Tuesday
    own, wide = built.lists(COARSE, np.zeros(5, np.int64), np.full(5, TUESDAY), requests)
    own_lists = [own.items[start:stop].tolist() for start, stop in zip(own.start_N, own.stop_N)]
    assert own_lists == [[10], [12], [13], [14], []]
    assert {tuple(wide.items[start:stop]) for start, stop in zip(wide.start_N, wide.stop_N)} == {(12, 13)}


LOGS = "request_id string, user_id string, item_id string, stage string, position int, is_candidate boolean"


@pytest.mark.any_joins  # Broadcast items only decide how tightly rows are packed. The rows are the same.
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
    assert shown == [("u", None, [2]), ("u", None, [4])]  # of the old request only what was shown
    dropped = {row["user_id"]: row for row in rows if row["role"] == DROPPED}
    assert len(rows) == len(shown) + len(dropped)
    assert {(row["at"], row["key"]) for row in dropped.values()} == {(MONDAY, request)}
    assert [(value >> STAGE_SHIFT, value & ITEM) for value in sorted(dropped["u"]["values"])] == [
        (RERANKED, 4),
        (FINE_RANKED, 3),
        (FINE_RANKED, 5),  # no position: last
        (RECALLED, 6),
    ]
    assert dropped["v"]["values"] == [COARSE_RANKED << STAGE_SHIFT | 2 << ITEM_BITS | 2]
    assert max(row["values"][0] for row in rows) < 2**PACKED_BITS
    assert LAST_POSITION < 2 ** (PACKED_BITS - STAGE_BITS - ITEM_BITS)


@pytest.mark.any_joins  # Broadcast items only decide how tightly rows are packed. The rows are the same.
def test_rows_of_a_request_that_are_scattered_are_grouped(spark: SparkSession) -> None:
    """Rows of 100 requests of 7 users in the order of items, so that no two rows of a request are neighbours."""
    logs = spark.range(0, 5000, 1, 2).select(
        F.concat(F.lit("r"), F.col("id") % 100).alias("request_id"),
        F.concat(F.lit("u"), F.col("id") % 100 % 7).alias("user_id"),
        F.concat(F.lit("i"), F.floor(F.col("id") / 100)).alias("item_id"),
        F.when(F.col("id") < 500, "exposed").otherwise("coarse").alias("stage"),
        F.lit(None).cast("int").alias("position"),
        F.lit(True).alias("is_candidate"),
        F.lit("2024-03-04 10:00:00").cast("timestamp").alias("event_time"),
    )
    items = spark.range(50).select(
        F.xxhash64(F.concat(F.lit("i"), "id")).alias("item_key"), (F.col("id") + 2).cast("int").alias("item_index")
    )
    rows = requests_of(logs, items).collect()
    assert len(rows) < 400  # two tasks; each sees every request, with shown and dropped items
    dropped: dict[int, list[int]] = {}
    for row in rows:
        if row["role"] == DROPPED:
            dropped.setdefault(row["key"], []).extend(value & ITEM for value in row["values"])
    assert len(dropped) == 100
    assert all(sorted(items) == list(range(7, 52)) for items in dropped.values())

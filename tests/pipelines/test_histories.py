"""Histories are cut from a stream of batches: whatever the batches, every row sees what a loop over all rows would see."""

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from pipelines import histories, streams

Row = dict[str, Any]


def stream(seed: int, users: int = 12) -> list[Row]:
    """Sorted rows with ties in time, of users with one row and of users with many; some have a past."""
    draw = random.Random(seed)
    rows = []
    for user in range(users):
        number = draw.choice([1, 2, 5, 40])
        times = sorted(1000 + draw.randrange(max(2, number // 2)) for _ in range(number))
        past = [900 + draw.randrange(50) for _ in range(draw.choice([0, 0, 2, 7]))]
        for place, time in enumerate(times):
            rows.append(
                {
                    "user_id": f"u{user:02d}",
                    "event_time": time,
                    "row_key": place,
                    "item_index": draw.randrange(2, 30),
                    "kept": draw.random() < 0.7,
                    "past": past if place == 0 and past else None,
                    "past_until": 500 + user if place == 0 and past else None,
                    "pair": draw.randrange(-(2**62), 2**62),
                }
            )
    for row in rows:  # a pair of user and item has one hash
        row["pair"] = hash((row["user_id"], row["item_index"]))
    return rows


def batches(rows: list[Row], size: int) -> Iterator[pa.RecordBatch]:
    time = pa.timestamp("us", tz="UTC")
    kinds = {"event_time": time, "past_until": time, "past": pa.list_(pa.int32()), "item_index": pa.int32()}
    fields = [(name, kinds.get(name, pa.array([row[name] for row in rows]).type)) for name in rows[0]]
    for start in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(rows[start : start + size], schema=pa.schema(fields))
        yield pa.RecordBatch.from_pylist([], schema=pa.schema(fields))  # an empty one changes nothing


def micros(values: Any) -> Any:
    zero = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return None if values is None else (values - zero) // timedelta(microseconds=1)


@pytest.mark.parametrize(("seed", "size"), [(0, 1), (1, 3), (2, 16), (3, 1000)])
def test_a_history_is_the_last_items_before_the_instant(seed: int, size: int) -> None:
    rows, length = stream(seed), 5
    found = [
        row for b in streams.cut_histories(batches(rows, size), length, ["user_id", "row_key"]) for row in b.to_pylist()
    ]
    expected = []
    for row in rows:
        own = [other for other in rows if other["user_id"] == row["user_id"]]
        before = [(own[0]["past_until"], item) for item in own[0]["past"] or []]
        before += [
            (other["event_time"], other["item_index"]) for other in own if other["event_time"] < row["event_time"]
        ]
        history = [item for _, item in before[-length:]]
        until = before[-1][0] if before else None
        if row["kept"]:
            padded = [0] * (length - len(history)) + history
            expected.append({"user_id": row["user_id"], "row_key": row["row_key"], "history": padded, "until": until})
    assert [
        {**{k: v for k, v in row.items() if k != "history_until"}, "until": micros(row["history_until"])}
        for row in found
    ] == expected
    assert any(row["history"][0] for row in expected)


@pytest.mark.parametrize(("seed", "size"), [(0, 1), (1, 3), (2, 16), (3, 1000)])
def test_the_state_of_a_day_is_the_last_events_and_the_last_distinct_items(seed: int, size: int) -> None:
    rows, length, known = stream(seed), 5, 7
    found = [row for b in streams.last_rows(batches(rows, size), length, known) for row in b.to_pylist()]
    by_user = defaultdict(list)
    for row in rows:
        by_user[row["user_id"]].append(row)
    assert [row["user_id"] for row in found] == list(by_user)
    for row, own in zip(found, by_user.values()):
        assert row["items_today"] == [other["item_index"] for other in own][-length:]
        assert [micros(time) for time in row["times_today"]] == [other["event_time"] for other in own][-length:]
        touches = {other["item_index"]: (other["event_time"], other["pair"]) for other in own}  # the last one wins
        assert row["known_today"] == sorted(touches, key=touches.__getitem__)[-known:]


def test_leave_one_out_gives_the_other_positives_whatever_their_order(spark: SparkSession) -> None:
    noon = datetime(2024, 3, 1, 12)
    events = [(user, item, noon, True, True) for user, item in [("a", 2), ("a", 5), ("a", 9), ("b", 2), ("c", 3)]]
    events.append(("a", 4, noon, False, False))
    frame = spark.createDataFrame(
        events, "user_id string, item_index int, event_time timestamp, kept boolean, first boolean"
    )
    frame = frame.withColumn("user_key", histories.user_key())
    state = spark.createDataFrame([("a", [9, 3, 2, 4, 5]), ("b", [2])], "user_id string, known_items array<int>")
    rows = histories.leave_one_out(frame, state, 3).collect()
    # One more than three are looked at, the newest first: 3 and 9 are too old wherever the row's own is not among them.
    assert {(row["user_id"], row["item_index"]): row["history"] for row in rows} == {
        ("a", 2): [3, 4, 5],
        ("a", 5): [3, 2, 4],
        ("a", 9): [2, 4, 5],
        ("b", 2): [0, 0, 0],
        ("c", 3): [0, 0, 0],
    }
    assert all(row["history_until"] is None for row in rows)

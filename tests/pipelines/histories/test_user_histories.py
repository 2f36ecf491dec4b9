"""Histories from a stream of batches equal those of a loop over all rows, however the rows are cut into batches."""

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config import Negatives
from pipelines.histories import history_arrays
from pipelines.histories.user_stream import PAST, ROW
from pipelines.samples.funnel import DAY_MICROS
from pipelines.samples.user_context import SamplingSettings, with_contexts

Row = dict[str, Any]


def stream(seed: int, users: int = 12) -> list[Row]:
    """Sorted rows with ties in time, of users with one row and of users with many. Some users have a past."""
    rng = random.Random(seed)
    rows = []
    for user in range(users):
        number = rng.choice([1, 2, 5, 40])
        times = sorted(1000 + rng.randrange(max(2, number // 2)) for _ in range(number))
        past = [900 + rng.randrange(50) for _ in range(rng.choice([0, 0, 2, 7]))]
        for place, time in enumerate(times):
            item = rng.randrange(2, 30)
            rows.append(
                {
                    "user_id": f"u{user:02d}",
                    "event_time": time,
                    "row_key": place,
                    "number": place + 1,
                    "item_index": item,
                    "action_index": action_of(user, item, time),
                    "past": past if place == 0 else None,
                    "pair": hash((user, item)),  # the hash of user and item
                }
            )
    return rows


def action_of(user: int, item: int, time: int) -> int:
    return 1 + (user + item + time) % 5


def batches(rows: list[Row], size: int) -> Iterator[pa.RecordBatch]:
    kinds = {"event_time": pa.timestamp("us", tz="UTC"), "past": pa.list_(pa.int32()), "item_index": pa.int32()}
    fields = [(name, kinds.get(name, pa.array([row[name] for row in rows]).type)) for name in rows[0]]
    return cut(rows, pa.schema(fields), size)


def cut(rows: list[Row], schema: pa.Schema, size: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(rows[start : start + size], schema=schema)
        yield pa.RecordBatch.from_pylist([], schema=schema)  # an empty batch must not change the result


def histories_of(rows: list[Row], size: int, settings: SamplingSettings) -> Iterator[tuple[int, int, list[int], Any]]:
    """(user, row key, history, until) of each row, computed from the stream. Instead of `until` what the settings want."""
    stream_rows: list[Row] = []
    for row in rows:
        user = int(row["user_id"][1:])
        past = row["past"] or []
        times = row.get("past_times") or [500 + user] * len(past)
        for start in range(0, len(past), 3):  # a past may be split into several rows
            values = past[start : start + 3]
            if not settings.leave_one_out:
                columns = [values, times[start : start + 3]]
                if settings.actions:
                    columns.append([action_of(user, item, time) for item, time in zip(*columns)])
                values = [number for event in zip(*columns) for number in event]
            stream_rows.append({"user_key": user, "role": PAST, "values": values})
        own = {"at": row["event_time"], "key": row["row_key"], "item_index": row["item_index"]}
        own |= {"carried": row.get("carried", False), "cut": row.get("cut", row["event_time"])}
        own |= {"action_index": row.get("action_index")}
        stream_rows.append({"user_key": user, "role": ROW, **own})
    kinds = {"role": pa.int32(), "values": pa.list_(pa.int64()), "item_index": pa.int32(), "carried": pa.bool_()}
    names = ("user_key", "role", "at", "key", "values", "item_index", "action_index", "carried", "cut")
    schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in names])
    for table, context, group in with_contexts(cut(stream_rows, schema, size), settings):
        items, cuts = (table.column(name).to_numpy() for name in ("item_index", "cut"))
        histories = context.histories(group, items, cuts, settings)
        users, keys = table.column("user_key").to_pylist(), table.column("key").to_pylist()
        if settings.counts_past:
            assert histories.past_N is not None
            yield from zip(users, keys, histories.items_NL.tolist(), histories.past_N.tolist())
        elif histories.actions_NL is not None:
            yield from zip(users, keys, histories.items_NL.tolist(), histories.actions_NL.tolist())
        elif histories.ages_NL is None:
            yield from zip(users, keys, histories.items_NL.tolist(), histories.until_N.tolist())
        else:
            yield from zip(users, keys, histories.ages_NL.tolist(), histories.until_N.tolist())


def micros(values: Any) -> Any:
    zero = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return (values - zero) // timedelta(microseconds=1)


CUTS = [(0, 1), (1, 3), (2, 16), (3, 1000)]


@pytest.mark.parametrize(("seed", "size"), CUTS)
def test_a_history_is_the_last_items_strictly_before_the_event(seed: int, size: int) -> None:
    rows, length = stream(seed), 5
    histories = list(histories_of(rows, size, SamplingSettings(Negatives(), 17, 1000, {}, history_length=length)))
    expected = []
    for row in rows:
        own = [other for other in rows if other["user_id"] == row["user_id"]]
        user = int(row["user_id"][1:])
        before = [(500 + user, item) for item in own[0]["past"] or []]
        before += [
            (other["event_time"], other["item_index"]) for other in own if other["event_time"] < row["event_time"]
        ]
        history = [item for _, item in before[-length:]]
        padded = [0] * (length - len(history)) + history
        expected.append((user, row["row_key"], padded, before[-1][0] if before else -1))
    assert histories == expected
    assert any(history[0] for _, _, history, _ in histories)


@pytest.mark.parametrize(("seed", "size"), CUTS)
def test_the_actions_of_a_history_are_those_of_its_events(seed: int, size: int) -> None:
    rows, length = stream(seed), 5
    settings = SamplingSettings(Negatives(), 17, 1000, {}, history_length=length, actions=True)
    rng, some = random.Random(seed), 0
    for row in rows:
        row["carried"] = rng.random() < 0.3
    for (user, _, items, actions), row in zip(histories_of(rows, size, settings), rows, strict=True):
        own = [other for other in rows if other["user_id"] == row["user_id"]]
        events = [(500 + user, item) for item in own[0]["past"] or []]
        events += [(other["event_time"], other["item_index"]) for other in own if not other["carried"]]
        before = [(item, action_of(user, item, time)) for time, item in events if time < row["event_time"]][-length:]
        assert list(zip(items, actions)) == [(0, 0)] * (length - len(before)) + before
        some += len(set(actions)) > 2
    assert some


def last_before(rows: list[Row], row: Row, cut: int, length: int) -> tuple[list[int], int]:
    """The history of a row that ends before `cut`, and the time of its newest item, by a loop over all rows."""
    own = [other for other in rows if other["user_id"] == row["user_id"]]
    before = [(500 + int(row["user_id"][1:]), item) for item in own[0]["past"] or []]
    before += [(other["event_time"], other["item_index"]) for other in own]
    before = [(time, item) for time, item in before if time < cut]
    history = [item for _, item in before[-length:]]
    return [0] * (length - len(history)) + history, before[-1][0] if before else -1


@pytest.mark.parametrize(("seed", "size"), CUTS)
def test_with_order_ahead_a_history_ends_before_the_cut_of_its_row(seed: int, size: int) -> None:
    rng, ahead, length = random.Random(seed), 9, 3
    rows = [row | {"cut": row["event_time"] - rng.randrange(ahead)} for row in stream(seed)]
    settings = SamplingSettings(Negatives(), 17, 1000, {}, length, ahead_days=ahead / DAY_MICROS)
    assert settings.ahead_micros >= ahead
    histories = list(histories_of(rows, size, settings))
    expected = [last_before(rows, row, row["cut"], length) for row in rows]
    assert [(history, until) for _, _, history, until in histories] == expected
    assert any(row["cut"] < row["event_time"] for row in rows)
    assert all(until < row["cut"] for (_, until), row in zip(expected, rows))


@pytest.mark.parametrize("ahead", [0, 9])
@pytest.mark.parametrize(("seed", "size"), CUTS)
def test_the_number_of_past_positives_does_not_depend_on_batches(seed: int, size: int, ahead: int) -> None:
    rng, length = random.Random(seed), 3
    rows = [row | {"cut": row["event_time"] - rng.randrange(ahead + 1)} for row in stream(seed)]
    ahead_days = ahead / DAY_MICROS if ahead else None
    settings = SamplingSettings(Negatives(), 17, 1000, {}, length, ahead_days=ahead_days, counts_past=True)
    past = [past for _, _, _, past in histories_of(rows, size, settings)]
    firsts = {row["user_id"]: row["past"] or [] for row in reversed(rows)}
    expected = [
        len(firsts[row["user_id"]])
        + sum(other["user_id"] == row["user_id"] and other["event_time"] < row["cut"] for other in rows)
        for row in rows
    ]
    assert past == expected
    assert max(past) > 4 * length


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_ages_are_the_whole_seconds_from_each_item_to_the_cut(size: int) -> None:
    seconds = history_arrays.SECOND
    # Two past events; the second is half a second into its second, and one lies further back than int32 can count.
    past = {"past": [5, 6], "past_times": [-(2**40) * seconds, 20 * seconds + seconds // 2]}
    rows: list[Row] = [
        {"user_id": "u01", "event_time": 25 * seconds, "row_key": 1, "item_index": 7, **past},
        {"user_id": "u01", "event_time": 30 * seconds, "row_key": 2, "item_index": 8, "past": None},
        {"user_id": "u02", "event_time": 30 * seconds, "row_key": 3, "item_index": 8, "past": None},
    ]
    settings = SamplingSettings(Negatives(), 17, 1000, {}, history_length=4, ages=True)
    ages = [ages for _, _, ages, _ in histories_of(rows, size, settings)]
    assert ages == [[0, 0, 2**31 - 1, 5], [0, 2**31 - 1, 10, 5], [0, 0, 0, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_carried_row_sees_only_its_past_and_counts_once(size: int) -> None:
    # User u01 has four past events, of which two are also carried rows, and three events of tonight, two at one instant.
    past = {"past": [5, 6, 7, 8], "past_times": [10, 20, 30, 30]}
    rows: list[Row] = [
        {"user_id": "u01", "event_time": 20, "row_key": 1, "item_index": 6, "carried": True, **past},
        {"user_id": "u01", "event_time": 30, "row_key": 2, "item_index": 7, "carried": True, "past": None},
        {"user_id": "u01", "event_time": 40, "row_key": 3, "item_index": 9, "past": None},
        {"user_id": "u01", "event_time": 40, "row_key": 4, "item_index": 6, "past": None},
        {"user_id": "u01", "event_time": 50, "row_key": 5, "item_index": 5, "past": None},
        {"user_id": "u02", "event_time": 30, "row_key": 6, "item_index": 5, "carried": True, "past": None},
    ]
    histories = {
        key: (history, until)
        for _, key, history, until in histories_of(
            rows, size, SamplingSettings(Negatives(), 17, 1000, {}, history_length=4)
        )
    }
    assert histories == {
        1: ([0, 0, 0, 5], 10),
        2: ([0, 0, 5, 6], 20),
        3: ([5, 6, 7, 8], 30),
        4: ([5, 6, 7, 8], 30),
        5: ([7, 8, 9, 6], 40),
        6: ([0, 0, 0, 0], -1),
    }


@pytest.mark.parametrize(("seed", "size"), CUTS)
def test_leave_one_out_gives_the_last_other_positives_in_any_order(seed: int, size: int) -> None:
    length = 3
    # Pools of up to length + 1 items, the newest last. The oldest of four counts only if the row's own item is in the pool.
    pools = {0: [9, 4, 5, 2], 1: [2], 2: [], 3: [8, 7, 6, 5]}
    rows = []
    for user, pool in pools.items():
        for place, item in enumerate((2, 5, 9, 3) * (seed + 1)):
            row = {"user_id": f"u{user:02d}", "event_time": 1000 + place, "row_key": place, "item_index": item}
            rows.append(row | {"past": pool if place == 0 else None})
    settings = SamplingSettings(Negatives(), 17, 1000, {}, history_length=length, leave_one_out=True)
    histories = list(histories_of(rows, size, settings))
    assert len(histories) == len(rows)
    for (user, _, history, until), row in zip(histories, rows):
        others = [item for item in pools[user] if item != row["item_index"]][-length:]
        assert history == [0] * (length - len(others)) + others
        assert until == -1


@pytest.mark.parametrize(("seed", "size"), CUTS)
def test_the_state_of_a_day_is_the_last_events_and_the_last_distinct_items(seed: int, size: int) -> None:
    rows, length, known = stream(seed), 5, 7
    with_actions, states = (
        [
            row
            for batch in history_arrays.last_rows(batches(rows, size), length, known, actions=actions)
            for row in batch.to_pylist()
        ]
        for actions in (True, False)
    )
    actions_today = [row.pop("actions_today") for row in with_actions]
    assert with_actions == states
    by_user = defaultdict(list)
    for row in rows:
        by_user[row["user_id"]].append(row)
    assert [row["user_id"] for row in states] == list(by_user)
    for row, own, actions in zip(states, by_user.values(), actions_today, strict=True):
        assert actions == [other["action_index"] for other in own][-length:]
        assert row["items_today"] == [other["item_index"] for other in own][-length:]
        assert [micros(time) for time in row["times_today"]] == [other["event_time"] for other in own][-length:]
        touches = {other["item_index"]: (other["event_time"], other["pair"]) for other in own}  # the last one wins
        assert row["known_today"] == sorted(touches, key=touches.__getitem__)[-known:]


def test_rows_out_of_order_are_refused() -> None:
    rows = stream(3)
    place = next(n for n, row in enumerate(rows) if row["number"] > 1)
    rows[place - 1], rows[place] = rows[place], rows[place - 1]
    with pytest.raises(AssertionError, match="please report this"):
        list(history_arrays.last_rows(batches(rows, 16), 5, 7))

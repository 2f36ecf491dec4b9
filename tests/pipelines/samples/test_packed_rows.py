"""Packed rows from ordered rows: where rows are cut, what each positive sees, and that batches do not matter."""

import random
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa
import pytest

from pipelines.samples import packing
from pipelines.samples.packing import packed_batches

LENGTH, NEGATIVES = 4, 2
FIELDS = {
    "row_key": pa.int64(),
    "event_time": pa.timestamp("us", tz="UTC"),
    "user_id": pa.string(),
    "item_id": pa.string(),
    "user_age": pa.int32(),
    "item_index": pa.int32(),
    "weight": pa.float32(),
    "history": pa.list_(pa.int32()),
    "history_until": pa.timestamp("us", tz="UTC"),
    "negatives": pa.list_(pa.int32()),
    "history_ages": pa.list_(pa.int32()),
    "context_hour": pa.int32(),
    "split": pa.string(),
    "group": pa.string(),
    "past": pa.int64(),
    "_user": pa.int64(),
    "_block": pa.int64(),
    "_cut": pa.int64(),
}
COLUMNS = [name for name in FIELDS if name not in ("past", "_user", "_block", "_cut")] + ["history_seen", "request_lag"]
Row = dict[str, Any]


def block(past: int) -> int:
    return 0 if past <= LENGTH else 1 + (past - LENGTH - 1) // max(1, LENGTH // 2)


def ordered_rows(seed: int) -> list[Row]:
    """Rows in the order that packing reads. A user's past positive number n is item n, at second n."""
    rng = random.Random(seed)
    rows = []
    for user in range(30):
        past = rng.choice([0, 0, 3, 10])
        for place in range(rng.choice([1, 1, 2, 7, 30])):
            # Some positives share their instant, and so their past.
            past += rng.choice([0, 1, 1, 1])
            seen = list(range(max(1, past - LENGTH + 1), past + 1))
            padding = [0] * (LENGTH - len(seen))
            age = 1 if past > 8 else 0
            rows.append(
                {
                    "row_key": user * 100 + place,
                    "event_time": (past + 1) * 1_000_000 + 5,
                    "user_id": f"u{user}",
                    "item_id": f"i{place}",
                    "user_age": age,
                    "item_index": place + 2,
                    "weight": 0.5,
                    "history": padding + seen,
                    "history_until": past * 1_000_000 if past else None,
                    "negatives": [place * 10 + 1, place * 10 + 2],
                    "history_ages": padding + [past + 1 - item for item in seen],
                    "context_hour": place % 24,
                    "split": "train" if user % 3 else "valid",
                    "group": f"{user % 2}",
                    "past": past,
                    "_user": user * 2 + age,
                    "_block": block(past),
                    "_cut": (past + 1) * 1_000_000 + 3,
                }
            )
    order = ("split", "group", "_user", "_block", "_cut", "event_time", "row_key")
    return sorted(rows, key=lambda row: [row[name] for name in order])


def batches(rows: list[Row], size: int) -> Iterator[pa.RecordBatch]:
    schema = pa.schema(list(FIELDS.items()))
    for start in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(rows[start : start + size], schema=schema)
        yield pa.RecordBatch.from_pylist([], schema=schema)


def packed(rows: list[Row], pack: int, size: int = 1000) -> list[Row]:
    return [row for batch in packed_batches(batches(rows, size), COLUMNS, pack, LENGTH) for row in batch.to_pylist()]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("pack", [1, 3, 8])
def test_packed_rows_do_not_depend_on_batches(pack: int, size: int) -> None:
    rows = ordered_rows(1)
    assert packed(rows, pack, size) == packed(rows, pack)


def test_packed_rows_do_not_depend_on_the_size_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ordered_rows(1)
    whole = packed(rows, 3)
    monkeypatch.setattr(packing, "PLACES_PER_PIECE", 7)
    assert packed(rows, 3) == whole


@pytest.mark.parametrize("pack", [1, 2, 3, 8])
def test_a_row_has_one_user_split_and_block_and_at_most_t_positives(pack: int) -> None:
    rows = ordered_rows(2)
    runs = groupby(rows, key=lambda row: (row["split"], row["group"], row["_user"], row["_block"]))
    expected = []
    for _, run in runs:
        keys = [row["row_key"] for row in run]
        expected += [keys[start : start + pack] for start in range(0, len(keys), pack)]
    out = packed(rows, pack)
    assert [row["row_key"] for row in out] == expected
    by_key = {row["row_key"]: row for row in rows}
    for row in out:
        for key in row["row_key"]:
            assert all(row[name] == by_key[key][name] for name in ("user_id", "user_age", "split", "group"))
    assert max(len(keys) for keys in expected) == pack


@pytest.mark.parametrize("pack", [1, 3, 8])
def test_each_positive_sees_the_items_before_its_cut_and_keeps_its_own_columns(pack: int) -> None:
    rows = {row["row_key"]: row for row in ordered_rows(3)}
    shortened = 0
    for row in packed(list(rows.values()), pack):
        items = [item for item in row["history"] if item]
        for place, key in enumerate(row["row_key"]):
            own = rows[key]
            whole = [item for item in own["history"] if item]
            seen = items[: row["history_seen"][place]]
            assert seen == whole[len(whole) - len(seen) :]
            assert len(seen) == len(whole) if own["past"] <= LENGTH or pack == 1 else len(seen) >= LENGTH - LENGTH // 2
            shortened += len(seen) < len(whole)
            ages = row["history_ages"][LENGTH - len(items) :][: len(seen)]
            lag = row["request_lag"][place]
            assert [age - lag for age in ages] == own["history_ages"][LENGTH - len(seen) :]
            assert row["negatives"][place * NEGATIVES : (place + 1) * NEGATIVES] == own["negatives"]
            for name in ("item_id", "event_time", "item_index", "weight", "context_hour"):
                value = row[name][place]
                assert (round(value.timestamp() * 1e6) if name == "event_time" else value) == own[name]
            assert (row["history_until"][place] is None) == (own["history_until"] is None)
        number = len(row["row_key"])
        for name in ("item_index", "weight", "context_hour", "history_seen", "request_lag"):
            assert row[name][number:] == [0] * (pack - number)
        assert row["negatives"][number * NEGATIVES :] == [0] * (NEGATIVES * (pack - number))
        assert [len(row[name]) for name in ("item_id", "event_time", "history_until")] == [number] * 3
    assert bool(shortened) == (pack > 1)

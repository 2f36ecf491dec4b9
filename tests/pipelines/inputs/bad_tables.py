"""Cases of bad tables: rows, columns, types, snapshots, and differences from earlier nights."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa

from tests.pipelines.inputs.bad_case import Case
from tests.pipelines.inputs.good_inputs import (
    DS,
    LAST,
    NOON,
    Row,
    first_two,
    interactions,
    items,
    put,
    ranking_logs,
    samples,
    users,
)


def _rows(title: str, expected: list[str], **changes: Any) -> Case:
    """Two bad rows among twelve interactions."""
    return Case(
        title,
        [f"2 of 12 rows where {expected[0]}", *expected[1:], "checks.bad_rows"],
        lambda root: put(root, "interactions", DS, first_two(interactions(), **changes)),
    )


def _logs(title: str, expected: list[str], **changes: Any) -> Case:
    """Two bad rows in the ranking logs of four days."""
    return Case(
        title,
        ["table ranking_logs", f"2 of 24 rows where {expected[0]}", *expected[1:]],
        lambda root: put(root, "ranking_logs", LAST, first_two(ranking_logs(), **changes)),
        samples,
    )


def _types(title: str, expected: list[str], table: str, rows: list[Row], ds: str, **types: pa.DataType) -> Case:
    return Case(title, [f"table {table}", *expected], lambda root: put(root, table, ds, rows, types))


def _without(rows: list[Row], name: str, **other: Any) -> list[Row]:
    return [{key: value for key, value in row.items() if key != name} | other for row in rows]


def _with(rows: list[Row], **changes: Any) -> list[Row]:
    return [row | changes for row in rows]


FAR = datetime(1600, 1, 1, tzinfo=timezone.utc)
ROWS = [
    _rows("a user_id that is null", ["user_id is null", '"user_id":null'], user_id=None),
    _rows("a user_id that is an empty string", ["user_id is empty"], user_id=""),
    _rows("an item_id that is null", ["item_id is null", '"user_id":"u0"'], item_id=None),
    _rows("an event without event_time", ["event_time is null"], event_time=None),
    _rows(
        "an event of another day",
        ["event_time is outside its ds (UTC)", "2024-03-06T00:00:00", "correct or remove"],
        event_time=NOON + timedelta(hours=12),
    ),
    _rows(
        "an event a microsecond too early",
        ["event_time is outside"],
        event_time=NOON - timedelta(hours=12, microseconds=1),
    ),
    _rows("an action that is null", ["action is null"], action=None),
    _rows("a reward below 0", ["reward is negative, not finite or above 1e+12", "-1.0"], reward=-1.0),
    _rows("a reward that is NaN", ["reward is negative, not finite or above 1e+12", "NaN"], reward=float("nan")),
    _rows(
        "a reward that is infinite", ["reward is negative, not finite or above 1e+12", "Infinity"], reward=float("inf")
    ),
    _rows("a reward above 1e12", ["reward is negative, not finite or above", "1.0E30"], reward=1e30),
    Case(
        "a price that does not fit into float32",
        ["table items, ds 2024-03-05: 2 of 20 rows where price is infinite or beyond 1e+19", "1.0E300"],
        lambda root: put(root, "items", DS, first_two(items(), price=1e300)),
    ),
    Case(
        "a vector of another length",
        ["table items, ds 2024-03-05: 2 of 20 rows where look does not hold 3 numbers", '"length":2'],
        lambda root: put(root, "items", DS, first_two(items(), look=[0.0, 1.0])),
    ),
    Case(
        "a vector with NaN",
        ["2 of 20 rows where look holds a number that is null, NaN, infinite or beyond 1e+19", '"first_wrong":3'],
        lambda root: put(root, "items", DS, first_two(items(), look=[0.0, 1.0, float("nan")])),
    ),
    _logs(
        "a stage that is not part of the funnel", ["stage is not one of recall, coarse, fine, rerank"], stage="shown"
    ),
    _logs("a position below 0", ["position is negative"], position=-1),
    _logs("a request_id that is null", ["request_id is null"], request_id=None),
]
COLUMNS = [
    _types(
        "a missing column",
        ["'item_id' is missing", "it has action, device, event_time", "inputs.interactions.columns"],
        "interactions",
        _without(interactions(), "item_id"),
        DS,
    ),
    _types(
        "event_time as text",
        ["'event_time'", "string", "wanted timestamp"],
        "interactions",
        _with(interactions(), event_time="2024-03-05 12:00"),
        DS,
        event_time=pa.string(),
    ),
    _types(
        "ids as fractions",
        ["'item_id'", "its type is double", "Cast it"],
        "interactions",
        _with(interactions(), item_id=1.0),
        DS,
        item_id=pa.float64(),
    ),
    _types(
        "a feature without a column",
        ["'category' is missing", "features.item"],
        "items",
        _without(items(), "category"),
        DS,
    ),
    _types(
        "a single value for a multi-value feature",
        ["'tags'", "its type is string", "declared multi_categorical"],
        "items",
        _with(items(), tags="x"),
        DS,
        tags=pa.string(),
    ),
    _types(
        "text for a numeric feature",
        ["'price'", "its type is string", "declared numeric"],
        "items",
        _with(items(), price="cheap"),
        DS,
        price=pa.string(),
    ),
    _types(
        "a list for a single-value feature",
        ["'age'", "its type is array<string>", "declared categorical"],
        "users",
        _with(users(), age=["young"]),
        LAST,
        age=pa.list_(pa.string()),
    ),
    _types(
        "a vector as text",
        ["'look'", "its type is array<string>", "declared vector", "array<float> or array<double>"],
        "items",
        _with(items(), look=["0.0", "1.0", "0.5"]),
        DS,
        look=pa.list_(pa.string()),
    ),
    _types(
        "a feature of the request without a column",
        ["table interactions", "'device' is missing", "features.context"],
        "interactions",
        _without(interactions(), "device"),
        DS,
    ),
    _types(
        "a list for a feature of the request",
        ["table interactions, column 'device'", "its type is array<string>", "features.context"],
        "interactions",
        _with(interactions(), device=["tv"]),
        DS,
        device=pa.list_(pa.string()),
    ),
    Case(
        "two files of a day with different types",
        [
            "table interactions, column 'item_id'",
            f"bigint in ds={DS}/part-0.parquet and string in ds={DS}/part-1.parquet",
        ],
        lambda root: put(root, "interactions", DS, _with(interactions(), item_id="x"), {"item_id": pa.string()}, 1),
    ),
]
SNAPSHOTS = [
    Case(
        "an item that appears twice in a snapshot",
        ["table items, ds 2024-03-05: 2 of 21 rows where item_id appears more than once", '"item_id":0'],
        lambda root: put(root, "items", DS, [*items(), items()[0]]),
    ),
    Case(
        "a user_id that is null in a snapshot",
        ["table users, ds 2024-03-04: 2 of 4 rows where user_id is null"],
        lambda root: put(root, "users", LAST, first_two(users(), user_id=None)),
    ),
    Case(
        "an item published before 1900",
        ["2 of 20 rows where publish_time is before 1900"],
        lambda root: put(root, "items", DS, first_two(items(), publish_time=FAR)),
    ),
]
DRIFT = [
    Case(
        "far too few rows",
        ["table interactions: 2 rows on ds=2024-03-05", "0.2 times the median", "(12)", "checks.rows_low"],
        lambda root: put(root, "interactions", DS, interactions()[:2]),
    ),
    Case(
        "far too many rows",
        ["table interactions: 72 rows", "more than 5 times", "checks.rows_high"],
        lambda root: put(root, "interactions", DS, interactions() * 6),
    ),
    Case(
        "a feature that is suddenly null",
        ["table users, column age: 100.0% of the values of ds=2024-03-04", "0.0%", "checks.null_rise"],
        lambda root: put(root, "users", LAST, _with(users(), age=None)),
    ),
    Case(
        "a feature of the request that is suddenly null",
        ["table interactions, column device: 100.0% of the values of ds=2024-03-05", "checks.null_rise"],
        lambda root: put(root, "interactions", DS, _with(interactions(), device=None)),
    ),
    Case(
        "a feed that was delivered twice",
        ["12 of 24 rows repeat another one", "checks.duplicates", "remove one copy"],
        lambda root: put(root, "interactions", DS, interactions(), part=1),
    ),
    Case(
        "no row with a configured action",
        ["column action", "'click'", "positives.actions"],
        lambda root: put(root, "interactions", DS, _with(interactions(), action="view")),
    ),
]

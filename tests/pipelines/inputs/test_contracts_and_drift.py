"""What is counted in inputs, what goes aside, and when a night is refused for not being like the nights before it."""

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from model.serving import request_encoder
from pipelines.config import Checks, Features, Inputs
from pipelines.contract.errors import InputError
from pipelines.drift import compare_with_before, refuse_repeats
from pipelines.inputs import contracts
from pipelines.inputs.tables import DAYS_TOLD, InputTables
from pipelines.night import Night
from pipelines.storage.dates import days_back
from pipelines.storage.manifest import Manifest, Recipe
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.inputs.bad_inputs import DS, LAST, NOON, interactions, items, put, users

ALL = Checks(bad_rows=1.0)
FEATURES = Features.model_validate(
    {
        "user": [{"kind": "categorical", "name": "age"}],
        "item": [
            {"kind": "multi_categorical", "name": "tags", "weights": "how_much"},
            {"kind": "numeric", "name": "price"},
        ],
    }
)


def root_of(warehouse: Warehouse) -> Path:
    return Path(warehouse.root.removeprefix("file://"))


def put_mixed(warehouse: Warehouse) -> None:
    """Two days of interactions, 24 rows, five of them bad; users with a null, an empty and a repeated id."""
    rows = interactions(DS)
    rows[0] |= {"user_id": None, "action": None}  # two reasons: the first counts
    rows[1] |= {"item_id": None}
    rows[2] |= {"reward": -0.5}
    rows[3] |= {"event_time": NOON - timedelta(days=1)}
    rows[4] |= {"reward": None, "request_id": None}  # both may be unknown
    yesterday = interactions(LAST)
    yesterday[5] |= {"user_id": None}
    put(root_of(warehouse), "interactions", DS, rows)
    put(root_of(warehouse), "interactions", LAST, yesterday)
    people = [*users(), {"user_id": "u0", "age": None}, {"user_id": None, "age": None}, {"user_id": "", "age": None}]
    put(root_of(warehouse), "users", LAST, [*people, {"user_id": None, "age": "old"}])


def test_bad_rows_are_counted_once_and_put_aside_with_their_reason(spark: SparkSession, warehouse: Warehouse) -> None:
    put_mixed(warehouse)
    inputs = InputTables(warehouse, Inputs(), ALL, FEATURES)
    good = inputs.events("interactions", [LAST, DS])
    people = inputs.snapshot("users", LAST)
    assert dict(good.dtypes)["item_id"] == "string"
    assert sorted((row["ds"], int(row["item_id"])) for row in good.collect()) == sorted(
        [(LAST, n) for n in range(12) if n != 5] + [(DS, n) for n in range(4, 12)]
    )
    assert sorted(row["user_id"] for row in people.collect()) == ["u1", "u2", "u3"]

    facts = json.loads(json.dumps(inputs.facts()))
    told = facts["interactions"]
    assert told["bad"] == {
        "event_time is outside its ds (UTC)": 1,
        "item_id is null": 1,
        "reward is negative, not finite or above 1e+12": 1,
        "user_id is null": 2,
    }
    assert (told["rows"], told["good"], told["by_day"]) == (24, 19, {LAST: 12, DS: 12})
    assert told["null_share"] == {
        name: pytest.approx(share / 12, abs=1e-6)
        for name, share in {
            "user_id": 1,
            "item_id": 1,
            "event_time": 0,
            "action": 1,
            "reward": 1,
            "request_id": 1,
        }.items()
    }
    assert (told["first_event"], told["last_event"]) == ("2024-03-04T12:00:00", "2024-03-05T12:00:00")
    twice = "user_id appears more than once in the snapshot"
    assert facts["users"]["bad"] == {twice: 2, "user_id is empty": 1, "user_id is null": 2}
    assert (facts["users"]["rows"], facts["users"]["good"]) == (8, 3)
    assert facts["users"]["null_share"] == {"user_id": 0.25, "age": 0.375}

    written = inputs.write_quarantine(DS, Recipe("config", {}), ("interactions", "items", "users"))
    assert set(written) == {"interactions", "users"}
    assert written["users"].facts["reasons"] == facts["users"]["bad"]
    aside = spark.read.parquet(f"{warehouse.root}/quarantine").collect()
    by_reason: dict[str, list[Any]] = {}
    for row in aside:
        by_reason.setdefault(f"{row['table']}: {row['reason']}", []).append(json.loads(row["row"]))
    assert {name: len(rows) for name, rows in by_reason.items()} == {
        f"{table}: {reason}": number
        for table in ("interactions", "users")
        for reason, number in facts[table]["bad"].items()
    }
    assert sorted(str(row["age"]) for row in by_reason[f"users: {twice}"]) == ["None", "young"]
    assert by_reason["interactions: item_id is null"][0]["user_id"] == "u1"

    # The same tables without a check: the same rows. And once they are clean, nothing stays aside.
    later = InputTables(warehouse, Inputs(), ALL)
    assert later.events("interactions", [LAST, DS], check=False).exceptAll(good).isEmpty()
    assert later.snapshot("users", LAST, check=False).count() == 3
    assert later.facts() == {}
    put(root_of(warehouse), "users", LAST, users())
    clean = InputTables(warehouse, Inputs(), ALL)
    assert clean.snapshot("users", LAST).count() == 4
    assert clean.write_quarantine(DS, Recipe("config", {}), ("users",)) == {}
    assert warehouse.manifest("quarantine/table=users", DS) is None
    assert warehouse.manifest("quarantine/table=interactions", DS) is not None


def test_the_tolerance_is_a_share_of_the_rows(warehouse: Warehouse) -> None:
    rows = interactions()
    rows[0] |= {"user_id": None}
    put(root_of(warehouse), "interactions", DS, rows)
    InputTables(warehouse, Inputs(), Checks(bad_rows=1 / 12)).events("interactions", [DS])
    with pytest.raises(InputError, match=r"1 of 12 rows where user_id is null"):
        InputTables(warehouse, Inputs(), Checks(bad_rows=0.99 / 12)).events("interactions", [DS])


NUMBERS = [1.0, None, float("nan"), -1e19, 1.1e19, 1e300, float("inf"), float("-inf")]
WEIGHTS = [[0.5, None], None, [], [1e12, -1e12], [1.1e12], [1.0, float("nan")], [float("inf")], [1e300]]


@pytest.mark.parametrize(
    ("column", "kind", "values", "reason"),
    [
        ("price", pa.float64(), NUMBERS, "price is infinite or beyond 1e+19"),
        ("price", pa.float32(), NUMBERS, "price is infinite or beyond 1e+19"),
        ("how_much", pa.list_(pa.float64()), WEIGHTS, "how_much holds a weight that is not finite or beyond 1e+12"),
    ],
)
def test_a_number_that_float32_cannot_compute_with_makes_its_row_bad(
    warehouse: Warehouse, column: str, kind: pa.DataType, values: list[Any], reason: str
) -> None:
    rows = [item | {"how_much": None} | {column: value} for item, value in zip(items(), values)]
    put(root_of(warehouse), "items", DS, rows, {"how_much": pa.list_(pa.float64()), column: kind})
    inputs = InputTables(warehouse, Inputs(), ALL, FEATURES)
    assert sorted(int(row["item_id"]) for row in inputs.snapshot("items", DS).collect()) == [0, 1, 2, 3]
    assert inputs.facts()["items"]["bad"] == {reason: 4}


def test_requests_hold_numbers_to_the_rule_of_the_tables() -> None:
    assert (request_encoder.LARGEST, request_encoder.LARGEST_WEIGHT) == (contracts.LARGEST, contracts.LARGEST_WEIGHT)


def test_a_long_window_tells_its_last_days(warehouse: Warehouse) -> None:
    days = days_back(DS, DAYS_TOLD + 2)
    for ds in days:
        put(root_of(warehouse), "interactions", ds, interactions(ds)[:2])
    inputs = InputTables(warehouse, Inputs())
    inputs.events("interactions", days)
    told = inputs.facts()["interactions"]
    assert list(told["by_day"]) == days[2:]
    assert (told["rows"], set(told["by_day"].values())) == (84, {2})


# -- against the nights before: from their manifests alone ---------------------------------------------------------------


def remember(warehouse: Warehouse, table: str, ds: str, facts: dict[str, Any]) -> None:
    """The manifest of a night that read so much."""
    manifest = Manifest(table, ds, "config", {}, 1, {"input": facts})
    warehouse.write_text(f"{warehouse.path(table, ds)}/_manifest.json", json.dumps(asdict(manifest)))


def told(rows: dict[str, int], **null_share: float) -> dict[str, Any]:
    return {"by_day": rows, "null_share": null_share}


@pytest.fixture
def night(warehouse: Warehouse) -> Night:
    """A night after four others, of 100, 80, 120 and 100 interactions."""
    for ds, rows in zip(days_back(LAST, 4), (100, 80, 120, 100)):
        remember(warehouse, "positives", ds, {"interactions": told({ds: rows}, reward=0.1)})
        remember(warehouse, "samples", ds, {"ranking_logs": told({ds: 1000})})
    return Night.open(warehouse, Inputs(), DS, 17)


@pytest.mark.parametrize(
    ("rows", "share", "checks", "said"),
    [
        (20, 0.1, {}, None),
        (19, 0.1, {}, "19 rows on ds=2024-03-05, less than 0.2 times the median of the last 4 days (100)"),
        (19, 0.1, {"rows_low": None}, None),
        (500, 0.1, {}, None),
        (501, 0.1, {}, "501 rows on ds=2024-03-05, more than 5 times"),
        (501, 0.1, {"rows_high": None}, None),
        (100, 0.4, {}, None),
        (100, 0.41, {}, "column reward: 41.0% of the values of ds=2024-03-05 are null, 10.0% in the night of"),
        (100, 0.41, {"null_rise": None}, None),
        (100, 0.0, {"null_rise": 0.0}, None),
    ],
)
def test_rows_and_nulls_stay_in_the_range_of_the_last_nights(
    night: Night, rows: int, share: float, checks: dict[str, Any], said: str | None
) -> None:
    facts = {"interactions": told({DS: rows}, reward=share)}
    if said is None:
        compare_with_before(night, "positives", facts, Checks(**checks))
        return
    with pytest.raises(InputError) as caught:
        compare_with_before(night, "positives", facts, Checks(**checks))
    assert said in str(caught.value)
    assert "checks." in str(caught.value)


def test_a_feed_that_stays_away_is_missed(night: Night) -> None:
    with pytest.raises(InputError, match=r"table ranking_logs: 0 rows on ds=2024-03-05, less than 0.2 times"):
        compare_with_before(night, "samples", {}, Checks())


def test_too_few_nights_say_nothing(warehouse: Warehouse) -> None:
    for ds in days_back(LAST, 2):
        remember(warehouse, "positives", ds, {"interactions": told({ds: 100})})
    opened = Night.open(warehouse, Inputs(), DS, 17)
    compare_with_before(opened, "positives", {"interactions": told({DS: 1})}, Checks())


def test_the_days_of_a_first_night_count_and_only_the_last_seven(warehouse: Warehouse) -> None:
    days = days_back(LAST, 20)
    remember(warehouse, "positives", LAST, {"interactions": told({ds: 10 if ds in days[-7:] else 1000 for ds in days})})
    opened = Night.open(warehouse, Inputs(), DS, 17)
    compare_with_before(opened, "positives", {"interactions": told({DS: 10})}, Checks())
    with pytest.raises(InputError, match=r"median of the last 7 days \(10\)"):
        compare_with_before(opened, "positives", {"interactions": told({DS: 100})}, Checks())


def test_a_feed_delivered_twice_is_refused() -> None:
    refuse_repeats(0, 0, Checks())
    refuse_repeats(20, 100, Checks())
    with pytest.raises(InputError, match=r"21 of 100 rows repeat another one exactly .* checks.duplicates = 0.2"):
        refuse_repeats(21, 100, Checks())

"""Contracts of input tables: bad rows are counted, written to quarantine, or refused."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from model.serving import request_values
from pipelines.config import Checks, Inputs
from pipelines.contract.errors import InputError
from pipelines.feature_config import Features
from pipelines.inputs import contracts
from pipelines.inputs.row_checks import DAYS_REPORTED
from pipelines.inputs.tables import InputTables
from pipelines.storage.dates import days_back
from pipelines.storage.manifest import Recipe
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.inputs.good_inputs import DS, LAST, NOON, interactions, items, put, users

ALL = Checks(bad_rows=1.0)
REPEATED = "user_id appears more than once in the snapshot"
FEATURES = Features.model_validate(
    {
        "user": [{"kind": "categorical", "name": "age"}],
        "item": [
            {"kind": "multi_categorical", "name": "tags", "weights": "how_much"},
            {"kind": "numeric", "name": "price"},
            {"kind": "vector", "name": "look", "length": 3},
        ],
    }
)


def root_of(warehouse: Warehouse) -> Path:
    return Path(warehouse.root.removeprefix("file://"))


def put_mixed(warehouse: Warehouse) -> None:
    """Write two days of interactions (24 rows, 5 bad) and users with null, empty and repeated ids."""
    rows = interactions(DS)
    rows[0] |= {"user_id": None, "action": None}  # two reasons: only the first counts
    rows[1] |= {"item_id": None}
    rows[2] |= {"reward": -0.5}
    rows[3] |= {"event_time": NOON - timedelta(days=1)}
    rows[4] |= {"reward": None, "request_id": None}  # both columns are nullable
    yesterday = interactions(LAST)
    yesterday[5] |= {"user_id": None}
    put(root_of(warehouse), "interactions", DS, rows)
    put(root_of(warehouse), "interactions", LAST, yesterday)
    people = [*users(), {"user_id": "u0", "age": None}, {"user_id": None, "age": None}, {"user_id": "", "age": None}]
    put(root_of(warehouse), "users", LAST, [*people, {"user_id": None, "age": "old"}])


@pytest.fixture
def mixed(warehouse: Warehouse) -> InputTables:
    """Input tables with good and bad rows, checked with a tolerance that accepts all of them."""
    put_mixed(warehouse)
    inputs = InputTables(warehouse, Inputs(), ALL, FEATURES)
    inputs.events("interactions", [LAST, DS])
    inputs.snapshot("users", LAST)
    return inputs


def test_only_good_rows_are_returned(mixed: InputTables) -> None:
    good = mixed.events("interactions", [LAST, DS], check=False)
    assert dict(good.dtypes)["item_id"] == "string"
    assert sorted((row["ds"], int(row["item_id"])) for row in good.collect()) == sorted(
        [(LAST, n) for n in range(12) if n != 5] + [(DS, n) for n in range(4, 12)]
    )
    assert sorted(row["user_id"] for row in mixed.snapshot("users", LAST, check=False).collect()) == ["u1", "u2", "u3"]


def test_each_bad_row_is_counted_once(mixed: InputTables) -> None:
    facts = json.loads(json.dumps(mixed.facts()))
    interactions_facts = facts["interactions"]
    assert interactions_facts["bad"] == {
        "event_time is outside its ds (UTC)": 1,
        "item_id is null": 1,
        "reward is negative, not finite or above 1e+12": 1,
        "user_id is null": 2,
    }
    assert (interactions_facts["rows"], interactions_facts["good"]) == (24, 19)
    assert interactions_facts["by_day"] == {LAST: 12, DS: 12}
    nulls = {"user_id": 1, "item_id": 1, "event_time": 0, "action": 1, "reward": 1, "request_id": 1}
    assert interactions_facts["null_share"] == {
        name: pytest.approx(number / 12, abs=1e-6) for name, number in nulls.items()
    }
    assert interactions_facts["first_event"] == "2024-03-04T12:00:00"
    assert interactions_facts["last_event"] == "2024-03-05T12:00:00"
    assert facts["users"]["bad"] == {REPEATED: 2, "user_id is empty": 1, "user_id is null": 2}
    assert (facts["users"]["rows"], facts["users"]["good"]) == (8, 3)
    assert facts["users"]["null_share"] == {"user_id": 0.25, "age": 0.375}


def test_bad_rows_are_written_to_quarantine_with_their_reason(spark: SparkSession, mixed: InputTables) -> None:
    manifests = mixed.write_quarantine(DS, Recipe("config", {}), ("interactions", "items", "users"))
    assert set(manifests) == {"interactions", "users"}
    facts = mixed.facts()
    assert manifests["users"].facts["reasons"] == facts["users"]["bad"]
    by_reason: dict[str, list[Any]] = {}
    for row in spark.read.parquet(f"{mixed.warehouse.root}/quarantine").collect():
        by_reason.setdefault(f"{row['table']}: {row['reason']}", []).append(json.loads(row["row"]))
    assert {name: len(rows) for name, rows in by_reason.items()} == {
        f"{table}: {reason}": number
        for table in ("interactions", "users")
        for reason, number in facts[table]["bad"].items()
    }
    assert sorted(str(row["age"]) for row in by_reason[f"users: {REPEATED}"]) == ["None", "young"]
    assert by_reason["interactions: item_id is null"][0]["user_id"] == "u1"


def test_without_a_check_the_rows_are_the_same(mixed: InputTables) -> None:
    good = mixed.events("interactions", [LAST, DS], check=False)
    unchecked = InputTables(mixed.warehouse, Inputs(), ALL)
    assert unchecked.events("interactions", [LAST, DS], check=False).exceptAll(good).isEmpty()
    assert unchecked.snapshot("users", LAST, check=False).count() == 3
    assert unchecked.facts() == {}


def test_the_quarantine_of_a_table_is_deleted_once_its_rows_are_good(mixed: InputTables) -> None:
    warehouse = mixed.warehouse
    mixed.write_quarantine(DS, Recipe("config", {}), ("interactions", "users"))
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


NAN = float("nan")
GOOD_VECTORS = [[1.0, -2.0, 0.0], None, [-1e19, 0.0, 1e19], [0.0, 0.0, 0.0]]
VECTORS = [*GOOD_VECTORS, [1.0, None, 2.0], [NAN, 0.0, 0.0], [0.0, 0.0, float("-inf")], [1.1e19, 0.0, 0.0]]
WRONG_LENGTHS = [*GOOD_VECTORS, [], [1.0], [1.0, 2.0], [1.0, 2.0, 3.0, NAN]]


@pytest.mark.parametrize(
    ("column", "kind", "values", "reason"),
    [
        ("price", pa.float64(), NUMBERS, "price is infinite or beyond 1e+19"),
        ("price", pa.float32(), NUMBERS, "price is infinite or beyond 1e+19"),
        ("how_much", pa.list_(pa.float64()), WEIGHTS, "how_much holds a weight that is not finite or beyond 1e+12"),
        ("look", pa.list_(pa.float64()), VECTORS, "look holds a number that is null, NaN, infinite or beyond 1e+19"),
        ("look", pa.list_(pa.float32()), VECTORS, "look holds a number that is null, NaN, infinite or beyond 1e+19"),
        ("look", pa.list_(pa.float32()), WRONG_LENGTHS, "look does not hold 3 numbers"),
    ],
)
def test_a_number_or_vector_that_no_model_can_use_makes_its_row_bad(
    warehouse: Warehouse, column: str, kind: pa.DataType, values: list[Any], reason: str
) -> None:
    rows = [item | {"how_much": None} | {column: value} for item, value in zip(items(), values)]
    put(root_of(warehouse), "items", DS, rows, {"how_much": pa.list_(pa.float64()), column: kind})
    inputs = InputTables(warehouse, Inputs(), ALL, FEATURES)
    assert sorted(int(row["item_id"]) for row in inputs.snapshot("items", DS).collect()) == [0, 1, 2, 3]
    assert inputs.facts()["items"]["bad"] == {reason: 4}


def test_requests_and_tables_have_the_same_limits_of_numbers() -> None:
    assert (request_values.LARGEST, request_values.LARGEST_WEIGHT) == (contracts.LARGEST, contracts.LARGEST_WEIGHT)


def test_facts_of_a_long_window_report_its_last_days(warehouse: Warehouse) -> None:
    days = days_back(DS, DAYS_REPORTED + 2)
    for ds in days:
        put(root_of(warehouse), "interactions", ds, interactions(ds)[:2])
    inputs = InputTables(warehouse, Inputs())
    inputs.events("interactions", days)
    facts = inputs.facts()["interactions"]
    assert list(facts["by_day"]) == days[2:]
    assert (facts["rows"], set(facts["by_day"].values())) == (84, {2})

"""State rolled from night to night equals state rebuilt from the raw logs, and a refused night does not change it."""

import json
import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from pyspark.sql import SparkSession

from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.contract.errors import InputError
from pipelines.feature_config import Features
from pipelines.night import POSITIVE_TABLES, STATE_TABLES, Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.storage.lineage import UNKNOWN, lineage_of_bootstrap, lineage_of_night
from pipelines.storage.manifest import Recipe
from pipelines.storage.warehouse import Warehouse

pytestmark = pytest.mark.joins

DAYS = [f"2024-03-{day:02d}" for day in range(1, 5)]
ITEMS = 14
CONFIG = SampleConfig(
    Features.model_validate({"history": {"length": 3}}),
    Positives(window_days=2, known_items=6, per_user_cap=3, downsample={"threshold": 0.05}),
    Negatives(),
    Samples(),
)
# Columns that depend on more than the log: indices follow the order of nights, the others count only rows of ds.
NOT_ROLLED = {"item_index", "sampled_count", "q_in_batch", "first_trained"}


def clicks() -> list[tuple[Any, ...]]:
    """Users with gaps, several clicks at one instant, and days with more clicks than histories and known items hold."""
    rng = random.Random(3)
    rows = []
    for ds in DAYS:
        midnight = datetime.fromisoformat(ds)
        for user in range(9):
            if rng.random() < 0.6:
                for _ in range(rng.choice([1, 4, 12])):
                    time = midnight + timedelta(hours=rng.choice([7, 8, 9]))
                    rows.append((ds, f"u{user}", rng.randrange(ITEMS), time, "click", rng.choice(["r", None])))
    return rows


def write_inputs(warehouse: Warehouse, days: list[str]) -> None:
    spark = warehouse.spark
    columns = "ds string, user_id string, item_id int, event_time timestamp, action string, request_id string"
    rows = [row for row in clicks() if row[0] in days]
    warehouse.write_input(spark.createDataFrame(rows, columns), "interactions")
    # Two items are published on the third day and one leaves on the fourth, so live items change from night to night.
    items = [
        (ds, n, datetime(2024, 3, 3) if n < 2 else None)
        for ds in (DAYS[0], DAYS[3])
        for n in range(ITEMS)
        if (ds, n) != (DAYS[3], 5)
    ]
    warehouse.write_input(spark.createDataFrame(items, "ds string, item_id int, publish_time timestamp"), "items")


def run(warehouse: Warehouse, ds: str, days: int) -> None:
    build_positives(Night.open(warehouse, Inputs(), ds, 17, days), CONFIG, "config")


@pytest.fixture(scope="module")
def rolled(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("rolled")))
    write_inputs(warehouse, DAYS)
    run(warehouse, DAYS[1], 2)
    run(warehouse, DAYS[2], 0)
    run(warehouse, DAYS[3], 0)
    return warehouse


def test_a_bootstrap_and_the_nights_after_it_have_one_lineage(rolled: Warehouse) -> None:
    manifests = [rolled.require(table, ds, "") for table in POSITIVE_TABLES for ds in DAYS[1:]]
    first = rolled.require("vocabularies", DAYS[1], "")
    assert {manifest.lineage for manifest in manifests} == {lineage_of_bootstrap(DAYS[1], first)}
    assert first.lineage.startswith(DAYS[1])


def test_a_bootstrap_with_other_days_inputs_or_config_starts_another_lineage(rolled: Warehouse) -> None:
    first = rolled.require("vocabularies", DAYS[1], "")
    recipe = Recipe(first.config_hash, first.inputs)
    again = lineage_of_night(rolled, DAYS[1], [], recipe)
    assert again == first.lineage, "the same command on the same inputs"
    others = [Recipe("other", first.inputs), Recipe(first.config_hash, first.inputs | {"items": "other"})]
    names = {again, *(lineage_of_night(rolled, DAYS[1], [], other) for other in others)}
    assert len(names | {lineage_of_night(rolled, DAYS[2], [], recipe)}) == 4


def test_the_lineage_of_tables_of_an_earlier_version_is_derived(rolled: Warehouse) -> None:
    """Their manifests have no lineage. Walking back to the bootstrap gives the lineage that they would have."""
    texts, state = {}, []
    for ds in DAYS[1:3]:
        uri = f"{rolled.path('vocabularies', ds)}/_manifest.json"
        texts[uri] = rolled.read_text(uri)
        rolled.write_text(uri, json.dumps({k: v for k, v in json.loads(texts[uri]).items() if k != "lineage"}))
    try:
        state = [rolled.require("vocabularies", DAYS[2], "")]
        assert state[0].lineage == UNKNOWN
        lineage = lineage_of_night(rolled, DAYS[3], state, Recipe("config", {}))
    finally:
        for uri, text in texts.items():
            rolled.write_text(uri, text)
    assert lineage == rolled.require("vocabularies", DAYS[1], "").lineage


def test_state_of_two_lineages_is_refused(rolled: Warehouse) -> None:
    state = [rolled.require(table, DAYS[2], "") for table in STATE_TABLES]
    state[1] = replace(state[1], lineage="2024-02-01-00000000")
    with pytest.raises(
        InputError, match=r"bootstrap of ds=2024-03-02 .*user_histories ds=2024-03-03 .*bootstrap of ds=2024-02-01"
    ):
        lineage_of_night(rolled, DAYS[3], state, Recipe("config", {}))


def state(warehouse: Warehouse, ds: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Histories by user with item ids instead of indices, and item statistics by item."""
    item = {row["item_index"]: row["item_id"] for row in warehouse.read("item_stats", ds).collect()}
    users = {
        row["user_id"]: (
            [item[index] for index in row["history_items"]],
            row["history_times"],
            [item[index] for index in row["known_items"]],
        )
        for row in warehouse.read("user_histories", ds).collect()
    }
    rows = [row.asDict() for row in warehouse.read("item_stats", ds).collect()]
    return users, {row["item_id"]: {k: v for k, v in row.items() if k not in NOT_ROLLED} for row in rows}


def test_rolled_state_equals_rebuilt_state(rolled: Warehouse, spark: SparkSession, tmp_path_factory: Any) -> None:
    rebuilt = Warehouse(spark, str(tmp_path_factory.mktemp("rebuilt")))
    write_inputs(rebuilt, DAYS)
    run(rebuilt, DAYS[3], 4)
    users, items = state(rolled, DAYS[3])
    assert (users, items) == state(rebuilt, DAYS[3])
    # The data covers full histories, full known items, ties in time, and days that have left the window.
    assert {len(history) for history, _, _ in users.values()} >= {3}
    assert {len(known) for _, _, known in users.values()} >= {6}
    assert any(len(set(times)) < len(times) for _, times, _ in users.values())
    first_day = datetime.fromisoformat(DAYS[0]).date()
    assert any(row["first_seen"] == first_day and len(row["day_ordinals"]) < 2 for row in items.values())
    assert any(row["window_count"] and not row["live"] for row in items.values())
    absent = set(users) - {row[1] for row in clicks() if row[0] == DAYS[3]}
    assert absent


def test_the_state_follows_from_the_log(rolled: Warehouse) -> None:
    users, items = state(rolled, DAYS[3])
    last: dict[tuple[str, str, int], datetime] = {}
    for ds, user, item, time, *_ in clicks():
        last[user, ds, item] = max(time, last.get((user, ds, item), time))
    for user, (_, times, known) in users.items():
        own = sorted((time, str(item)) for (who, _, item), time in last.items() if who == user)
        assert times == [time for time, _ in own][-3:]
        touched: dict[str, datetime] = {}
        for time, item in own:
            touched[item] = max(time, touched.get(item, time))
        assert len(known) == len(set(known)) == min(6, len(touched))
        oldest = min(touched[item] for item in known)
        assert all(time <= oldest for item, time in touched.items() if item not in known)
        assert [touched[item] for item in known] == sorted(touched[item] for item in known)
    window = {ds: (datetime.fromisoformat(ds) - datetime(1970, 1, 1)).days for ds in DAYS[2:]}
    for item, row in items.items():
        counts = {window[ds]: sum((u, d, str(i)) == (u, ds, item) for u, d, i in last) for ds in window}
        days = {day: count for day, count in counts.items() if count}
        assert dict(zip(row["day_ordinals"], row["day_counts"])) == days


def test_a_refused_night_does_not_change_the_tables(rolled: Warehouse) -> None:
    ds = DAYS[2]
    tables = ("vocabularies", "user_histories", "item_stats", "item_features", "positives")
    before = {table: rolled.require(table, ds, "") for table in tables}
    columns = "ds string, user_id string, item_id int, event_time timestamp, action string, request_id string"
    good = [row for row in clicks() if row[0] == ds]
    for rows, message in (
        ([(*row[:4], "view", row[5]) for row in good], "no row of ds=2024-03-03 has an action among"),
        (good * 2, "repeat another one exactly"),
    ):
        rolled.write_input(rolled.spark.createDataFrame(rows, columns), "interactions")
        with pytest.raises(InputError, match=message):
            run(rolled, ds, 0)
        assert {table: rolled.require(table, ds, "") for table in tables} == before


def test_a_change_from_vocabulary_to_buckets_is_refused(rolled: Warehouse) -> None:
    features = CONFIG.features.model_copy(
        update={"ids": Features.model_validate({"ids": {"user": {"buckets": 8}}}).ids}
    )
    config = SampleConfig(features, CONFIG.positives, CONFIG.negatives, CONFIG.samples)
    with pytest.raises(
        InputError, match=r"for example user_id: exact until now, in 8 buckets in the config.*bootstrap"
    ):
        build_positives(Night.open(rolled, Inputs(), DAYS[3], 17), config, "other")

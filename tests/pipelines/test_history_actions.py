"""Actions of the items of a history: their indices from night to night, in the state, in samples and in queries."""

import dataclasses
from datetime import datetime, timedelta

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from pipelines.config import Inputs, Samples
from pipelines.contract.schema import FeatureSchema
from pipelines.day_events import day_events
from pipelines.feature_config import Features
from pipelines.histories.user_histories import roll_histories
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.queries import user_queries
from pipelines.samples.build import build_negatives
from pipelines.samples.packing import unpacked
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, LENGTH, SECOND, logs, rows_of, write_inputs

pytestmark = pytest.mark.joins

HISTORY = {"length": LENGTH, "ages": True, "actions": True}
FEATURES = Features.model_validate(CONFIG.features.model_dump() | {"history": HISTORY})
Log = dict[tuple[str, int, datetime], str]


def config_of(actions: dict[str, float], pack: int | None = None) -> SampleConfig:
    positives = CONFIG.positives.model_copy(update={"actions": actions})
    samples = Samples(**CONFIG.samples.model_dump() | {"pack": pack})
    return dataclasses.replace(CONFIG, features=FEATURES, positives=positives, samples=samples)


@pytest.fixture(scope="module")
def acting(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Two nights: click and view are positives of the first, click and buy those of the second, which has no views."""
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("actions")))
    write_inputs(warehouse)
    log = spark.read.parquet(warehouse.path("interactions", SECOND))
    action = F.when(F.col("action") == "view", "buy").otherwise(F.col("action"))
    warehouse.write_input(log.withColumns({"action": action, "ds": F.lit(SECOND)}), "interactions")
    for ds, days, actions in ((FIRST, 2, {"click": 1.0, "view": 0.5}), (SECOND, 0, {"click": 1.0, "buy": 5.0})):
        config = config_of(actions, pack=4 if ds == SECOND else None)
        night = Night.open(warehouse, Inputs(), ds, 17, days, features=FEATURES)
        build_positives(night, config, str(actions))
        build_negatives(night, config, str(actions))
    return warehouse


def indices(warehouse: Warehouse, ds: str) -> dict[str, int]:
    return {r["value"]: r["index"] for r in rows_of(warehouse, "vocabularies", ds) if r["feature"] == "action"}


def log_of(warehouse: Warehouse) -> Log:
    """The action of each event, by user, item index and time in whole seconds. A user takes an item once a day."""
    item = {r["value"]: r["index"] for r in rows_of(warehouse, "vocabularies", SECOND) if r["feature"] == "item_id"}
    return {
        (user, item[str(number)], time): "buy" if ds == SECOND and action == "view" else action
        for ds, user, number, time, action, _ in logs()[0]
    }


def events_of(row: Row, cut: datetime) -> list[tuple[str, int, datetime]]:
    """The events in the history of a row, by user, item and time. The times follow from the ages."""
    pairs = zip(row["history"], row["history_ages"], strict=True)
    return [(row["user_id"], item, cut - timedelta(seconds=age)) for item, age in pairs if item]


def check(row: Row, cut: datetime, log: Log, index: dict[str, int]) -> set[int]:
    """Compare the actions of a row with those of its events in the log. Returns them."""
    expected = [index[log[event]] for event in events_of(row, cut)]
    assert row["history_actions"] == [0] * (LENGTH - len(expected)) + expected
    return set(expected)


@pytest.mark.slow
def test_indices_of_actions_stay_and_new_actions_are_appended(acting: Warehouse) -> None:
    first, second = indices(acting, FIRST), indices(acting, SECOND)
    assert (sorted(first), sorted(first.values())) == (["click", "view"], [2, 3])
    assert second == first | {"buy": 4}
    for ds, size in ((FIRST, 4), (SECOND, 5)):
        facts = acting.require("samples", ds, "").facts
        schema = FeatureSchema.model_validate(facts["schema"])
        assert schema.history is not None
        assert schema.history.actions is not None
        assert schema.history.actions.size == size
        assert "history_actions" in schema.user_columns


@pytest.mark.slow
def test_the_state_has_the_action_of_each_event(acting: Warehouse) -> None:
    log, index, seen = log_of(acting), indices(acting, SECOND), set()
    for row in rows_of(acting, "user_histories", SECOND):
        events = zip(row["history_items"], row["history_times"], strict=True)
        assert row["history_actions"] == [index[log[row["user_id"], item, time]] for item, time in events]
        seen |= set(row["history_actions"])
    assert seen == {2, 3, 4}, "views of the first night stay in the state of the second"


@pytest.mark.slow
def test_samples_have_the_actions_of_their_histories_packed_or_not(acting: Warehouse) -> None:
    log, index = log_of(acting), indices(acting, SECOND)
    for ds, carried in ((FIRST, 0), (SECOND, 1)):
        schema = FeatureSchema.model_validate(acting.require("samples", ds, "").facts["schema"])
        rows = unpacked(acting.read("samples", ds), schema).collect()
        actions = set().union(*(check(row, row["event_time"], log, index) for row in rows))
        assert actions == ({2, 3, 4} if carried else {2, 3})
        keys = {row["row_key"]: row for row in rows}
        crossed = [row for row in rows_of(acting, "positives", ds) if row["carried"] and row["row_key"] in keys]
        assert (len(crossed) > 0) == bool(carried), "rows that the first night held back"
        for row in crossed:
            assert row["action_index"] == index[log[row["user_id"], row["item_index"], row["event_time"]]]


@pytest.mark.slow
def test_queries_and_events_of_the_gates_have_the_actions(acting: Warehouse) -> None:
    log, index, end = log_of(acting), indices(acting, SECOND), datetime.fromisoformat(SECOND) + timedelta(days=1)
    night = Night.open(acting, Inputs(), SECOND, 17)
    queries = user_queries(night, FEATURES).collect()
    assert set().union(*(check(row, end, log, index) for row in queries)) == {2, 3, 4}
    assert "history_actions" not in user_queries(night, CONFIG.features).columns
    for ds, days in ((FIRST, 2), (SECOND, 0)):
        night = Night.open(acting, Inputs(), ds, 17, days)
        events = day_events(night, FEATURES, 1000, since=None, new_items_only=False)
        assert events.columns[-5:] == ["history", "history_ages", "history_actions", "item_index", "had"]
        times: dict[tuple[str, int], list[datetime]] = {}
        for user, item, time in log:
            times.setdefault((user, item), []).append(time)
        actions: set[int] = set()
        for row in events.collect():
            # A user may have taken the item on several days.
            cuts = [at for at in times[row["user_id"], row["item_index"]] if set(events_of(row, at)) <= log.keys()]
            actions |= check(row, cuts[0], log, index)
        assert actions >= {2, 3}


@pytest.mark.slow
def test_items_of_a_state_without_actions_have_an_unknown_action(nights: Warehouse) -> None:
    """The setting was switched on after the night of that state."""
    rows = user_queries(Night.open(nights, Inputs(), SECOND, 17), FEATURES).collect()
    assert any(any(row["history"]) for row in rows)
    assert all(row["history_actions"] == [int(item > 0) for item in row["history"]] for row in rows)

    spark, time = nights.spark, datetime(2024, 3, 3)
    state = [("a", 2, [5, 6, 7], [time] * 3, [5, 6, 7]), ("b", 3, [5], [time], [5])]
    columns = "user_id string, user_index int, history_items array<int>, history_times array<timestamp>, "
    before = spark.createDataFrame(state, columns + "known_items array<int>")
    today = [("a", [8], [time], [8], 2, [4]), ("c", [9], [time], [9], 4, [2])]
    columns = "user_id string, items_today array<int>, times_today array<timestamp>, known_today array<int>, "
    rolled = roll_histories(
        spark.createDataFrame(today, columns + "user_index int, actions_today array<int>"), before, 3, 9
    )
    actions = {row["user_id"]: (row["history_items"], row["history_actions"]) for row in rolled.collect()}
    assert actions == {"a": ([6, 7, 8], [1, 1, 4]), "b": ([5], [1]), "c": ([9], [2])}

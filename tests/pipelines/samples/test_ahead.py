"""Order `ahead`: a history ends up to N days before its event, by hash, and never reaches its cut."""

import dataclasses
import shutil
from datetime import datetime, timedelta
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Inputs
from pipelines.feature_config import Features
from pipelines.histories.cuts import DAY_MICROS, cut_micros
from pipelines.night import Night
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, LENGTH, SECOND, clicks_before, item_of_index, rows_of

pytestmark = pytest.mark.joins

SEED, AHEAD = 17, 1.5


def looking_ahead(days: float) -> Any:
    """The config of the small nights with order `ahead`."""
    spec = CONFIG.features.model_dump() | {"history": {"length": LENGTH, "order": "ahead", "ages": True}}
    positives = CONFIG.positives.model_copy(update={"ahead_days": days})
    return dataclasses.replace(CONFIG, features=Features.model_validate(spec), positives=positives)


@pytest.fixture(scope="module")
def both(nights: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Samples of both nights with order `ahead`, from the positives of the small nights."""
    root = tmp_path_factory.mktemp("ahead") / "warehouse"
    shutil.copytree(nights.root.removeprefix("file://"), root)
    warehouse = Warehouse(nights.spark, str(root))
    for ds, days in ((FIRST, 2), (SECOND, 0)):
        build_negatives(Night.open(warehouse, Inputs(), ds, SEED, days), looking_ahead(AHEAD), "ahead")
    return warehouse


def cuts(warehouse: Warehouse, ds: str) -> dict[int, datetime]:
    rows = warehouse.read("positives", ds).select("row_key", F.timestamp_micros(cut_micros(AHEAD, SEED)).alias("cut"))
    return {row["row_key"]: row["cut"] for row in rows.collect()}


def test_lags_are_uniform_and_depend_on_the_row_and_the_seed(spark: SparkSession) -> None:
    rows = spark.range(4000).select(F.col("id").alias("row_key"), F.timestamp_micros(F.lit(0)).alias("event_time"))
    names = {"first": cut_micros(2.0, SEED), "second": cut_micros(2.0, SEED + 1), "event": cut_micros(None, SEED)}
    lags = rows.repartition(3).select("row_key", *(column.alias(name) for name, column in names.items())).toPandas()
    assert (lags["event"] == 0).all()
    days = -lags["first"] / DAY_MICROS
    assert 0 <= days.min() < 0.01
    assert 1.99 < days.max() < 2.0
    assert abs(days.mean() - 1) < 0.05
    assert (lags["first"] != lags["second"]).mean() > 0.99


@pytest.mark.slow
def test_a_history_of_the_first_night_is_the_last_items_before_the_cut(both: Warehouse) -> None:
    items, cut = item_of_index(both, FIRST), cuts(both, FIRST)
    facts = both.require("samples", FIRST, "").facts
    assert (facts["history"], facts["ahead_days"]) == ("ahead", AHEAD)
    empty = shorter = 0
    rows = rows_of(both, "samples", FIRST)
    for row in rows:
        at = cut[row["row_key"]]
        assert timedelta(0) <= row["event_time"] - at < timedelta(days=AHEAD)
        before = clicks_before(row["user_id"], at)[-LENGTH:]
        filled = [items[index] for index in row["history"] if index]
        # Items of one instant are in the order of a hash.
        assert len(filled) == len(before)
        assert {item for _, item in before if before[0][0] < at} >= set(filled) or len(before) == LENGTH
        assert row["history_until"] == (before[-1][0] if before else None)
        seconds = [int(at.timestamp() // 1) - int(time.timestamp()) for time, _ in before]
        assert row["history_ages"] == [0] * (LENGTH - len(seconds)) + seconds
        empty += not filled
        shorter += len(filled) < len(clicks_before(row["user_id"], row["event_time"])[-LENGTH:])
    assert empty  # such rows stay
    assert shorter
    assert len(rows) == both.require("positives", FIRST, "").facts["counts"]["kept"]


@pytest.mark.slow
def test_on_later_nights_the_cut_may_lie_before_the_night(nights: Warehouse, both: Warehouse) -> None:
    cut, earlier = cuts(both, SECOND), 0
    for row in rows_of(both, "samples", SECOND):
        assert row["history_until"] is None or row["history_until"] < cut[row["row_key"]]
        earlier += row["history_until"] is not None and cut[row["row_key"]] < datetime.fromisoformat(SECOND)
    assert earlier
    keys = [{row["row_key"] for row in rows_of(each, "samples", SECOND)} for each in (nights, both)]
    assert keys[0] == keys[1]


@pytest.mark.slow
def test_a_tiny_look_ahead_gives_the_rows_of_strictly_before(nights: Warehouse, both: Warehouse) -> None:
    build_negatives(Night.open(both, Inputs(), SECOND, SEED), looking_ahead(1e-12), "tiny", force=True)
    strict, tiny = (
        each.read("samples", SECOND).drop("history_ages").orderBy("row_key").collect() for each in (nights, both)
    )
    assert strict == tiny

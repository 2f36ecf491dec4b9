"""Carried rows get no negatives that their user interacted with or was shown on the day of the rows."""

import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.feature_config import Features
from pipelines.lost_day import carry_state
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.dates import shift
from pipelines.storage.warehouse import Warehouse

pytestmark = [pytest.mark.joins, pytest.mark.slow]

FIRST = "2024-03-02"
ITEMS = 12
CLICKED, VIEWED, SHOWN, SHOWN_BEFORE, VIEWED_BEFORE, OTHERS = range(6)
# (days after FIRST, hour, user, item, action, request); no row names the requests `shown` and `shown before`
INTERACTIONS: list[tuple[int, int, str, int, str, str | None]] = [
    (-1, 9, "late", VIEWED_BEFORE, "view", None),
    (0, 9, "late", VIEWED, "view", "viewed"),
    (0, 9, "early", OTHERS, "click", None),
    (0, 23, "late", CLICKED, "click", "clicked"),
    (1, 9, "early", OTHERS, "click", "today"),
    (2, 9, "early", OTHERS, "click", "today"),
]
# (days after FIRST, user, item, stage, request)
RANKINGS = [
    (-1, "late", SHOWN_BEFORE, "exposed", "shown before"),
    (0, "late", CLICKED, "exposed", "clicked"),
    (0, "late", SHOWN, "exposed", "shown"),
    (0, "early", SHOWN, "exposed", "of another user"),
]


CONFIG = SampleConfig(
    Features.model_validate({"history": {"length": 2}}),
    Positives(valid_hours=2.0, downsample=None, per_user_cap=None),
    # With this many draws, a row gets every item that is not excluded for its user.
    Negatives(uniform=ITEMS, popularity=0, coarse=0, fine=0, attempts=500),
    Samples(row_group_rows=4, trainers=1),
)


@pytest.fixture(scope="module")
def first(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with the logs of all days and the positives of FIRST."""
    folder = tmp_path_factory.mktemp("carried") / "warehouse"
    warehouse = Warehouse(spark, str(folder))

    def at(days: int, hour: int) -> tuple[str, datetime]:
        ds = shift(FIRST, days)
        return ds, datetime.fromisoformat(ds) + timedelta(hours=hour)

    interactions = [(*at(days, hour), *rest) for days, hour, *rest in INTERACTIONS]
    columns = "ds string, event_time timestamp, user_id string, item_id int, action string, request_id string"
    warehouse.write_input(spark.createDataFrame(interactions, columns), "interactions")
    rankings = [(*at(days, 8), *rest) for days, *rest in RANKINGS]
    columns = "ds string, event_time timestamp, user_id string, item_id int, stage string, request_id string"
    warehouse.write_input(spark.createDataFrame(rankings, columns), "ranking_logs")
    items = [(item,) for item in range(ITEMS)]
    day_before = spark.createDataFrame(items, "item_id int").withColumn("ds", F.lit(shift(FIRST, -1)))
    warehouse.write_input(day_before, "items")
    build_positives(Night.open(warehouse, Inputs(), FIRST, 3, 1), CONFIG, "config")
    return folder


@pytest.mark.parametrize(
    ("lost_day", "exposed_days", "excluded"),
    [
        (False, 1, {CLICKED, VIEWED, SHOWN}),
        (True, 2, {CLICKED, VIEWED, SHOWN, SHOWN_BEFORE}),
    ],
)
def test_items_of_the_day_of_a_carried_row_are_excluded_for_its_user(
    first: Path, spark: SparkSession, tmp_path: Path, lost_day: bool, exposed_days: int, excluded: set[int]
) -> None:
    shutil.copytree(first, tmp_path / "warehouse")
    warehouse, last = Warehouse(spark, str(tmp_path / "warehouse")), shift(FIRST, 2 if lost_day else 1)
    if lost_day:
        between = shift(FIRST, 1)
        shutil.rmtree(tmp_path / "warehouse" / "interactions" / f"ds={between}")
        carry_state(Night.open(warehouse, Inputs(), between, 3))
    config = replace(CONFIG, negatives=CONFIG.negatives.model_copy(update={"exposed_days": exposed_days}))
    night = Night.open(warehouse, Inputs(), last, 3)
    build_positives(night, config, "config")
    build_negatives(night, config, "config")

    item = {row["item_index"]: int(row["item_id"]) for row in warehouse.read("item_stats", last).collect()}
    rows = warehouse.read("samples", last).select("user_id", "negatives").collect()
    drawn = {row["user_id"]: {item[index] for index in row["negatives"] if index} for row in rows}
    assert drawn["late"] == set(range(ITEMS)) - excluded
    # A user without carried rows: the exclusions are those of ds.
    assert drawn["early"] == set(range(ITEMS)) - {OTHERS}
    assert build_negatives(night, config, "config")[1] is False

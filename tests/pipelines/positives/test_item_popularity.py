"""Popularity as item features: a row sees counts of days before its snapshot, and never its own label."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from pipelines.config import Inputs
from pipelines.feature_config import Features
from pipelines.night import Night
from pipelines.positives.build import build_positives
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.features.test_item_versions import (
    BEFORE,
    CONFIG,
    DAYS,
    LAST,
    NEW,
    clicks,
    snapshots,
    write_world,
)

WINDOWS = [1, 3]
POPULAR = replace(CONFIG, features=Features.model_validate({"item_popularity": WINDOWS, "history": {"length": 3}}))


def expected(item: int, snapshot: str) -> list[float]:
    """log(1 + clicks on an item) in the days of each window before a snapshot. 0 in the first snapshot of the item."""
    first = min(ds for ds, listed, *_ in snapshots() if listed == item)
    days = sorted(ds for ds in (BEFORE, *DAYS) if ds < snapshot)
    late_listed = first == snapshot > BEFORE
    windows = [[] if late_listed else days[-length:] for length in WINDOWS]
    return [
        math.log1p(sum(ds in window and item == clicked for ds, _, clicked, _, _ in clicks())) for window in windows
    ]


def values(row: Any) -> list[float]:
    return [row[f"item_popularity_{length}d"] for length in WINDOWS]


def check(warehouse: Warehouse, ds: str) -> int:
    """Assert the values of all items and versions of a night. Returns the number of versions."""
    versions = warehouse.read("item_versions", ds).collect()
    for row in versions:
        day = f"{str(row['snapshot'])[:4]}-{str(row['snapshot'])[4:6]}-{str(row['snapshot'])[6:]}"
        assert values(row) == pytest.approx(expected(int(row["item_id"]), day)), row
    for row in warehouse.read("item_features", ds).collect():
        assert values(row) == pytest.approx(expected(int(row["item_id"]), ds)), row
    return len(versions)


def run_positives(warehouse: Warehouse, ds: str, bootstrap_days: int) -> None:
    """Write the tables of items of a night."""
    build_positives(Night.open(warehouse, Inputs(), ds, 5, bootstrap_days), POPULAR, "config")


@pytest.mark.slow
def test_a_bootstrap_and_a_night_count_the_days_before_each_snapshot(spark: SparkSession, tmp_path: Path) -> None:
    whole, rolled = write_world(spark, tmp_path / "whole"), write_world(spark, tmp_path / "rolled")
    run_positives(whole, LAST, 3)
    assert check(whole, LAST) > 20  # Several versions of most items.
    run_positives(rolled, DAYS[1], 2)
    run_positives(rolled, LAST, 0)
    assert check(rolled, LAST) > 10
    (new,) = whole.read("item_features", LAST).where(f"item_id = {NEW}").collect()
    assert values(new) == [0, 0], "rows of an item's first day see the snapshot of that day"
    schema = whole.require("item_features", LAST, "").facts["schema"]
    assert [feature["name"] for feature in schema["item"]] == ["item_id", "popularity_1d", "popularity_3d"]


@pytest.mark.slow
def test_rows_before_the_oldest_snapshot_do_not_see_their_labels(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = write_world(spark, tmp_path)
    for ds in (BEFORE, *DAYS[:2]):
        warehouse.delete(f"{warehouse.path('items')}/ds={ds}")
    run_positives(warehouse, LAST, 3)
    for row in warehouse.read("item_features", LAST).collect():
        assert values(row) == [0, 0]

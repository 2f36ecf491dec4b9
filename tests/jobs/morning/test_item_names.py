"""The page names items by a title that the config names or that the table items has, else by id."""

import argparse
from typing import Any

import pytest

from jobs.common.config import Config
from jobs.common.runner import Context, log
from jobs.morning.item_names import names_of
from pipelines.storage.manifest import Recipe
from pipelines.storage.warehouse import Warehouse

DS = "2024-03-09"
ITEMS = "ds string, movie int, title string, label string, genres array<string>, colour string"


def context(warehouse: Warehouse, **report: Any) -> Context:
    item = [{"kind": "multi_categorical", "name": "genres"}, {"kind": "categorical", "name": "colour"}]
    config = {
        "inputs": {"items": {"columns": {"item_id": "movie"}}},
        "features": {"item": item},
        "report": report,
    }
    return Context(Config.model_validate(config), warehouse.spark, warehouse, argparse.Namespace(), DS)


def test_items_are_named(
    warehouse: Warehouse, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spark = warehouse.spark
    vocabulary = [("item_id", "7", 2), ("item_id", "8", 3), ("item_id", "9", 4), ("item.genres", "Drama", 2)]
    frame = spark.createDataFrame(vocabulary, "feature string, value string, index int")
    warehouse.write(frame, "vocabularies", DS, Recipe("", {}), facts={"sizes": {}})
    items = [(DS, 7, " Heat ", "L7", ["Crime", "Drama", "War", "Sport"], "red"), (DS, 8, None, "L8", None, None)]
    warehouse.write_input(spark.createDataFrame(items, ITEMS), "items")
    of_title = names_of(context(warehouse), [2, 3, 4, 99])
    assert of_title == {
        "2": {"id": "7", "title": "Heat", "about": "Crime, Drama, War · red"},
        "3": {"id": "8", "title": None, "about": ""},
        "4": {"id": "9", "title": None, "about": ""},
    }
    assert names_of(context(warehouse, item_title="label"), [2, 3])["3"]["title"] == "L8"
    monkeypatch.setattr(log, "propagate", True)  # A job that ran in this process switches it off.
    assert names_of(context(warehouse, item_title="headline"), [2])["2"]["title"] is None
    assert "items has no column headline (report.item_title)" in caplog.text

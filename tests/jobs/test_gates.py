"""Gates that hold a night against the nights before it."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from jobs.support.config import Config
from jobs.support.gates import Gate, _before_update, _day, _rows
from jobs.support.runner import Context
from pipelines.storage import Manifest, Recipe, Warehouse, shift

DS = "2024-03-09"


@pytest.fixture
def context(spark: SparkSession, tmp_path: Path) -> Context:
    return Context(Config(), spark, Warehouse(spark, str(tmp_path)), argparse.Namespace(), DS)


def manifest(ds: str, rows: int = 0, **facts: Any) -> Manifest:
    return Manifest("any", ds, "", {}, rows, facts, "", "")


def leave(context: Context, table: str, days_ago: int, **facts: Any) -> None:
    """A partition of an earlier night, with these facts."""
    ds, warehouse = shift(DS, -days_ago), context.warehouse
    staging = warehouse.new_staging(table, ds)
    Path(staging.removeprefix("file://")).mkdir()
    warehouse.finish_folder(staging, table, ds, Recipe("", {}), facts)


def test_a_day_that_the_release_in_use_foresaw_far_worse_than_usual_is_refused(context: Context) -> None:
    assert list(_day(context, manifest(DS, day_recall=0.1), context.config.gates)) == []  # Nothing is usual yet.
    for days_ago, recall in enumerate((0.30, 0.28, None, 0.32, 0.9, 0.31, 0.29), 1):
        leave(context, "models", days_ago, day_recall=recall)
    (good,) = _day(context, manifest(DS, day_recall=0.2), context.config.gates)
    (bad,) = _day(context, manifest(DS, day_recall=0.15), context.config.gates)
    assert good.value == pytest.approx(0.2 / 0.305)
    assert good.passed
    assert not bad.passed
    assert "0.1500 on this day before training, and 0.3050 on the median of 6 nights" in bad.line()
    assert list(_day(context, manifest(DS, day_recall=None), context.config.gates)) == []


def test_a_night_with_less_than_half_of_the_usual_rows_is_refused(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {shift(DS, -1): 100, shift(DS, -2): 120, shift(DS, -3): 9000}
    nights = {
        ds: manifest(ds, count, bootstrap_days=30 if count == 9000 else 0) for ds, count in rows.items()
    }  # The first night read a month: it says nothing of a day.
    monkeypatch.setattr(context.warehouse, "manifest", lambda table, ds: nights.get(ds))
    asked = [
        list(_rows(context, manifest(DS, count, bootstrap_days=0), context.config.gates)) for count in (109, 60, 54)
    ]
    assert [gate.passed for (gate,) in asked] == [True, True, False]
    assert "against 110, the median of 2 nights" in asked[-1][0].line()
    assert list(_rows(context, manifest(DS, 1, bootstrap_days=30), context.config.gates)) == []


def test_updates_that_have_surely_lost_recall_are_refused(context: Context) -> None:
    def gates(**told: float) -> list[Gate]:
        return list(_before_update(context, manifest(DS, within_day=told)))

    assert gates(recall=0.2) == []  # The first of the day: nothing was updated yet.
    assert [gate.passed for gate in gates(recall=0.2, night=0.2, loss=0.004)] == [True]
    assert [gate.passed for gate in gates(recall=0.2, night=0.24, loss=0.02)] == [False]


def test_a_value_that_is_no_number_never_passes() -> None:
    assert not Gate("x", float("nan"), 0.5, True, "").passed
    assert not Gate("x", float("nan"), 0.5, False, "").passed

"""Gates that compare a night with the nights before it."""

import argparse
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from jobs.common.config import Config, Gates
from jobs.common.runner import Context
from jobs.release import comparison
from jobs.release.comparison import Comparison, _beats_popularity, _slow, compare
from jobs.release.gates import _before_update, _day, _rows
from jobs.release.verdict import Gate
from model.evaluation.release_recall import RecallResult
from model.serving.release import Release
from pipelines.config import Inputs, Positives
from pipelines.day_events import day_events, popular_items
from pipelines.night import Night
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest, Recipe
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, LENGTH, SECOND, logs

DS = "2024-03-09"


@pytest.fixture
def context(spark: SparkSession, tmp_path: Path) -> Context:
    return Context(Config(), spark, Warehouse(spark, str(tmp_path)), argparse.Namespace(), DS)


def manifest(ds: str, rows: int = 0, **facts: Any) -> Manifest:
    return Manifest("any", ds, "", {}, rows, facts, "", "")


def write_partition(context: Context, table: str, days_ago: int, **facts: Any) -> None:
    """Write an empty partition of an earlier night with these facts in its manifest."""
    ds, warehouse = shift(DS, -days_ago), context.warehouse
    staging = warehouse.new_staging(table, ds)
    Path(staging.removeprefix("file://")).mkdir()
    warehouse.finish_folder(staging, table, ds, Recipe("", {}), facts)


def test_a_day_on_which_the_current_release_has_unusually_low_recall_is_refused(context: Context) -> None:
    assert list(_day(context, manifest(DS, day_recall=0.1), context.config.gates)) == []  # no earlier nights
    for days_ago, recall in enumerate((0.30, 0.28, None, 0.32, 0.9, 0.31, 0.29), 1):
        write_partition(context, "models", days_ago, day_recall=recall)
    (good,) = _day(context, manifest(DS, day_recall=0.2), context.config.gates)
    (bad,) = _day(context, manifest(DS, day_recall=0.15), context.config.gates)
    assert good.value == pytest.approx(0.2 / 0.305)
    assert good.passed
    assert not bad.passed
    assert "0.1500 on this day before training; the median of 6 nights is 0.3050" in bad.line()
    assert list(_day(context, manifest(DS, day_recall=None), context.config.gates)) == []


def test_a_night_with_less_than_half_of_the_usual_rows_is_refused(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {shift(DS, -1): 100, shift(DS, -2): 120, shift(DS, -3): 9000}
    nights = {
        ds: manifest(ds, count, bootstrap_days=30 if count == 9000 else 0) for ds, count in rows.items()
    }  # the bootstrap read a month, so its rows do not count
    monkeypatch.setattr(context.warehouse, "manifest", lambda table, ds: nights.get(ds))
    asked = [
        list(_rows(context, manifest(DS, count, bootstrap_days=0), context.config.gates)) for count in (109, 60, 54)
    ]
    assert [gate.passed for (gate,) in asked] == [True, True, False]
    assert "against 110, the median of 2 nights" in asked[-1][0].line()
    assert list(_rows(context, manifest(DS, 1, bootstrap_days=30), context.config.gates)) == []


def test_updates_with_a_significant_loss_of_recall_are_refused(context: Context) -> None:
    def gates(**recalls: float) -> list[Gate]:
        return list(_before_update(context, manifest(DS, within_day=recalls)))

    assert gates(recall=0.2) == []  # the first update of the day has nothing to compare with
    assert [gate.passed for gate in gates(recall=0.2, night=0.2, loss=0.004)] == [True]
    assert [gate.passed for gate in gates(recall=0.2, night=0.24, loss=0.02)] == [False]


def test_nan_never_passes_a_gate() -> None:
    assert not Gate("x", float("nan"), 0.5, True, "").passed
    assert not Gate("x", float("nan"), 0.5, False, "").passed


def examination(recalled: float, users: int = 400, seed: int = 0) -> RecallResult:
    """The recall of users with one event each; `recalled` is the share of events that are recalled."""
    hits = (np.random.default_rng(seed).random(users) < recalled).astype(float)
    return RecallResult(hits, np.arange(users), 0.5)


@pytest.mark.parametrize(("model", "popularity", "passed"), [(0.3, 0.2, True), (0.2, 0.2, True), (0.1, 0.2, False)])
def test_a_release_that_is_significantly_worse_than_popularity_is_refused(
    model: float, popularity: float, passed: bool
) -> None:
    gate = _beats_popularity(examination(model), examination(popularity, seed=1), 7, Gates(), 17)
    assert gate.passed is passed
    assert "(over 7 days, the best window" in gate.line()


def test_small_losses_that_add_up_over_the_nights_are_refused(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = [("2024-03-02", 1.4), ("2024-03-05", 1.9), ("2024-03-08", 1.6)]
    popular = examination(0.1, users=4000, seed=1)
    monkeypatch.setattr(comparison, "_records", lambda *_: iter(past))
    good, bad = (_slow(context, Comparison(), examination(recall, users=4000), popular) for recall in (0.18, 0.13))
    assert [[gate.passed for gate in result.gates] for result in (good, bad)] == [[True], [False]]
    assert "against 2024-03-05, the best of the last 14 nights" in bad.gates[0].line()
    assert good.record is not None
    assert good.record["low"] < good.record["ratio"] < good.record["high"]
    monkeypatch.setattr(comparison, "_records", lambda *_: iter([]))
    first = _slow(context, Comparison(), examination(0.13, users=4000), popular)
    assert (first.gates, first.record) == ([], bad.record)  # no earlier night to compare with; the figure is recorded
    nothing = _slow(context, Comparison(), examination(0.13), examination(0.0))
    assert nothing.notes == ["recent popularity recalls hardly any held-out event: slow_loss passes unchecked"]


def test_too_few_users_and_no_held_out_events_pass_with_a_note(nights: Warehouse) -> None:
    config = Config(features=CONFIG.features, positives=CONFIG.positives)
    of_night = Context(config, nights.spark, nights, argparse.Namespace(), SECOND)
    result = compare(of_night, Release("r", "", {}), None)
    assert [gate.name for gate in result.gates] == ["unknown_users"]
    assert "fewer than gates.least_users = 100" in result.notes[0]
    no_holdout = replace(of_night, config=Config(features=CONFIG.features, positives=Positives(valid_hours=0)))
    result = compare(no_holdout, Release("r", "", {}), None)
    assert result.gates == []
    assert "set positives.valid_hours" in result.notes[0]


@pytest.mark.parametrize("new_only", [True, False])
def test_day_events_have_the_state_of_their_user_before_each_event(nights: Warehouse, new_only: bool) -> None:
    """All positives after the cut, also dropped ones, with the items that the user had strictly before each event."""
    night = Night.open(nights, Inputs(), SECOND, 17)
    cut = "2024-03-03 14:00:00"
    rows = day_events(night, CONFIG.features, 500, since=cut, new_items_only=new_only).collect()
    index = {r["item_id"]: r["item_index"] for r in nights.read("item_stats", SECOND).collect()}
    clicks = {(r[1], index[str(r[2])], r[3]) for r in logs()[0] if r[4] == "click"}
    late = [(user, item, at) for user, item, at in clicks if at >= datetime.fromisoformat(cut)]
    had = {(u, i, at): {item for user, item, then in clicks if user == u and then < at} for u, i, at in late}
    expected = sorted((user, item, sorted(had[user, item, at])) for user, item, at in late)
    if new_only:
        expected = [row for row in expected if row[1] not in row[2]]
    assert sorted((r["user_id"], r["item_index"], sorted(r["had"])) for r in rows) == expected
    for row in rows:
        assert [item for item in row["history"] if item] == [*row["had"]][-LENGTH:] or len(row["had"]) > LENGTH
    dropped = nights.read("positives", SECOND).where("dropped IS NOT NULL").count()
    assert dropped > 0
    assert len(day_events(night, CONFIG.features, 3, since=cut, new_items_only=new_only).collect()) == 3


def test_popularity_does_not_count_the_events_that_it_is_evaluated_on(nights: Warehouse) -> None:
    night = Night.open(nights, Inputs(), SECOND, 17)
    cut = "2024-03-03 14:00:00"
    stats = {r["item_id"]: r["item_index"] for r in nights.read("item_stats", SECOND).collect()}
    rows = popular_items(night, [1, 2], 10, since=cut).sort("window_days", "rank").collect()
    for days, first in ((1, datetime(2024, 3, 3)), (2, datetime(2024, 3, 2))):
        counts: dict[str, int] = {}
        for _, _, item, at, action, _ in logs()[0]:
            if action == "click" and first <= at < datetime.fromisoformat(cut):
                counts[str(item)] = counts.get(str(item), 0) + 1
        ranked = sorted((-count, stats[item]) for item, count in counts.items())
        assert [r["item_index"] for r in rows if r["window_days"] == days] == [item for _, item in ranked[:10]]

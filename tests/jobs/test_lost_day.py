"""A day without interactions: its night carries everything forward, and the next night is an ordinary one."""

import shutil
from collections import Counter

import pytest

from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun

THIRD = "2024-03-06"
LOGS = ("interactions", "ranking_logs")


@pytest.fixture(scope="module")
def lost(first_night: NightlyRun, tmp_path_factory: pytest.TempPathFactory) -> NightlyRun:
    """One night, and a second day whose logs never came."""
    nightly_run = first_night.copy(tmp_path_factory.mktemp("lost"))
    for table in LOGS:
        shutil.rmtree(nightly_run.warehouse / table / f"ds={SECOND}")
    return nightly_run


def nightly(nightly_run: NightlyRun, ds: str, *flags: str, code: int = 0) -> str:
    return nightly_run.run("nightly", "--ds", ds, *flags, code=code)


def test_a_day_without_data_is_carried_forward_and_the_next_night_is_an_ordinary_one(lost: NightlyRun) -> None:
    said = nightly(lost, SECOND, code=3)
    assert f"has no partition for ds={SECOND}" in said
    assert "--no-data" in said
    release = lost.current()

    said = nightly(lost, SECOND, "--no-data")
    assert f"state and model are those of {FIRST}" in said
    for table in ("vocabularies", "user_histories", "item_stats", "item_features"):
        assert Counter(map(repr, lost.rows(table, SECOND))) == Counter(map(repr, lost.rows(table, FIRST))), table
        assert lost.manifest(table, SECOND)["facts"]["carried_from"] == FIRST
        assert lost.manifest(table, SECOND)["lineage"] == lost.manifest(table, FIRST)["lineage"] != ""
    waiting = {row["row_key"] for row in lost.rows("positives", FIRST) if row["split"] == "valid"}
    assert {row["row_key"] for row in lost.rows("positives", SECOND)} == waiting != set()
    model = lost.manifest("models", SECOND)["facts"]
    assert model["carried_from"] == FIRST
    assert "day_recall" not in model
    assert model["content"] == lost.manifest("models", FIRST)["facts"]["content"]
    assert lost.current() == release, "nothing new is published"
    assert "already carried forward" in nightly(lost, SECOND, "--no-data")
    report = lost.run("report", "--from", FIRST, "--to", SECOND)
    assert f"no data: as {FIRST}" in report

    nightly(lost, THIRD)
    assert lost.current().startswith(THIRD)
    assert lost.manifest("models", THIRD)["lineage"] == lost.manifest("models", FIRST)["lineage"]


def test_a_day_with_data_is_not_thrown_away(lost: NightlyRun) -> None:
    said = nightly(lost, THIRD, "--no-data", code=2)
    rows = len(lost.rows("interactions", THIRD))
    assert f"table interactions has {rows:,} rows for ds={THIRD}" in said


@pytest.mark.parametrize("flags", [("--bootstrap-days", "2"), ("--from", SECOND, "--to", THIRD)])
def test_no_data_is_for_one_day_with_a_night_before_it(lost: NightlyRun, flags: tuple[str, ...]) -> None:
    day = () if "--from" in flags else ("--ds", SECOND)
    said = lost.run("nightly", *day, "--no-data", *flags, code=2)
    assert "--no-data is for one day" in said

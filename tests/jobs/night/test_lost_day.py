"""A day without logs: `--no-data` carries tables and model forward, and the next night is built as usual."""

import shutil
from collections import Counter

import pytest

from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun

THIRD = "2024-03-06"
LOGS = ("interactions", "ranking_logs")


@pytest.fixture(scope="module")
def lost(first_night_copy: NightlyRun) -> NightlyRun:
    """The first night, and a second day without logs."""
    for table in LOGS:
        shutil.rmtree(first_night_copy.warehouse / table / f"ds={SECOND}")
    return first_night_copy


@pytest.fixture(scope="module")
def carried(lost: NightlyRun) -> tuple[NightlyRun, str, str]:
    """The second night with `--no-data`: the run, the output of the job, and the release that was current before."""
    release = lost.current()
    return lost, lost.run("nightly", "--ds", SECOND, "--no-data"), release


@pytest.mark.parametrize("flags", [("--bootstrap-days", "2"), ("--from", SECOND, "--to", THIRD)])
def test_no_data_is_refused_for_a_bootstrap_and_for_several_days(lost: NightlyRun, flags: tuple[str, ...]) -> None:
    day = () if "--from" in flags else ("--ds", SECOND)
    assert "--no-data is for one day" in lost.run("nightly", *day, "--no-data", *flags, code=2)


def test_a_day_without_logs_is_refused_and_the_error_names_no_data(lost: NightlyRun) -> None:
    output = lost.run("nightly", "--ds", SECOND, code=3)
    assert f"has no partition for ds={SECOND}" in output
    assert "--no-data" in output


@pytest.mark.slow
def test_tables_are_carried_forward(carried: tuple[NightlyRun, str, str]) -> None:
    run, output, _ = carried
    assert f"state and model are those of {FIRST}" in output
    for table in ("vocabularies", "user_histories", "item_stats", "item_features"):
        assert Counter(map(repr, run.rows(table, SECOND))) == Counter(map(repr, run.rows(table, FIRST))), table
        assert run.manifest(table, SECOND)["facts"]["carried_from"] == FIRST
        assert run.manifest(table, SECOND)["lineage"] == run.manifest(table, FIRST)["lineage"] != ""
    held_back = {row["row_key"] for row in run.rows("positives", FIRST) if row["split"] == "valid"}
    assert {row["row_key"] for row in run.rows("positives", SECOND)} == held_back != set()


@pytest.mark.slow
def test_the_model_is_carried_forward_and_no_release_is_published(carried: tuple[NightlyRun, str, str]) -> None:
    run, _, release = carried
    model = run.manifest("models", SECOND)["facts"]
    assert model["carried_from"] == FIRST
    assert "day_recall" not in model
    assert model["content"] == run.manifest("models", FIRST)["facts"]["content"]
    assert run.current() == release


@pytest.mark.slow
def test_a_day_that_is_carried_forward_is_done(carried: tuple[NightlyRun, str, str]) -> None:
    run, *_ = carried
    assert "already carried forward" in run.run("nightly", "--ds", SECOND, "--no-data")
    assert f"no data: as {FIRST}" in run.run("report", "--from", FIRST, "--to", SECOND)


@pytest.mark.slow
def test_the_night_after_a_lost_day_is_built_as_usual(carried: tuple[NightlyRun, str, str]) -> None:
    run, *_ = carried
    run.run("nightly", "--ds", THIRD)
    assert run.current().startswith(THIRD)
    assert run.manifest("models", THIRD)["lineage"] == run.manifest("models", FIRST)["lineage"]


@pytest.mark.slow
def test_no_data_is_refused_for_a_day_with_data(carried: tuple[NightlyRun, str, str]) -> None:
    run, *_ = carried
    output = run.run("nightly", "--ds", THIRD, "--no-data", code=2)
    rows = len(run.rows("interactions", THIRD))
    assert f"table interactions has {rows:,} rows for ds={THIRD}" in output

"""What a person sees in a real browser: the table of nights, the page of a night in MLflow, and its report."""

from pathlib import Path

import pytest

from docs.images.make import shoot_report
from jobs.morning.night_run import describe_night
from jobs.morning.page import write_page
from jobs.tracking.address import nights_link
from jobs.tracking.job_run import JobRun
from jobs.tracking.tracker import Tracker
from pipelines.storage.dates import days_back, shift
from tests.browser import Browser, browser, chromium, mlflow_ui
from tests.jobs.morning.nights import DS, PASSES, REFUSES, context, release_at, write_nights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")]
COLUMNS = ["verdict", "eval/recall_at_50", "eval/change_on_last_night", "eval/best_baseline", "samples/rows"]
COLUMNS += ["train/loss", "gates", "release_id", "Duration"]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files and the MLflow record of four nights. A gate refused the last one."""
    root = tmp_path_factory.mktemp("pages")
    write_nights(root, gates=(PASSES, REFUSES))
    for ds in days_back(DS, 4):
        night = context(root, ds)
        tracker = Tracker(night.config, night.warehouse, ds)
        with tracker.job("train") as job:
            job.metrics({"train/epoch/loss": 5.7})
            job.outcome = "loss 5.7000"
        describe_night(night, tracker)
        write_page(night)
        tracker.close_night("FINISHED")
    return root


def test_the_pages_show_verdict_columns_and_report(nights: Path, tmp_path: Path) -> None:
    night = context(nights)
    tracker = Tracker(night.config, night.warehouse, DS)
    before, experiment = shift(DS, -1), tracker.experiment
    with mlflow_ui(tracker.uri) as ui, browser() as tab:
        tab.open(nights_link(ui, experiment), "Refused: recall_loss", width=1900, height=500)
        for column in COLUMNS:  # The table draws its last columns after its rows.
            tab.wait_for(column)
        shown = tab.text()
        assert f"night {before}" in shown
        assert "train: loss" not in shown, "the table has nights only"
        published = _night(tab, ui, nights, before, "Published")
        assert f"Release {release_at(nights, before)}: Recall@50 0.420" in published
        assert "train: loss 5.7000" in published
        assert tab.click(f"a[href$='{_charts(nights, before)}']"), "one click from the page of the night"
        tab.wait_for("train/epoch")
        refused = _night(tab, ui, nights, DS, "Refused: recall_loss")
        assert refused.index("Cause") < refused.index("Remedy") < refused.index("Samples")
        shoot_report(tab, nights, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report-wide.png", "report-narrow.png"}


def _charts(root: Path, ds: str) -> str:
    """The link to the charts of a night's training."""
    tracker, run = _run(root, ds)
    (train,) = tracker.steps(run)
    return train.link


def _night(tab: Browser, ui: str, root: Path, ds: str, verdict: str) -> str:
    """The text of the page of a night in MLflow."""
    tracker, run = _run(root, ds)
    tab.open(f"{ui}/{tracker.link_of(run.run_id)}", verdict)
    return tab.text()


def _run(root: Path, ds: str) -> tuple[Tracker, JobRun]:
    """The run of a night, and the tracker that found it."""
    night = context(root, ds)
    tracker = Tracker(night.config, night.warehouse, ds)
    run = tracker.night_run()
    assert run is not None
    return tracker, run

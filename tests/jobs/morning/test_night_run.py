"""What the run of a night in MLflow says: verdict, figures beside those of the night before, cause and remedy."""

import re
import shutil
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from jobs.morning.night_run import describe_night
from jobs.morning.record import Failure
from jobs.tracking.saved_view import COLUMNS, TAG
from jobs.tracking.tracker import Tracker
from pipelines.storage.dates import shift
from tests.jobs.morning.nights import DS, PASSES, REFUSES, context, release_at, write_nights, write_record

BEFORE = shift(DS, -1)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow store. To create one takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def root(tmp_path: Path, empty_store: Path) -> Path:
    """The folder of a warehouse, with an MLflow store."""
    shutil.copy(empty_store, tmp_path)
    return tmp_path


def described(root: Path, ds: str = DS, failure: Failure | None = None) -> list[Run]:
    """The runs of night `ds`, after the night of these files was described in MLflow."""
    night = context(root, ds)
    tracker = Tracker(night.config, night.warehouse, ds)
    describe_night(night, tracker, failure)
    tracker.close_night("FAILED" if failure else "FINISHED")
    return runs_of(tracker, ds)


def runs_of(tracker: Tracker, ds: str) -> list[Run]:
    return MlflowClient(tracker.uri).search_runs([tracker.experiment], f"tags.`nightjar.night` = '{ds}'")


def start(root: Path, ds: str) -> Tracker:
    """A night of which one job has run."""
    night = context(root, ds)
    tracker = Tracker(night.config, night.warehouse, ds)
    with tracker.job("train") as job:
        job.outcome = "loss 5.7000"
    tracker.close_night("FINISHED")
    return tracker


def test_a_published_night_has_its_figures_in_groups_and_its_verdict_first(root: Path) -> None:
    write_nights(root)
    start(root, BEFORE)
    (run,) = described(root, BEFORE)
    metrics, tags = run.data.metrics, run.data.tags
    assert {name.partition("/")[0] for name in metrics} == {"samples", "train", "eval", "index", "gates"}
    assert 18 <= len(metrics) <= 30
    assert metrics["eval/recall_at_50"] == pytest.approx(0.42)
    assert metrics["eval/change_on_last_night"] == pytest.approx(0.01)
    assert metrics["eval/above_best_baseline"] == pytest.approx(0.42 - 0.33)
    assert (tags["verdict"], tags["gates"], tags["release_id"]) == ("Published", "1 of 1", release_at(root, BEFORE))
    text = tags["mlflow.note.content"]
    title, _, rest = text.partition("\n\n")
    assert re.fullmatch(r"## Published · \[training charts\]\(#/experiments/\d+/runs/\w+/model-metrics\)", title)
    assert rest.startswith(f"Release {release_at(root, BEFORE)}: Recall@50 0.420 [")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip().partition(" ")[0] for row in rows[2:]] == [
        "Samples", "Training", "Recall@50", "Best", "Recall@50", "Gates",
    ]  # fmt: skip
    assert f"is of the release of this night, after {BEFORE}: positives of the next day, items new to the user." in text
    assert "before training" in rows[6]
    assert "[train: loss 5.7000](#/experiments/" in text


def test_every_column_of_the_saved_view_has_a_value(root: Path) -> None:
    write_nights(root)
    start(root, BEFORE)
    (run,) = described(root, BEFORE)
    for column in COLUMNS:
        kind, name = column.replace("at_K", "at_50").split(".", 1)
        assert name.strip("`") in getattr(run.data, kind), column
    experiment = MlflowClient(f"sqlite:///{root}/mlflow.db").get_experiment(run.info.experiment_id)
    assert "metrics.`eval/recall_at_50`" in experiment.tags[TAG]


def test_the_newest_night_has_the_figure_of_the_release_before_it(root: Path) -> None:
    write_nights(root)
    start(root, DS)
    (run,) = described(root)
    assert run.data.tags["evaluated_night"] == BEFORE
    assert run.data.metrics["eval/recall_at_50"] == pytest.approx(0.42)
    assert (
        f"Recall@50 is of release {release_at(root, BEFORE)}, because that of this night has no figure yet"
        in run.data.tags["mlflow.note.content"]
    )


def test_a_refused_night_says_cause_and_remedy_first(root: Path) -> None:
    write_nights(root, gates=(PASSES, REFUSES))
    start(root, DS)
    (run,) = described(root)
    text = run.data.tags["mlflow.note.content"]
    assert run.data.tags["verdict"] == "Refused: recall_loss"
    assert run.data.tags["gates"] == "1 of 2"
    assert run.data.metrics["gates/refused"] == 1
    places = [text.index(part) for part in ("## Refused: recall_loss", "**Cause**", "**Remedy**", "| Samples |")]
    assert places == sorted(places)
    assert "recall_loss 0.21 (must be <= 0.05): REFUSED" in text
    assert f"python -m jobs.nightly --config conf/my.yaml --ds {DS}" in text


def test_a_night_that_failed_before_its_first_run_gets_one_that_says_why(root: Path) -> None:
    write_nights(root, nights=1)
    lost = shift(DS, 1)
    failure = Failure("build_positives", "table interactions has no partition", 3, f"{lost}T03:00:00+00:00")
    write_record(root, lost, {}, failure)
    (run,) = described(root, lost, failure)
    assert (run.info.status, run.data.tags["verdict"]) == ("FAILED", "Failed: build_positives")
    assert "- table interactions has no partition" in run.data.tags["mlflow.note.content"]


def test_a_mistake_in_the_command_leaves_no_run(root: Path) -> None:
    write_nights(root, nights=1)
    assert described(root, failure=Failure("train", "cannot continue", 2, "")) == []


def test_a_night_that_runs_again_has_the_figures_of_the_steps_that_it_skips(root: Path) -> None:
    write_nights(root)
    start(root, BEFORE)
    tracker = start(root, BEFORE)
    described(root, BEFORE)
    newest = runs_of(tracker, BEFORE)[0]
    assert newest.data.tags["verdict"] == "Published"
    assert {"samples/rows", "train/loss", "eval/recall_at_50", "gates/passed"} <= newest.data.metrics.keys()


def test_a_published_night_whose_second_run_failed_says_both(root: Path) -> None:
    write_nights(root)
    start(root, BEFORE)
    failure = Failure("train", "the disk is full", 1, f"{shift(DS, 30)}T03:00:00+00:00")
    write_record(root, BEFORE, {}, failure)
    (newest, _) = described(root, BEFORE, failure)
    assert newest.data.tags["verdict"] == "Published, then failed: train"
    assert "the disk is full" in newest.data.tags["mlflow.note.content"]

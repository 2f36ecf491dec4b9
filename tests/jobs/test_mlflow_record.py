"""What two nights leave in MLflow: runs, metrics, plots, tables and the model version of the current release."""

import json
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.jobs.nightly_run import SECOND, NightlyRun

JOBS = {"build_positives", "build_negatives", "train", "evaluate", "publish_items"}


@dataclass(frozen=True)
class Record:
    """MLflow runs of the second night: the parent, and its children by job."""

    client: MlflowClient
    experiment: str
    night: Run
    jobs: dict[str, Run]

    def plots(self, job: str) -> set[str]:
        artifacts = self.client.list_artifacts(self.jobs[job].info.run_id, "plots")
        return {Path(artifact.path).stem for artifact in artifacts}


@pytest.fixture(scope="module")
def record(nightly_run: NightlyRun) -> Record:
    client = MlflowClient(nightly_run.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    # Runs that skipped all their steps leave nothing in MLflow.
    (night,) = [run for run in runs if run.data.tags.get("nightjar.night") == SECOND]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == night.info.run_id]
    return Record(
        client, experiment.experiment_id, night, {child.data.tags["nightjar.job"]: child for child in children}
    )


def test_a_night_is_one_run_with_a_child_run_per_job(record: Record) -> None:
    assert record.night.info.status == "FINISHED"
    assert record.night.data.params["negatives.uniform"] == "2"
    assert {"loss", "two_tower.recall_at_50", "best_reachable.recall_at_50"} <= record.night.data.metrics.keys()
    assert record.jobs.keys() == JOBS
    assert all(run.data.tags["ds"] == SECOND and run.data.tags["code_version"] for run in record.jobs.values())


def test_training_logs_its_inputs_and_metrics_per_step(record: Record) -> None:
    train = record.jobs["train"]
    assert {entry.dataset.name for entry in train.inputs.dataset_inputs} >= {"samples", "item_features"}
    assert len({metric.step for metric in record.client.get_metric_history(train.info.run_id, "loss")}) > 1
    assert {"self_loss", "weight.user.history", "weight.item.price"} <= train.data.metrics.keys()
    assert train.data.metrics["self_loss"] > 0


@pytest.mark.parametrize(
    ("job", "plots"),
    [
        ("build_positives", {"popularity_before_after", "input_rows", "null_shares"}),
        ("build_negatives", {"negatives_by_kind", "input_rows", "null_shares"}),
        ("train", {"loss", "tower_weights", "feature_information"}),
        ("evaluate", {"recall_at_50_by_third"}),
        ("publish_items", {"index_sweep"}),
    ],
)
def test_each_job_logs_its_plots(record: Record, job: str, plots: set[str]) -> None:
    assert plots <= record.plots(job)


def test_the_recall_of_the_index_is_the_best_of_its_sweep(record: Record) -> None:
    run = record.jobs["publish_items"]
    sweep = record.client.get_metric_history(run.info.run_id, "index.sweep.recall")
    assert max(metric.value for metric in sweep) == run.data.metrics["index.recall_at_20"] >= 0.5


@pytest.mark.parametrize(
    ("job", "tables"), [("build_positives", {"interactions", "items"}), ("build_negatives", {"ranking_logs"})]
)
def test_checks_of_input_tables_are_logged(record: Record, job: str, tables: set[str]) -> None:
    run = record.jobs[job]
    checks = json.loads(Path(record.client.download_artifacts(run.info.run_id, "tables/checks.json")).read_text())
    assert checks["columns"] == ["table", "check", "found", "limit"]
    assert tables <= {row[0] for row in checks["data"]}
    assert all(run.data.metrics[f"input.{name}.bad"] == 0 < run.data.metrics[f"input.{name}.rows"] for name in tables)


def test_sampling_logs_skew_and_the_share_of_fallbacks(record: Record) -> None:
    assert record.jobs["build_negatives"].data.metrics["fallback_share"] < 1
    assert record.jobs["build_positives"].data.metrics["skew.heaviest_item_rows"] >= 1


def test_the_evaluation_logs_its_question_and_the_margin_over_the_best_baseline(record: Record) -> None:
    for run in (record.jobs["evaluate"], record.night):
        assert run.data.tags["question"] == "positives of the next day, items new to the user"
        assert run.data.tags["best_baseline"] in ("popularity", "item_cf")
        above = [run.data.metrics[f"two_tower.recall_at_50.above_best_baseline{end}"] for end in (".low", "", ".high")]
        assert above == sorted(above)


def test_the_champion_is_the_current_release(record: Record, nightly_run: NightlyRun) -> None:
    champion = record.client.get_model_version_by_alias("nightjar", "champion")
    assert champion.tags["release_id"] == nightly_run.current()


def test_a_release_is_tested_on_a_day_before_the_day_is_trained_on(record: Record) -> None:
    (run,) = record.client.search_runs([record.experiment], "tags.`nightjar.record` = 'true'")
    (point,) = record.client.get_metric_history(run.info.run_id, "test_then_train.recall_at_50")
    assert date(1970, 1, 1) + timedelta(days=point.step) == date.fromisoformat(SECOND)
    assert 0.05 < point.value < 1

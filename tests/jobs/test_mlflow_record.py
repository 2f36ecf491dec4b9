"""What two nights leave in MLflow: runs, metrics, plots, tables and the model version of the current release."""

import json
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun

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
    assert record.jobs.keys() == JOBS
    assert all(run.data.tags["ds"] == SECOND and run.data.tags["code_version"] for run in record.jobs.values())


def test_training_logs_its_inputs_and_metrics_per_step(record: Record) -> None:
    train = record.jobs["train"]
    assert {entry.dataset.name for entry in train.inputs.dataset_inputs} >= {"samples", "item_features"}
    metrics = train.data.metrics
    by_step, by_epoch = (
        {point.step for point in record.client.get_metric_history(train.info.run_id, f"train/{by}/loss")}
        for by in ("step", "epoch")
    )
    assert len(by_step) > 1
    assert by_epoch == {1}
    assert max(by_step) == metrics["train/steps"]
    assert {"train/epoch/weight/user.history", "train/epoch/weight/item.price"} <= metrics.keys()
    assert metrics["train/step/self_loss"] > 0
    assert "loss" not in metrics, "a mean over an epoch is not a point of the curve by step"


def test_training_logs_system_metrics(record: Record) -> None:
    metrics = record.jobs["train"].data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
    assert "system/cpu_utilization_percentage" in metrics


def test_runs_of_jobs_are_named_by_their_outcome(record: Record) -> None:
    names = {job: run.info.run_name for job, run in record.jobs.items()}
    assert re.fullmatch(r"train: loss [\d.]+, [\d,]+ rows in [\d,]+ steps", names["train"])
    assert re.fullmatch(r"evaluate: Recall@50 [\d.]+, [+-][\d.]+ on (popularity|item_cf)", names["evaluate"])
    assert re.fullmatch(rf"publish_items: published {SECOND}-\w+", names["publish_items"])


def test_datasets_have_path_columns_and_counts(record: Record, nightly_run: NightlyRun) -> None:
    """The datasets of the night's own run: what went in, without opening the run of a job."""
    datasets = {entry.dataset.name: entry.dataset for entry in record.night.inputs.dataset_inputs}
    assert {"interactions", "ranking_logs", "users", "items", "samples"} <= datasets.keys()
    interactions = datasets["interactions"]
    columns = {column["name"]: column["type"] for column in json.loads(interactions.schema)["mlflow_colspec"]}
    assert columns["action"] == "string"
    assert json.loads(interactions.source)["uri"] == f"file://{nightly_run.warehouse}/interactions"
    by_name = {entry.dataset.name: entry.dataset for entry in record.jobs["train"].inputs.dataset_inputs}
    samples = by_name["samples"]
    columns = {column["name"]: column["type"] for column in json.loads(samples.schema)["mlflow_colspec"]}
    assert columns["history"].startswith("list<")
    assert json.loads(samples.profile)["rows"] == nightly_run.manifest("samples", SECOND)["rows"]
    assert json.loads(samples.source)["uri"] == f"file://{nightly_run.warehouse}/samples/ds={SECOND}"


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
    measured, night = record.jobs["evaluate"].data.metrics, record.night.data.metrics
    above = [measured[f"two_tower.recall_at_50.above_best_baseline{end}"] for end in (".low", "", ".high")]
    assert above == sorted(above)
    assert night["eval/above_best_baseline"] == pytest.approx(above[1], abs=1e-4)
    assert night["eval/recall_at_50"] - night["eval/best_baseline"] == pytest.approx(above[1], abs=2e-4)


def test_the_run_of_a_night_has_its_verdict_and_figures_in_groups(record: Record, nightly_run: NightlyRun) -> None:
    tags, metrics = record.night.data.tags, record.night.data.metrics
    assert tags["verdict"] == "Published"
    assert tags["release_id"] == nightly_run.current()
    train = record.jobs["train"].info
    charts = f"#/experiments/{record.experiment}/runs/{train.run_id}/model-metrics"
    assert tags["mlflow.note.content"].startswith(f"## Published · [training charts]({charts})\n")
    assert f"[{train.run_name}]({charts})" in tags["mlflow.note.content"]
    assert {name.partition("/")[0] for name in metrics} == {"samples", "train", "eval", "index", "gates"}
    assert {"eval/best_reachable", "eval/change_on_last_night", "eval/recall_before_training"} <= metrics.keys()
    version = record.client.get_model_version_by_alias("nightjar", "champion")
    assert version.description.startswith(f"Release {nightly_run.current()}: Recall@50 ")
    assert float(version.tags["recall_at_50"]) == pytest.approx(metrics["eval/recall_at_50"], abs=1e-4)
    assert version.tags["gates"] == tags["gates"]


def test_the_champion_is_the_current_release(record: Record, nightly_run: NightlyRun) -> None:
    champion = record.client.get_model_version_by_alias("nightjar", "champion")
    assert champion.tags["release_id"] == nightly_run.current()


def test_each_night_is_a_logged_model_with_metrics_on_the_question_that_they_answer(
    record: Record, nightly_run: NightlyRun
) -> None:
    models = record.client.search_logged_models([record.experiment])
    assert {model.tags["ds"] for model in models} == {FIRST, SECOND}
    (model,) = [model for model in models if model.name == nightly_run.current()]
    assert model.source_run_id == record.night.info.run_id
    measured = {(metric.key, metric.dataset_name) for metric in model.metrics}
    question = "positives of the next day, items new to the user"
    assert {("recall_at_50", question), ("recall_at_50_of_item_cf", question), ("index/recall", None)} <= measured
    names = [metric.key for metric in model.metrics if metric.dataset_name == question]
    assert names[:2] == ["recall_at_50", "above_best_baseline"], "the first columns of the tab Models"
    digests = {m.dataset_digest for other in models for m in other.metrics if m.dataset_name == question}
    assert len(digests) == 1, "one column of the UI ranks all nights"
    champion = record.client.get_model_version_by_alias("nightjar", "champion")
    assert (champion.run_id, champion.source) == (record.night.info.run_id, model.artifact_location)
    files = [file.path for file in record.client.list_logged_model_artifacts(model.model_id)]
    assert {"MLmodel", "release.json"} <= set(files)


def test_a_release_is_tested_on_a_day_before_the_day_is_trained_on(record: Record) -> None:
    (run,) = record.client.search_runs([record.experiment], "tags.`nightjar.record` = 'true'")
    (point,) = record.client.get_metric_history(run.info.run_id, "test_then_train.recall_at_50")
    assert date(1970, 1, 1) + timedelta(days=point.step) == date.fromisoformat(SECOND)
    assert datetime.fromtimestamp(point.timestamp / 1000, timezone.utc).isoformat() == f"{SECOND}T00:00:00+00:00"
    assert 0.05 < point.value < 1

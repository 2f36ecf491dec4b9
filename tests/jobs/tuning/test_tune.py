"""The job tune on a small product: its figures are those of evaluate, MLflow has every trial, nights accept its config."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from jobs.common.config import load_config
from jobs.tuning.tuned_config import MARK
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, SECOND, NightlyRun, run_job

# A bad start: the rates are so low that the model hardly learns. Its release must still pass the gates.
POOR = {
    "embedding_learning_rate: 0.02}": "learning_rate: 0.000001, embedding_learning_rate: 0.000001} # too low",
    "gates: {least_users: 5": "gates: {least_users: 5, beats_popularity: 1",
    ", self_supervision: {weight: 0.05, items: 64}": "",
}


@pytest.mark.long
def test_tuning_is_judged_as_evaluate_judges_and_its_config_runs_a_night(tmp_path: Path) -> None:
    run = NightlyRun.simulate(tmp_path / "night")
    config = Path(run.config)
    text = config.read_text()
    for good, poor in POOR.items():
        assert text.count(good) == 1
        text = text.replace(good, poor)
    config.write_text(text)
    run.run("nightly", "--ds", FIRST, *BOOTSTRAP)
    for table in ("interactions", "ranking_logs"):  # A day after ds that nothing may read.
        (broken,) = (run.warehouse / table).glob("ds=2024-03-06")
        shutil.rmtree(broken)
        broken.mkdir()
        (broken / "part-0.parquet").write_text("not a Parquet file")

    output = run.run("tune", "--ds", SECOND, "--trials", "2", "--minutes", "30")
    assert "trial 0 (config): Recall@50" in output
    assert "min left" in output
    (study,) = (run.warehouse / "tune").glob(f"{SECOND}-*")
    evaluated = {
        row["k"]: row
        for row in run.rows("evaluations", FIRST)
        if (row["model"], row["metric"], row["slice"]) == ("two_tower", "recall", "all")
    }
    results = [json.loads(file.read_text()) for file in (study / "results").iterdir()]
    means = [sum(result["by_user"]) / len(result["by_user"]) for result in results]
    assert any(mean == pytest.approx(evaluated[50]["value"], abs=1e-6) for mean in means), "trial 0 is that night"
    assert {len(result["by_user"]) for result in results} == {evaluated[50]["users"]}

    again = run.run("tune", "--ds", SECOND, "--trials", "4", "--minutes", "30")
    assert "trial 0 " not in again, "the study continues"
    tuned = config.with_name("night.tuned.yaml")
    assert tuned.read_text().startswith(MARK)
    assert "# too low" in tuned.read_text()
    assert config.read_text() == text
    changed = load_config(str(tuned))
    assert changed.training.embedding_learning_rate > 1e-3, "the gain over the bad start is certain"
    assert "; Recall@50 0." in tuned.read_text()

    _check_record(run)

    flags = ("--config", str(tuned), "--set", f"warehouse={tmp_path / 'tuned'}")
    for table in ("interactions", "ranking_logs", "users", "items"):
        flags += ("--set", f"inputs.{table}.path={run.warehouse / table}")
    flags += ("--set", "evaluation.simulated_truth=false")
    run_job("nightly", "--ds", FIRST, *BOOTSTRAP, *flags)
    assert (tmp_path / "tuned/releases/current.json").exists()


def _check_record(night: NightlyRun) -> None:
    """The parent run has the gain and the plots; its children are the trials and the trainings of the final check."""
    client = MlflowClient(night.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    (parent,) = [run for run in runs if "nightjar.tuning" in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["recall_at_50.gain.low"] > 0
    plots = {Path(artifact.path).stem for artifact in client.list_artifacts(parent.info.run_id, "plots")}
    assert {"trials", "settings"} <= plots
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    trials = [run for run in children if "nightjar.trial" in run.data.tags]
    assert {run.data.tags["nightjar.trial"] for run in trials} == {"0", "1", "2", "3"}
    by_kind = {run.data.tags["kind"]: run for run in trials}
    assert by_kind["config"].data.params == {"changes": "none"}
    assert by_kind["defaults"].data.params["loss.temperature"] == "0.15"
    metrics = by_kind["config"].data.metrics
    assert metrics["recall_at_50.low"] < metrics["recall_at_50"] < metrics["recall_at_50.high"]
    epochs = client.get_metric_history(by_kind["config"].info.run_id, "recall_at_50.epoch")
    assert [point.step for point in epochs] == [1, 2, 3, 4]
    assert len([run for run in children if run.data.tags["kind"] == "check"]) in (4, 6)

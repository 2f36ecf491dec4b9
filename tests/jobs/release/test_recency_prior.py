"""The recency prior of a night: its choice, the release that includes it, and what the gates see of it."""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import evaluate, incremental, publish_items, recommend, report
from jobs.common.config import load_config
from jobs.common.runner import Context
from jobs.night.evaluations import recalls
from jobs.night.steps import as_job, open_night
from jobs.release.heldout import held_out_since
from jobs.release.item_embeddings import vector_batches
from jobs.release.recency_prior import index_before_holdout, prior_of, write_item_priors
from jobs.release.store import find_release, read_current
from model.serving.release import Release
from model.serving.retriever import Retriever
from pipelines.day_events import late_counts
from pipelines.positives.popularity import day_ordinal
from pipelines.storage.warehouse import Warehouse
from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun, rows_of
from tests.jobs.test_serving import requests_of

WITHOUT = ["loss.lift=false", "prior=null"]
FIXED = ["prior.beta=[1.5]", "prior.half_life_days=[2]", "index.factory=Flat"]
ContextOf = Callable[..., Context]


@pytest.fixture
def context_of(first_night: NightlyRun, spark: SparkSession, tmp_path: Path) -> ContextOf:
    """Makes a context of the first night from config overrides, on a copy of its warehouse."""
    shutil.copytree(first_night.warehouse, tmp_path / "w")

    def with_overrides(*overrides: str) -> Context:
        config = load_config(first_night.config, [f"warehouse={tmp_path / 'w'}", *overrides])
        return Context(config, spark, Warehouse(spark, config.warehouse), argparse.Namespace(), FIRST)

    return with_overrides


def publish(context: Context) -> Release:
    """Publish the night. Returns its release, which is current then."""
    as_job("publish_items", publish_items.run)(context)
    return find_release(context, read_current(context.warehouse).release_id)


def set_counts(context: Context, count: Callable[[Any], Any]) -> None:
    """Replace the counts of item_stats. `count` maps an item's number of held-out positives to its count of the day before."""
    warehouse = context.warehouse
    since = held_out_since(context)
    assert since is not None
    late = late_counts(open_night(context), since).withColumnRenamed("count", "late")
    stats = warehouse.read("item_stats", FIRST)
    rows = stats.join(late, on="item_index", how="left").fillna(0, ["late"])
    days = [F.lit(day_ordinal(FIRST) - 1), F.lit(day_ordinal(FIRST))]
    rows = rows.withColumn("day_ordinals", F.array(*days).cast("array<int>"))
    rows = rows.withColumn("day_counts", F.array(count(F.col("late")), F.col("late")).cast("array<long>"))
    overwrite(rows.select(*stats.columns), warehouse.path("item_stats", FIRST))


def overwrite(rows: DataFrame, uri: str) -> None:
    """Replace the files of a partition and keep its manifest."""
    folder = Path(uri.removeprefix("file://"))
    rows.coalesce(1).write.mode("overwrite").parquet(f"{uri}-new")
    for file in folder.glob("*.parquet"):
        file.unlink()
    for file in Path(f"{folder}-new").glob("*.parquet"):
        shutil.move(str(file), folder)
    rows.sparkSession.catalog.refreshByPath(uri)


def test_a_prior_is_chosen_where_recent_demand_predicts_and_not_where_it_misleads(context_of: ContextOf) -> None:
    context = context_of("gates.recall_at=20")
    for count, expected in ((lambda late: late * 200, True), (lambda late: (late == 0).cast("int") * 50, False)):
        set_counts(context, count)
        chosen = replace(context, config=context_of("gates.recall_at=20", "prior.beta=[0,1,4]").config)
        chosen.warehouse.remove("item_priors", FIRST)
        table = write_item_priors(chosen)
        assert table is not None
        prior = prior_of(table)
        recall = {point["beta"]: point["recall"] for point in prior["choice"]["grid"]}
        if expected:
            assert prior["beta"] > 0
            assert recall[prior["beta"]] > recall[0.0]
        else:
            assert prior["beta"] == 0
            assert recall[4.0] < recall[0.0]


@pytest.mark.slow
def test_all_readers_answer_with_the_prior_and_the_gates_do_not_count_held_out_events(
    context_of: ContextOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publish(context_of(*WITHOUT))
    context = context_of(*FIXED)
    release = publish(context)
    prior, folder = release.manifest["prior"], Path(release.uri.removeprefix("file://"))
    assert (prior["beta"], prior["half_life_days"], release.manifest["dim"]) == (1.5, 2.0, before.manifest["dim"] + 1)
    counts = {row["item_index"]: row for row in rows_of(tmp_path / "w" / "item_priors" / f"ds={FIRST}")}
    for row in rows_of(folder / "embeddings"):
        bonus = 1.5 * prior["temperature"] * np.log1p(counts[row["item_index"]]["recent_counts"][0] / 0.5)
        assert row["embedding"][-1] * prior["scale"] == pytest.approx(bonus, abs=1e-6)
    # The gates: the recall that the grid has measured with the counts from before the held-out part.
    (gate,) = [g for g in json.loads((folder / "gates.json").read_text())["gates"] if g["name"] == "beats_popularity"]
    (point,) = prior["choice"]["grid"]
    measured = re.search(r"model ([\d.]+),", gate["says"])
    assert measured is not None
    assert float(measured[1]) == pytest.approx(point["recall"], abs=5e-5)
    earlier = index_before_holdout(context, release, lambda: vector_batches(context), 17)
    only_prior = np.eye(earlier.d, dtype=np.float32)[-1:]
    largest, items = earlier.search(only_prior * prior["scale"], earlier.ntotal)
    for bonus, item in zip(largest[0], items[0], strict=True):
        known = np.log1p(counts[item]["counts_before_holdout"][0] / 0.5)
        assert bonus == pytest.approx(1.5 * prior["temperature"] * known, abs=1e-5)
    assert any(row["counts_before_holdout"] != row["recent_counts"] for row in counts.values())
    # Batch job, Retriever and pyfunc.
    args = ["--config", "x", "--ds", FIRST, "--k", "20", "--exclude-seen", "--output", str(tmp_path / "top")]
    recommend.run(replace(context, args=recommend._flags().parse_args(args)))
    copy = NightlyRun(tmp_path, "x")
    monkeypatch.setattr(NightlyRun, "warehouse", tmp_path / "w")
    users = sorted(int(row["user_id"]) for row in copy.rows("user_histories", FIRST))[::15]
    requests = requests_of(copy, users, FIRST)
    local = Retriever(str(folder)).retrieve(requests, 20, exclude_seen=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copy.tracking_uri)
    served = mlflow.pyfunc.load_model("models:/nightjar@champion").predict(requests, {"k": 20, "exclude_seen": True})
    for user, answer, by_pyfunc in zip(users, local, served, strict=True):
        batch = [row for row in rows_of(tmp_path / "top") if row["user_id"] == user]
        batch.sort(key=lambda row: row["rank"])
        assert answer.item_ids == by_pyfunc["item_ids"] == [row["item_id"] for row in batch]
        assert answer.scores == pytest.approx([row["score"] for row in batch], abs=1e-6)
        assert answer.scores == pytest.approx(by_pyfunc["scores"], abs=1e-6)
    # MLflow.
    client = MlflowClient(copy.tracking_uri)
    night = client.get_run(client.get_model_version_by_alias("nightjar", "champion").run_id)
    steps = f"tags.`mlflow.parentRunId` = '{night.info.run_id}' and tags.`nightjar.job` = 'publish_items'"
    run = client.search_runs([night.info.experiment_id], steps, max_results=1)[0]
    assert run.data.params["prior.beta"] == "1.5"
    assert run.data.metrics["prior.recall_at_50.beta_1.5"] == pytest.approx(point["recall"])
    # A second run changes nothing; without the prior, the release of before is current again.
    assert publish(context).manifest == release.manifest
    assert publish(context_of("loss.lift=false", "prior.beta=[0]")).manifest == before.manifest
    assert not (tmp_path / "w" / "item_priors" / f"ds={FIRST}").exists()


def test_evaluations_have_the_model_with_and_without_the_prior(
    context_of: ContextOf, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for context in (context_of(*WITHOUT), context_of(*FIXED)):
        as_job("evaluate", evaluate.run)(context)
        found.append(recalls(context, 50))
    without, measured = found
    assert measured["two_tower_without_prior"] == pytest.approx(without["two_tower"])
    assert measured.keys() == without.keys() | {"two_tower_without_prior"}
    assert measured["two_tower"] != measured["two_tower_without_prior"]
    report.run(replace(context, args=report._flags().parse_args(["--config", "x", "--ds", FIRST])))
    header, night = capsys.readouterr().out.splitlines()[3:5]
    assert "without prior" in header
    assert f"{measured['two_tower_without_prior']:.4f}" in night.split()


@pytest.mark.slow
def test_an_update_keeps_the_prior_of_its_night(context_of: ContextOf) -> None:
    night = publish(context_of(*FIXED[:2]))
    assert night.manifest["index"]["tried"] == "IVF16,Flat"
    later = replace(context_of(), ds=SECOND, args=argparse.Namespace(until=f"{SECOND}T12:00"))
    incremental.run(later)
    update = find_release(later)
    assert update.manifest["prior"]["choice"] == {"night": night.release_id}
    settings = ("beta", "half_life_days", "scale", "as_of", "temperature")
    assert [update.manifest["prior"][name] for name in settings] == [night.manifest["prior"][name] for name in settings]
    assert 0 < update.manifest["changes"]["items"] < update.manifest["items"]
    assert len(Retriever(update.uri.removeprefix("file://")).retrieve([{}], 5)[0].item_ids) == 5

"""The whole chain as a user runs it: simulated logs, two nights, recommendations, the record in MLflow."""

import hashlib
import json
import os
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import faiss
import numpy as np
import pyarrow.dataset as pads
import pytest
from mlflow.tracking import MlflowClient

from model.evaluation.ranking_metrics import SLICES
from model.serving.faiss_index import load_index
from model.training.checkpoint import load_checkpoint
from pipelines.session import find_java_home
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, ROOT, SECOND, NightlyRun, run_job


def test_a_night_ends_in_a_release_that_readers_follow(nightly_run: NightlyRun) -> None:
    release = nightly_run.release
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["ds"] == SECOND
    index = load_index(str(release / "index.faiss"))
    cells, chosen = faiss.extract_index_ivf(index), manifest["index"]
    assert (chosen["factory"], chosen["tried"], chosen["parameter"]) == ("IVF16,Flat", "IVF16,Flat", "nprobe")
    assert cells.nprobe == chosen["value"]
    assert 0.5 <= chosen["recall"] <= 1
    vectors = pads.dataset(str(release / "embeddings")).to_table().to_pydict()
    assert (
        index.ntotal == manifest["items"] == len(vectors["item_id"]) == len(nightly_run.rows("item_features", SECOND))
    )
    stored = np.array(vectors["embedding"], np.float32)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1.0, rtol=1e-5)
    cells.make_direct_map()
    rows = {item: row for row, item in enumerate(faiss.vector_to_array(index.id_map).tolist())}
    for place in (0, 7, 50):
        np.testing.assert_allclose(cells.reconstruct(rows[vectors["item_index"][place]]), stored[place])
    assert load_checkpoint(str(release / "model")).config.dim == 16


def test_tables_models_and_releases_name_the_bootstrap_that_they_go_back_to(nightly_run: NightlyRun) -> None:
    tables = (
        "vocabularies",
        "item_features",
        "positives",
        "samples",
        "models",
        "item_embeddings",
        "evaluations",
        "item_neighbours",
    )
    named = {nightly_run.manifest(table, ds)["lineage"] for table in tables for ds in (FIRST, SECOND)}
    release = json.loads((nightly_run.release / "manifest.json").read_text())
    assert named == {release["lineage"]}
    assert release["lineage"].startswith(FIRST)


def test_every_file_of_a_release_has_its_checksum(nightly_run: NightlyRun) -> None:
    release = nightly_run.release
    files = json.loads((release / "manifest.json").read_text())["files"]
    towers = {f"towers/{name}" for name in ("user.pt2", "item.pt2", "signature.json")}
    assert {"index.faiss", "model/model.safetensors", "model/model.json"} | towers <= files.keys()
    assert "model/training.safetensors" not in files, "serving has no use for it"
    for name, digest in files.items():
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest


def test_the_model_beats_both_baselines_and_stays_below_the_best_reachable(nightly_run: NightlyRun) -> None:
    for ds in (FIRST, SECOND):
        rows = nightly_run.rows("evaluations", ds)
        recall = {r["model"]: r["value"] for r in rows if (r["metric"], r["k"], r["slice"]) == ("recall", 50, "all")}
        assert recall.keys() == {"two_tower", "popularity", "item_cf", "best_reachable"}
        assert recall["best_reachable"] > recall["two_tower"] > recall["popularity"]
        assert all(r["low"] <= r["value"] <= r["high"] for r in rows)
        slices = {r["slice"] for r in rows}
        assert {"all", "head", "mid", "tail", "new_items", "known_users"} <= slices <= set(SLICES)
        assert {r["metric"] for r in rows} == {"recall", "ndcg", "hit_rate"}


def test_the_second_night_continues_the_first(nightly_run: NightlyRun) -> None:
    assert nightly_run.manifest("models", SECOND)["inputs"].keys() >= {f"models@{FIRST}"}
    assert nightly_run.manifest("models", FIRST)["facts"]["epochs"] == 4
    assert nightly_run.manifest("models", SECOND)["facts"]["epochs"] == 1


def test_a_release_that_a_gate_refuses_is_inspectable_and_not_current(nightly_run: NightlyRun) -> None:
    """The second night, published again after the first was made the current one."""
    pointer = nightly_run.warehouse / "releases" / "current.json"
    second = nightly_run.current()
    first = next(path.name for path in pointer.parent.iterdir() if path.name.startswith(FIRST))
    pointer.write_text(json.dumps({"release_id": first, "ds": FIRST}))
    flags = ("publish_items", "--config", nightly_run.config, "--ds", SECOND)
    said = run_job(*flags, "--set", "gates.effective_dimensions=17", code=4)
    assert re.search(r"effective_dimensions \d+\.\d+ \(must be >= 17\): REFUSED", said)
    assert re.search(r"recall_loss \S+ \(must be <= 0.05\): passed. Share of Recall@50 lost against " + first, said)
    assert f"error: release {second} is not published; `current` stays {first}" in said
    assert nightly_run.current() == first
    client = MlflowClient(nightly_run.tracking_uri)
    alias = {name: client.get_model_version_by_alias("nightjar", name) for name in ("champion", "challenger")}
    assert alias["challenger"].tags["release_id"] == second
    report = nightly_run.run("report", "--ds", SECOND)
    assert f"{second} refused: effective_dimensions" in report
    assert re.search(r"effective_dimensions +>= 17 +\S+ !$", report, re.MULTILINE)
    assert load_index(str(nightly_run.warehouse / "releases" / second / "index.faiss")).ntotal
    again = run_job(*flags)
    assert "already done" in again
    assert nightly_run.current() == second
    gates = json.loads((nightly_run.warehouse / "releases" / second / "gates.json").read_text())
    assert gates["against"] == first
    assert {"effective_dimensions", "mean_cosine", "embedding_growth", "vocabulary_growth", "unknown_users"} | {
        "recall_loss",
        "coverage",
    } <= {gate["name"] for gate in gates["gates"]}


def test_a_release_is_tested_on_a_day_before_the_day_is_trained_on(nightly_run: NightlyRun) -> None:
    client = MlflowClient(nightly_run.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    (record,) = client.search_runs([experiment], "tags.`nightjar.record` = 'true'")
    (point,) = client.get_metric_history(record.info.run_id, "test_then_train.recall_at_50")
    assert date(1970, 1, 1) + timedelta(days=point.step) == date.fromisoformat(SECOND)
    assert 0.05 < point.value < 1


def test_a_feature_that_is_not_there_cannot_be_left_out(nightly_run: NightlyRun) -> None:
    said = nightly_run.run("train", "--ds", FIRST, "--set", "model.leave_out=[age, colour]", code=2)
    assert "no feature colour can be left out, only age, category," in said
    assert nightly_run.manifest("models", FIRST)["facts"]["epochs"] == 4


def test_again_skips_every_step_and_force_gives_the_same_samples(nightly_run: NightlyRun) -> None:
    before, samples = nightly_run.current(), nightly_run.rows("samples", FIRST)
    said = nightly_run.run("nightly", "--from", FIRST, "--to", SECOND, *BOOTSTRAP)
    assert said.count("already done") == 10
    assert nightly_run.current() == before
    nightly_run.run("build_positives", "--ds", FIRST, *BOOTSTRAP, "--force")
    nightly_run.run("build_negatives", "--ds", FIRST, "--force")
    assert nightly_run.rows("samples", FIRST) == samples
    said = nightly_run.run("nightly", "--ds", SECOND)  # what is made of the same rows is still good
    assert said.count("already done") == 5


def test_spark_submit_runs_a_job_like_python_does(nightly_run: NightlyRun) -> None:
    submit = Path(sys.executable).with_name("spark-submit")

    command = [
        str(submit),
        "--master",
        "local[2]",
        "jobs/build_negatives.py",
        "--config",
        nightly_run.config,
        "--ds",
        FIRST,
    ]
    environment = os.environ | {
        "JAVA_HOME": str(find_java_home()),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    samples = nightly_run.rows("samples", FIRST)
    done = subprocess.run([*command, "--force"], cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert nightly_run.rows("samples", FIRST) == samples


def test_recommendations_are_the_nearest_unseen_items(nightly_run: NightlyRun) -> None:
    users, output = nightly_run.folder / "users.txt", nightly_run.folder / "top"
    users.write_text("1\n2\n3\nnobody\n")
    flags = ("--config", nightly_run.config, "--ds", SECOND, "--k", "20", "--exclude-seen", "--output", str(output))
    run_job("recommend", *flags, "--users", str(users))
    rows = pads.dataset(str(output)).to_table().to_pylist()
    assert set(rows[0]) == {"user_id", "item_id", "rank", "score"}
    words = {(r["feature"], r["value"]): r["index"] for r in nightly_run.rows("vocabularies", SECOND)}
    known = {int(r["user_id"]): set(r["known_items"]) for r in nightly_run.rows("user_histories", SECOND)}
    live = {r["item_id"] for r in nightly_run.rows("item_features", SECOND)}
    for user in (1, 2, 3):
        mine = sorted((r for r in rows if r["user_id"] == user), key=lambda r: r["rank"])
        assert [r["rank"] for r in mine] == list(range(1, 21))
        assert [r["score"] for r in mine] == sorted((r["score"] for r in mine), reverse=True)
        assert {r["item_id"] for r in mine} <= live
        assert not known.get(user, set()) & {words["item_id", str(r["item_id"])] for r in mine}
    assert "exists" in run_job("recommend", *flags, "--users", str(users), code=2)


def test_the_record_holds_a_parent_a_night_with_a_child_a_job(nightly_run: NightlyRun) -> None:
    client = MlflowClient(nightly_run.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    night = [r for r in runs if r.data.tags.get("nightjar.night") == SECOND]
    assert len(night) == 1  # runs that only skipped left nothing behind
    assert night[0].info.status == "FINISHED"
    assert night[0].data.params["negatives.uniform"] == "2"
    assert {"loss", "two_tower.recall_at_50", "best_reachable.recall_at_50"} <= night[0].data.metrics.keys()
    children = {
        r.data.tags["nightjar.job"]: r for r in runs if r.data.tags.get("mlflow.parentRunId") == night[0].info.run_id
    }
    assert children.keys() == {"build_positives", "build_negatives", "train", "evaluate", "publish_items"}
    assert all(r.data.tags["ds"] == SECOND and r.data.tags["code_version"] for r in children.values())
    assert {i.dataset.name for i in children["train"].inputs.dataset_inputs} >= {"samples", "item_features"}
    steps = client.get_metric_history(children["train"].info.run_id, "loss")
    assert len({metric.step for metric in steps}) > 1
    plots = {
        "build_positives": "popularity_before_after",
        "build_negatives": "negatives_by_kind",
        "train": "loss",
        "evaluate": "recall_at_50_by_third",
        "publish_items": "index_sweep",
    }
    for job, plot in [*plots.items(), ("train", "tower_weights"), ("train", "feature_information")]:
        listed = [file.path for file in client.list_artifacts(children[job].info.run_id, "plots")]
        assert f"plots/{plot}.png" in listed
    recalls = client.get_metric_history(children["publish_items"].info.run_id, "index.sweep.recall")
    metrics = children["publish_items"].data.metrics
    assert max(metric.value for metric in recalls) == metrics["index.recall_at_20"] >= 0.5
    told = children["train"].data.metrics
    assert {"self_loss", "weight.user.history", "weight.item.price"} <= told.keys()
    assert told["self_loss"] > 0
    for job, inputs in (("build_positives", ("interactions", "items")), ("build_negatives", ("ranking_logs",))):
        listed = [file.path for file in client.list_artifacts(children[job].info.run_id, "plots")]
        assert {"plots/input_rows.png", "plots/null_shares.png"} <= set(listed)
        checks = json.loads(
            Path(client.download_artifacts(children[job].info.run_id, "tables/checks.json")).read_text()
        )
        assert checks["columns"] == ["table", "check", "found", "limit"]
        assert set(inputs) <= {row[0] for row in checks["data"]}
        metrics = children[job].data.metrics
        assert all(metrics[f"input.{name}.bad"] == 0 < metrics[f"input.{name}.rows"] for name in inputs)
    assert children["build_negatives"].data.metrics["fallback_share"] < 1
    assert children["build_positives"].data.metrics["skew.heaviest_item_rows"] >= 1
    version = client.get_model_version_by_alias("nightjar", "champion")
    assert version.tags["release_id"] == nightly_run.current()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--ds", "2024-13-01"], 2, "write it as YYYY-MM-DD"),
        (["--ds", FIRST, "--set", "training.epoch=2"], 2, "did you mean 'epochs'"),
        (["--from", SECOND, "--to", FIRST], 2, "swap them"),
        (["--ds", "2024-03-02"], 3, "--bootstrap-days N"),
        (["--ds", SECOND, "--set", "model.dim=8"], 2, "cannot continue from"),
        (["--ds", "2024-03-20", "--bootstrap-days", "3"], 3, "it has 2024-03-01 to 2024-03-06"),
    ],
)
def test_what_cannot_run_says_why_and_ends_with_its_code(
    nightly_run: NightlyRun, flags: list[str], code: int, said: str
) -> None:
    assert said in nightly_run.run("nightly", *flags, code=code)


def test_the_report_shows_the_nights(nightly_run: NightlyRun) -> None:
    said = nightly_run.run("report", "--from", FIRST, "--to", SECOND)
    assert nightly_run.current() in said
    assert "best reachable" in said
    gates = json.loads((nightly_run.release / "gates.json").read_text())["gates"]
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert lines["gate"] == ["gate", "must", "be", FIRST, SECOND]
    for gate in gates:
        assert lines[gate["name"]][-1] == f"{gate['value']:.4g}"
    assert lines["recall_loss"][-2] == "-", "the first night has nothing to be compared with"
    assert "mlflow ui" in said


def test_two_processes_train_the_same_night(nightly_run: NightlyRun) -> None:
    flags = ("--config", nightly_run.config, "--ds", FIRST, "--force", "--set", "training.processes=2")
    one = nightly_run.manifest("models", FIRST)["facts"]["loss"]
    run_job("train", *flags)
    torchrun = nightly_run.manifest("models", FIRST)["facts"]
    run_job("train", *flags, "--set", "training.launcher=spark")
    spark = nightly_run.manifest("models", FIRST)["facts"]
    # The same rows in other batches: not the same number, the same lesson.
    assert torchrun["loss"] == pytest.approx(one, rel=0.05)
    assert spark["loss"] == pytest.approx(torchrun["loss"], rel=1e-4)
    assert torchrun["rows"] == spark["rows"]

"""Two nights through the command lines of the jobs: the release, the report, recommendations, exit codes, re-runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow.dataset as pads
import pytest
from mlflow.tracking import MlflowClient

from model.evaluation.ranking_metrics import SLICES
from model.serving.faiss_index import load_index
from model.serving.retriever import Retriever
from model.training.checkpoint import load_checkpoint
from pipelines.session import find_java_home
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, ROOT, SECOND, NightlyRun


def test_the_index_of_the_release_holds_the_vectors_of_all_items(nightly_run: NightlyRun) -> None:
    release = nightly_run.release
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["ds"] == SECOND
    index = load_index(str(release / "index.faiss"))
    vectors = pads.dataset(str(release / "embeddings")).to_table().to_pydict()
    items = len(nightly_run.rows("item_features", SECOND))
    assert all(isinstance(item, str) for item in vectors["item_id"]), "ids are text in all tables"
    assert index.ntotal == manifest["items"] == len(vectors["item_id"]) == items
    stored = np.array(vectors["embedding"], np.float32)
    dim = 16
    assert manifest["components"] == {"towers": dim, "item_item": dim, "prior": 1}
    assert stored.shape[1] == manifest["dim"] == dim + dim + 1, (
        "components of the towers, the item-item part and the prior"
    )
    np.testing.assert_allclose(np.linalg.norm(stored[:, :dim], axis=1), 1.0, rtol=1e-5)
    assert stored[:, -1].max() == pytest.approx(manifest["prior"]["largest"], abs=1e-5)
    cells = faiss.extract_index_ivf(index)
    cells.make_direct_map()
    row_of = {item: row for row, item in enumerate(faiss.vector_to_array(index.id_map).tolist())}
    for number in (0, 7, 50):
        np.testing.assert_allclose(cells.reconstruct(row_of[vectors["item_index"][number]]), stored[number])


def test_the_manifest_of_the_release_describes_the_index(nightly_run: NightlyRun) -> None:
    chosen = json.loads((nightly_run.release / "manifest.json").read_text())["index"]
    cells = faiss.extract_index_ivf(load_index(str(nightly_run.release / "index.faiss")))
    assert (chosen["factory"], chosen["tried"], chosen["parameter"]) == ("IVF16,Flat", "IVF16,Flat", "nprobe")
    assert cells.nprobe == chosen["value"]
    assert 0.5 <= chosen["recall"] <= 1


def test_the_release_answers_requests(nightly_run: NightlyRun) -> None:
    assert load_checkpoint(str(nightly_run.release / "model")).config.dim == 16
    live = {int(row["item_id"]) for row in nightly_run.rows("item_features", SECOND)}
    answers = Retriever(str(nightly_run.release)).retrieve([{"user_id": 1, "history": [3, 4]}, {}], 5)
    assert [len(set(answer.item_ids)) for answer in answers] == [5, 5]
    assert all(set(answer.item_ids) <= live for answer in answers)


def test_tables_models_and_the_release_carry_the_lineage_of_the_bootstrap(nightly_run: NightlyRun) -> None:
    tables = ["vocabularies", "item_features", "positives", "samples"]
    tables += ["models", "item_embeddings", "evaluations", "item_neighbours"]
    lineages = {nightly_run.manifest(table, ds)["lineage"] for table in tables for ds in (FIRST, SECOND)}
    release = json.loads((nightly_run.release / "manifest.json").read_text())
    assert lineages == {release["lineage"]}
    assert release["lineage"].startswith(FIRST)


def test_every_file_of_a_release_has_its_checksum(nightly_run: NightlyRun) -> None:
    release = nightly_run.release
    files = json.loads((release / "manifest.json").read_text())["files"]
    towers = {f"towers/{name}" for name in ("user.pt2", "item.pt2", "signature.json")}
    assert {"index.faiss", "model/model.safetensors", "model/model.json"} | towers <= files.keys()
    assert "model/training.safetensors" not in files, "serving does not need the state of the optimiser"
    for name, digest in files.items():
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest


def test_the_model_beats_popularity_and_stays_below_the_best_reachable_recall(nightly_run: NightlyRun) -> None:
    for ds in (FIRST, SECOND):
        rows = nightly_run.rows("evaluations", ds)
        key = ("recall", 50, "all")
        recall = {row["model"]: row["value"] for row in rows if (row["metric"], row["k"], row["slice"]) == key}
        assert recall.keys() == {"two_tower", "two_tower_without_prior", "popularity", "item_cf", "best_reachable"}
        assert recall["best_reachable"] > recall["two_tower"] > recall["popularity"]


def test_evaluations_have_all_metrics_and_slices_with_intervals(nightly_run: NightlyRun) -> None:
    for ds in (FIRST, SECOND):
        rows = nightly_run.rows("evaluations", ds)
        assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
        slices = {row["slice"] for row in rows}
        assert {"all", "head", "mid", "tail", "new_items", "known_users"} <= slices <= set(SLICES)
        assert {row["metric"] for row in rows} == {"recall", "ndcg", "hit_rate"}


@pytest.mark.joins
@pytest.mark.processes
def test_the_second_night_continues_the_first(nightly_run: NightlyRun) -> None:
    assert nightly_run.manifest("models", SECOND)["inputs"].keys() >= {f"models@{FIRST}"}
    assert nightly_run.manifest("models", FIRST)["facts"]["epochs"] == 4
    assert nightly_run.manifest("models", SECOND)["facts"]["epochs"] == 1


def test_a_release_that_a_gate_refuses_is_listed_but_not_current(nightly_run: NightlyRun) -> None:
    """Publishes the second night again, after the first was made the current one."""
    pointer = nightly_run.warehouse / "releases" / "current.json"
    second = nightly_run.current()
    first = next(path.name for path in pointer.parent.iterdir() if path.name.startswith(FIRST))
    pointer.write_text(json.dumps({"release_id": first, "ds": FIRST}))
    output = nightly_run.run("publish_items", "--ds", SECOND, "--set", "gates.effective_dimensions=17", code=4)
    assert re.search(r"effective_dimensions \d+\.\d+ \(must be >= 17\): REFUSED", output)
    assert re.search(
        r"recall_loss \S+ \(must be <= 0.05\): passed. Share of Recall@50 certainly lost against " + first, output
    )
    assert f"error: release {second} is not published; `current` stays {first}" in output
    assert nightly_run.current() == first
    client = MlflowClient(nightly_run.tracking_uri)
    challenger = client.get_model_version_by_alias("nightjar", "challenger")
    assert challenger.tags["release_id"] == second
    runs = client.search_runs(
        [client.get_experiment_by_name("nightjar").experiment_id],
        "tags.`nightjar.job` = 'publish_items'",
        max_results=1,
    )
    assert (runs[0].info.status, runs[0].info.run_name) == ("FAILED", "publish_items: refused (effective_dimensions)")
    assert "effective_dimensions" in runs[0].data.tags["mlflow.note.content"]
    report = nightly_run.run("report", "--ds", SECOND)
    assert f"{second} refused: effective_dimensions" in report
    assert re.search(r"effective_dimensions +>= 17 +\S+ !$", report, re.MULTILINE)
    night_page = nightly_run.warehouse / "reports" / f"ds={SECOND}" / "report.html"
    assert "gate effective_dimensions refused it" in night_page.read_text()
    assert load_index(str(nightly_run.warehouse / "releases" / second / "index.faiss")).ntotal
    assert "already done" in nightly_run.run("publish_items", "--ds", SECOND)
    assert nightly_run.current() == second
    assert "gate effective_dimensions refused it" not in night_page.read_text()
    assert client.get_model_version_by_alias("nightjar", "champion").tags["release_id"] == second
    gates = json.loads((nightly_run.release / "gates.json").read_text())
    assert gates["against"] == first
    assert {
        "effective_dimensions",
        "mean_cosine",
        "embedding_growth",
        "vocabulary_growth",
        "unknown_users",
        "recall_loss",
        "coverage",
    } <= {gate["name"] for gate in gates["gates"]}


def test_leaving_out_an_unknown_feature_is_refused(nightly_run: NightlyRun) -> None:
    output = nightly_run.run("train", "--ds", FIRST, "--set", "model.leave_out=[age, colour]", code=2)
    assert "no feature colour can be left out, only age, category," in output
    assert nightly_run.manifest("models", FIRST)["facts"]["epochs"] == 4


def test_a_second_run_skips_every_step(nightly_run: NightlyRun) -> None:
    before = nightly_run.current()
    output = nightly_run.run("nightly", "--from", FIRST, "--to", SECOND, *BOOTSTRAP)
    assert output.count("already done") == 10
    steps = re.findall(r"INFO +train (\S+): (starts|done)(?: in \d+\.\d s| \(step 3 of 5\))\n", output)
    assert steps == [(FIRST, "starts"), (FIRST, "done"), (SECOND, "starts"), (SECOND, "done")]
    *_, table, verdict, links = output.strip().split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["night", FIRST, SECOND]
    assert verdict.startswith(f"Published. Release {before}")
    assert links.endswith("/reports/nights.html")
    assert nightly_run.current() == before
    client = MlflowClient(nightly_run.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    runs = client.search_runs([experiment], f"tags.`nightjar.night` = '{SECOND}'")
    assert len(runs) == 1, "a run that skips all steps leaves nothing in MLflow"


@pytest.mark.slow
def test_force_writes_the_same_samples_and_later_steps_stay_done(nightly_run: NightlyRun) -> None:
    samples = nightly_run.rows("samples", FIRST)
    nightly_run.run("build_positives", "--ds", FIRST, *BOOTSTRAP, "--force")
    nightly_run.run("build_negatives", "--ds", FIRST, "--force")
    assert nightly_run.rows("samples", FIRST) == samples
    assert nightly_run.run("nightly", "--ds", SECOND).count("already done") == 5


@pytest.mark.slow
def test_spark_submit_writes_the_same_samples_as_python(nightly_run: NightlyRun) -> None:
    submit = Path(sys.executable).with_name("spark-submit")
    flags = ["--config", nightly_run.config, "--ds", FIRST, "--force"]
    environment = os.environ | {
        "JAVA_HOME": str(find_java_home()),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    samples = nightly_run.rows("samples", FIRST)
    command = [str(submit), "--master", "local[2]", "jobs/build_negatives.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert nightly_run.rows("samples", FIRST) == samples


def test_recommendations_are_the_nearest_unseen_items(nightly_run: NightlyRun) -> None:
    users, top = nightly_run.folder / "users.txt", nightly_run.folder / "top"
    users.write_text("1\n2\n3\n99999\n")
    flags = ("--ds", SECOND, "--k", "20", "--exclude-seen", "--output", str(top), "--users", str(users))
    assert "WARNING recommend" in nightly_run.run("recommend", *flags)
    rows = pads.dataset(str(top)).to_table().to_pylist()
    assert set(rows[0]) == {"user_id", "item_id", "rank", "score"}
    index_of = {(row["feature"], row["value"]): row["index"] for row in nightly_run.rows("vocabularies", SECOND)}
    seen = {int(row["user_id"]): set(row["known_items"]) for row in nightly_run.rows("user_histories", SECOND)}
    live = {int(row["item_id"]) for row in nightly_run.rows("item_features", SECOND)}
    assert {row["user_id"] for row in rows} == {1, 2, 3, 99999}
    for user in (1, 2, 3):
        ranked = sorted((row for row in rows if row["user_id"] == user), key=lambda row: row["rank"])
        assert [row["rank"] for row in ranked] == list(range(1, 21))
        assert [row["score"] for row in ranked] == sorted((row["score"] for row in ranked), reverse=True)
        assert {row["item_id"] for row in ranked} <= live
        assert not seen.get(user, set()) & {index_of["item_id", str(row["item_id"])] for row in ranked}
    assert "exists" in nightly_run.run("recommend", *flags, code=2)
    users.write_text("1\n2\nnobody\n")
    output = nightly_run.run("recommend", *flags, "--force", code=3)
    assert "1 of its lines cannot be user ids, which are bigint in table users, for example 'nobody'" in output


def test_evaluating_a_night_without_a_model_names_the_model_and_the_command(nightly_run: NightlyRun) -> None:
    output = nightly_run.run("evaluate", "--ds", "2024-03-06", code=3)
    assert "table models has no partition ds=2024-03-06" in output
    assert f"python -m jobs.nightly --config {nightly_run.config} --ds 2024-03-06" in output
    assert f"It has {FIRST} to {SECOND}" in output


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--ds", "2024-13-01"], 2, "write it as YYYY-MM-DD"),
        (["--ds", FIRST, "--set", "training.epoch=2"], 2, "did you mean 'epochs'"),
        (["--from", SECOND, "--to", FIRST], 2, "swap them"),
        (["--ds", "2024-03-02"], 3, "--bootstrap-days N"),
        (
            ["--ds", "2022-12-31"],
            3,
            "no logs of ds=2022-12-31: check the ds (interactions has 2024-03-01 to 2024-03-06",
        ),
        (["--ds", SECOND, "--set", "model.dim=8"], 2, "cannot continue from"),
        (["--ds", "2024-03-20", "--bootstrap-days", "3"], 3, "it has 2024-03-01 to 2024-03-06"),
    ],
)
def test_a_night_that_cannot_run_gives_the_reason_and_its_exit_code(
    nightly_run: NightlyRun, flags: list[str], code: int, message: str
) -> None:
    assert message in nightly_run.run("nightly", *flags, code=code)


def test_the_report_shows_both_nights_and_their_gates(nightly_run: NightlyRun) -> None:
    report = nightly_run.run("report", "--from", FIRST, "--to", SECOND)
    assert nightly_run.current() in report
    assert "best reachable" in report
    gates = json.loads((nightly_run.release / "gates.json").read_text())["gates"]
    lines = {line.split()[0]: line.split() for line in report.splitlines() if line}
    assert lines["gate"] == ["gate", "must", "be", FIRST, SECOND]
    for gate in gates:
        assert lines[gate["name"]][-1] == f"{gate['value']:.4g}"
    assert lines["recall_loss"][-2] == "-", "the first night has no release to compare with"
    assert "mlflow ui" in report


def test_the_report_names_the_question_and_the_nights_that_are_not_certainly_better(nightly_run: NightlyRun) -> None:
    report = nightly_run.run("report", "--from", FIRST, "--to", SECOND)
    assert "Question: positives of the next day, items new to the user" in report
    for ds in (FIRST, SECOND):
        facts = nightly_run.manifest("evaluations", ds)["facts"]
        rows = {
            row["model"]: row["value"]
            for row in nightly_run.rows("evaluations", ds)
            if (row["metric"], row["k"], row["slice"]) == ("recall", 50, "all")
        }
        assert rows["popularity"] == pytest.approx(max(facts["popularity"]["recall"].values()))
        margin = facts["margin"]
        best = max(rows["popularity"], rows["item_cf"])
        assert margin["difference"] == pytest.approx(rows["two_tower"] - best)
        assert (f"WARNING {ds}: two_tower is not certainly better" in report) is (margin["low"] <= 0)


TWO_PROCESSES = ("train", "--ds", FIRST, "--force", "--set", "training.processes=2")


def test_two_processes_train_the_same_night(nightly_run: NightlyRun) -> None:
    """The same rows in other batches: the loss is close, not equal."""
    one = nightly_run.manifest("models", FIRST)["facts"]
    nightly_run.run(*TWO_PROCESSES)
    two = nightly_run.manifest("models", FIRST)["facts"]
    assert two["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert two["rows"] == one["rows"]


@pytest.mark.slow
def test_the_spark_launcher_trains_like_torchrun(nightly_run: NightlyRun) -> None:
    nightly_run.run(*TWO_PROCESSES)
    torchrun = nightly_run.manifest("models", FIRST)["facts"]
    nightly_run.run(*TWO_PROCESSES, "--set", "training.launcher=spark")
    spark = nightly_run.manifest("models", FIRST)["facts"]
    assert spark["loss"] == pytest.approx(torchrun["loss"], rel=1e-4)
    assert torchrun["rows"] == spark["rows"]

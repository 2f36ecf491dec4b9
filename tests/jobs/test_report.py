"""The report and the list of releases read small files of a local warehouse, without a JVM."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs import releases, report
from jobs.common.config import load_config
from jobs.common.runner import Context
from jobs.night.margin import Margin
from pipelines.storage.local_warehouse import LocalWarehouse, is_local
from pipelines.storage.manifest import MANIFEST, Manifest

ROOT = Path(__file__).resolve().parents[2]
WINS, LOSES = "2024-03-04", "2024-03-05"
QUESTION = "positives of the next 7 days, items new to the user"
RECALLS = {WINS: {"two_tower": 0.4, "popularity": 0.2}, LOSES: {"two_tower": 0.2, "popularity": 0.25}}


def write(root: Path, table: str, ds: str, facts: dict[str, Any]) -> None:
    folder = root / table / f"ds={ds}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(asdict(Manifest(table, ds, "", {"item_embeddings": ""}, 7, facts))))


def night(root: Path, ds: str) -> None:
    """The files of a night that the report reads. On LOSES, popularity is better than the model."""
    write(root, "samples", ds, {"kinds": {"uniform": 1, "popularity": 2, "coarse": 3, "fine": 4}})
    write(root, "models", ds, {"loss": 1.5})
    write(root, "item_embeddings", ds, {"release_id": "none"})
    recall = RECALLS[ds] | {"item_cf": 0.1}
    difference = recall["two_tower"] - recall["popularity"]
    ends = {"low": difference - 0.01, "high": difference + 0.01}
    margin = Margin(50, 300, "popularity", recall["two_tower"], recall["popularity"], difference, **ends)
    popularity = {"days": 7, "recall": {"1": 0.1, "7": recall["popularity"]}}
    write(root, "evaluations", ds, {"question": QUESTION, "popularity": popularity, "margin": asdict(margin)})
    rows = [
        {
            "model": model,
            "metric": metric,
            "slice": "all",
            "k": k,
            "value": value if (metric, k) == ("recall", 50) else 9.0,
        }
        for model, value in recall.items()
        for metric in ("recall", "ndcg")
        for k in (10, 50)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "evaluations" / f"ds={ds}" / "part-0.parquet")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A config whose warehouse has two nights."""
    root = tmp_path / "my warehouse"
    for ds in (WINS, LOSES):
        night(root, ds)
    path = tmp_path / "night.yaml"
    path.write_text(json.dumps({"warehouse": str(root)}))
    return str(path)


def context(config: str, flags: argparse.ArgumentParser, *given: str) -> Context:
    """The context of a job that only reads, without Spark."""
    settings, spark = load_config(config), cast(SparkSession, None)
    args = flags.parse_args([*given, "--config", config])
    return Context(settings, spark, LocalWarehouse(settings.warehouse), args)


def printed(config: str, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    report.run(context(config, report._flags(), *flags))
    return capsys.readouterr().out


def test_the_report_warns_of_nights_on_which_the_model_is_not_certainly_better(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(config, capsys, "--from", WINS, "--to", LOSES)
    assert f"Question: {QUESTION}" in text
    assert "Popularity counts the best of evaluation.popularity_days: 7" in text
    assert (
        f"WARNING {LOSES}: two_tower is not certainly better than popularity: Recall@50 0.2000 against 0.2500" in text
    )
    assert f"WARNING {WINS}" not in text
    cells = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert cells[WINS][7:10] == ["0.4000", "0.2000", "0.1000"]
    assert "WARNING" not in printed(config, capsys, "--ds", WINS)


def test_a_night_of_an_earlier_version_has_no_question(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path(config).parent / "my warehouse", "evaluations", WINS, {})
    text = printed(config, capsys, "--ds", WINS)
    assert "Question" not in text
    assert "0.4000" in text


def test_a_night_without_a_log_of_the_next_day_shows_the_release_of_the_night_before(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, newest = Path(config).parent / "my warehouse", "2024-03-06"
    night(root, LOSES)
    shutil.copytree(root / "samples" / f"ds={LOSES}", root / "samples" / f"ds={newest}")
    shutil.copytree(root / "models" / f"ds={LOSES}", root / "models" / f"ds={newest}")
    evaluations = root / "evaluations" / f"ds={LOSES}" / MANIFEST
    manifest = json.loads(evaluations.read_text())
    manifest["facts"]["days"] = [newest]
    evaluations.write_text(json.dumps(manifest))
    text = printed(config, capsys, "--ds", newest)
    cells = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert cells[newest][7:10] == ["0.2000*", "0.2500*", "0.1000*"]
    assert f"* of the release of {LOSES} on {newest}" in text
    assert f"Question: {QUESTION}" in text
    assert f"WARNING {LOSES}: two_tower is not certainly better" in text


def test_nothing_is_published_yet(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    releases.run(context(config, releases._flags(), "list"))
    assert "nothing is published yet" in capsys.readouterr().out


@pytest.mark.parametrize(("ds", "warning"), [(WINS, False), (LOSES, True)])
def test_a_release_is_shown_with_its_margin_over_the_best_baseline(
    config: str, capsys: pytest.CaptureFixture[str], ds: str, warning: bool
) -> None:
    root, release = Path(config).parent / "my warehouse", f"{ds}-0a1b2c3d"
    (root / "releases" / release).mkdir(parents=True)
    manifest = {"release_id": release, "ds": ds, "files": {}}
    (root / "releases" / release / "manifest.json").write_text(json.dumps(manifest))
    embeddings = Manifest("item_embeddings", ds, "", {}, 7, {"release_id": release})
    (root / "item_embeddings" / f"ds={ds}" / MANIFEST).write_text(json.dumps(asdict(embeddings)))
    evaluations = json.loads((root / "evaluations" / f"ds={ds}" / MANIFEST).read_text())
    shown = context(config, releases._flags(), "show", release)
    releases.run(shown)
    assert "certainly better" not in capsys.readouterr().out, "another version of this release was evaluated"
    evaluations["inputs"] = {"item_embeddings": embeddings.fingerprint}
    (root / "evaluations" / f"ds={ds}" / MANIFEST).write_text(json.dumps(evaluations))
    releases.run(shown)
    text = capsys.readouterr().out
    assert f"certainly better than popularity: Recall@50 {RECALLS[ds]['two_tower']:.4f}" in text
    assert QUESTION in text
    assert ("WARNING two_tower is not" in text) is warning


@pytest.mark.processes
@pytest.mark.parametrize("command", [["jobs.report", "--ds", WINS], ["jobs.releases", "list"]])
def test_both_answer_without_java_and_without_large_libraries(config: str, command: list[str]) -> None:
    """They would take seconds to start."""
    code = (
        "import runpy, sys\n"
        "del sys.argv[0]\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end\n"
        "assert not (large := {'torch', 'mlflow', 'faiss', 'matplotlib', 'pandas'} & sys.modules.keys()), large"
    )
    command = [sys.executable, "-c", code, *command, "--config", config]
    environment = os.environ | {"JAVA_HOME": "/nowhere", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_local_warehouse_lists_files_as_spark_does(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / f"ds={WINS}"
    for name in ("b.parquet", "a.parquet", "_SUCCESS", ".a.parquet.crc", "part=1/c.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    warehouse = LocalWarehouse(str(tmp_path))
    uri = warehouse.path("evaluations", WINS)
    names = ("a.parquet", "b.parquet", "part=1/c.parquet")
    assert warehouse.data_files(uri) == [f"file://{folder}/{name}" for name in names]
    assert warehouse.exists(uri)
    assert not warehouse.exists(warehouse.path("models", WINS))
    assert is_local("warehouse")
    assert not is_local("s3a://bucket/warehouse")
    with pytest.raises(NotImplementedError, match="without Spark"):
        warehouse.delete(uri)

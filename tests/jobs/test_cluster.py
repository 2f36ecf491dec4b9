"""On one core, on two cores and on a standalone cluster with killed executors, in three time zones, rows are the same.

Training on the executors of the cluster gives the same loss as training in one process.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pyspark
import pytest
from pyspark.sql import SparkSession

from pipelines.session import find_java_home
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, run_nights, write_inputs

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("vocabularies", "user_histories", "item_stats", "item_features", "item_versions", "positives", "samples")
SPARK = Path(pyspark.__file__).parent
TABLES_JOB = "tests/jobs/sample_tables.py"

pytestmark = pytest.mark.slow
# Without dropout, whose draws differ by rank: the projections of vectors have some.
MODEL = """
warehouse: {warehouse}
features: {features}
model: {{dim: 8, hidden: [], embedding_dim: 8, small_embedding_dim: 4, id_dropout: 0.0, context_dropout: 0.0,
         new_user_share: 0.0, leave_out: [taste, look, query]}}
loss: {{temperature: 0.2}}
training: {{batch_size: 400, bootstrap_epochs: 6, optimizer: adagrad, threads: 1}}  # one step per epoch
"""
FEATURES = json.dumps(CONFIG.features.model_dump(mode="json", exclude_unset=True))  # those of the samples


def environment() -> dict[str, str]:
    names = {"JAVA_HOME": str(find_java_home()), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    return os.environ | names | {"PYTHONPATH": str(ROOT)}


def start(folder: Path, name: str, *command: str) -> subprocess.Popen[bytes]:
    """Start a daemon of the cluster that writes its log to a file."""
    with (folder / f"{name}.log").open("wb") as log:
        spark_class = str(SPARK / "bin" / "spark-class")
        return subprocess.Popen([spark_class, *command], stdout=log, stderr=log, env=environment(), cwd=folder)


def until(what: str, condition: Callable[[], Any], seconds: float = 90) -> Any:
    """Wait for the first true result of `condition` and return it. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen in {seconds} s")


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A standalone master with two workers of one core each."""
    folder = tmp_path_factory.mktemp("cluster")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"spark://127.0.0.1:{port}"
    here = ("--host", "127.0.0.1", "--webui-port", "0")
    deploy = "org.apache.spark.deploy"
    daemons = [start(folder, "master", f"{deploy}.master.Master", *here, "--port", str(port))]
    worker = (f"{deploy}.worker.Worker", *here, "--cores", "1", "--memory", "1g", "--work-dir")
    daemons += [start(folder, name, *worker, str(folder / name), uri) for name in ("one", "two")]
    try:
        for name in ("one", "two"):
            log = folder / f"{name}.log"
            until(f"worker {name} joining", lambda log=log: "Successfully registered" in log.read_text())
        yield uri
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


@dataclass(frozen=True)
class LocalNight:
    """The first small night, built by two cores of this process: its warehouse, and its rows by table."""

    inputs: Path
    rows: dict[str, list[str]]


def rows_of(root: Path) -> dict[str, list[str]]:
    """All rows of the night as text by table, in an order that does not depend on files."""
    rows = {}
    for table in TABLES:
        files = (root / table / f"ds={FIRST}").rglob("*.parquet")
        rows[table] = sorted(repr(row) for file in files for row in pq.ParquetFile(file).read().to_pylist())
    return rows


@pytest.fixture(scope="module")
def night(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> LocalNight:
    root = tmp_path_factory.mktemp("here")
    warehouse = Warehouse(spark, str(root))
    write_inputs(warehouse)
    run_nights(warehouse, last=FIRST)
    return LocalNight(root, rows_of(root))


@contextmanager
def submitted(
    master: str, script: str, *arguments: str, partitions: int, zone: str = "UTC"
) -> Iterator[subprocess.Popen[str]]:
    """Run spark-submit on a script of this repository. `zone`: time zone of the driver and of its Spark session."""
    settings = {
        "spark.sql.session.timeZone": zone,
        "spark.sql.shuffle.partitions": partitions,
        "spark.executor.memory": "700m",
        "spark.driver.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
    }
    flags = [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
    command = [str(SPARK / "bin" / "spark-submit"), "--master", master, *flags, str(ROOT / script), *arguments]
    job = subprocess.Popen(
        command, cwd=ROOT, env=environment() | {"TZ": zone}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def executors() -> list[int]:
    """Process ids of the executors of the standalone cluster."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        # Only executors of a standalone cluster have a worker.
        if any(part.endswith("CoarseGrainedExecutorBackend") for part in command) and "--worker-url" in command:
            pids.append(int(process.name))
    return pids


def test_one_core_in_another_time_zone_writes_the_same_rows(night: LocalNight, tmp_path: Path) -> None:
    zone = "America/Los_Angeles"
    with submitted("local[1]", TABLES_JOB, str(tmp_path), str(night.inputs), partitions=3, zone=zone) as job:
        output = job.communicate(timeout=600)[0]
    assert job.returncode == 0, output[-3000:]
    assert rows_of(tmp_path) == night.rows


@pytest.mark.long
def test_a_cluster_whose_executors_are_killed_writes_the_same_rows(
    master: str, night: LocalNight, tmp_path: Path
) -> None:
    """Kills an executor while positives are written and one while samples are written, with their shuffle files."""
    killed, zone = [], "Asia/Shanghai"  # of the driver; workers have UTC
    with submitted(master, TABLES_JOB, str(tmp_path), str(night.inputs), partitions=5, zone=zone) as job:
        for table in ("positives", "samples"):
            writing = tmp_path / "_staging" / table / FIRST
            until(f"writing of {table}", lambda writing=writing: writing.exists() or job.poll() is not None, 300)
            victim = until("an executor", executors)[0]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
        output = job.communicate(timeout=600)[0]
    assert job.returncode == 0, output[-3000:]
    assert output.count("Lost executor") >= len(set(killed)) == 2, output[-3000:]
    assert rows_of(tmp_path) == night.rows


def trained(night: LocalNight, folder: Path, master: str, **training: object) -> tuple[dict[str, Any], str]:
    """Run jobs/train.py on a copy of the tables. Returns the manifest of the model, and the output."""
    root = folder / "warehouse"
    shutil.copytree(night.inputs, root)
    (folder / "night.yaml").write_text(MODEL.format(warehouse=root, features=FEATURES))
    flags = ["--config", str(folder / "night.yaml"), "--ds", FIRST]
    flags += [part for name, value in training.items() for part in ("--set", f"training.{name}={value}")]
    with submitted(master, "jobs/train.py", *flags, partitions=2) as job:
        output = job.communicate(timeout=600)[0]
    assert job.returncode == 0, output[-3000:]
    return json.loads((root / "models" / f"ds={FIRST}" / "_manifest.json").read_text()), output


@pytest.mark.parametrize("other_master", [None, "local-cluster[2,1,700]"])
def test_two_executors_train_like_one_process(
    other_master: str | None, master: str, night: LocalNight, tmp_path: Path
) -> None:
    """Spark's barrier mode, one process per executor. Losses agree to 1e-3: the order of sums differs over six steps."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, _ = trained(night, tmp_path / "one", "local[1]")
    two, output = trained(night, tmp_path / "two", other_master or master, launcher="spark", processes=2)
    assert "Started distributed training with 2 executor processes" in output
    for fact in ("steps", "rows", "epochs"):
        assert two["facts"][fact] == one["facts"][fact]
    assert two["facts"]["loss"] == pytest.approx(one["facts"]["loss"], rel=1e-3)
    assert one["facts"]["steps"] == 6

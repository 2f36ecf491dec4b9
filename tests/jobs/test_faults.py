"""Full disks, killed trainings, a second run of the same day, a lost MLflow server: one error; a re-run then succeeds."""

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from mlflow.tracking import MlflowClient

from tests.jobs.faults import STACK, fails, first_half, kill, message_of, small_disk, start, succeeds, wait_until
from tests.jobs.nightly_run import SECOND, NightlyRun

pytestmark = pytest.mark.long

CHILDREN: list["subprocess.Popen[str]"] = []  # killed at the end of each test


@pytest.fixture(autouse=True)
def _current_stays(first_night_copy: NightlyRun) -> Iterator[None]:
    before = first_night_copy.current()
    yield
    while CHILDREN:
        kill(CHILDREN.pop())
    assert first_night_copy.current() == before


def start_beside(
    job: str, nightly_run: NightlyRun, *flags: str, env: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a job that is killed at the end of the test."""
    child = start(job, nightly_run, *flags, env=env)
    CHILDREN.append(child)
    return child


def test_a_full_disk_while_a_table_is_written(sampled: NightlyRun) -> None:
    before = sampled.rows("positives", SECOND)
    staging = sampled.warehouse / "_staging" / "samples"
    with small_disk(staging):
        message = fails("build_negatives", sampled, "--force", code=1)
        assert "No space left on device" in message
        assert "run the same command again" in message
        assert not [file for file in staging.rglob("*") if file.is_file()], "partial files would keep the disk full"
    assert sampled.rows("positives", SECOND) == before
    succeeds("build_negatives", sampled, "--force")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_while_a_checkpoint_is_written(sampled: NightlyRun, processes: int) -> None:
    flags = ("--force", "--set", "training.checkpoint_steps=1", "--set", f"training.processes={processes}")
    with small_disk(sampled.warehouse / "_on_the_way"):
        message = fails("train", sampled, *flags, code=1, allow_traceback=processes > 1)
        assert "No space left on device" in message
    succeeds("train", sampled, *flags)


def test_a_damaged_checkpoint_of_a_killed_training_is_skipped(sampled: NightlyRun) -> None:
    flags = ("--set", "training.checkpoint_steps=1", "--set", "training.epochs=200")
    child = start_beside("train", sampled, *flags)
    progress = sampled.warehouse / "_on_the_way" / "models" / SECOND
    wait_until(lambda: bool(list(progress.glob("*/step=[0-9]*/progress.json"))), child)
    kill(child)
    # Two checkpoints if the process was killed before it removed the older one.
    checkpoints = list(progress.glob("*/step=*/tensors.safetensors"))
    for tensors in checkpoints:
        tensors.write_bytes(first_half(tensors.read_bytes()))
    output = succeeds("train", sampled, *flags)
    assert any(f"{tensors.parent} is damaged or of another version: it is ignored" in output for tensors in checkpoints)
    assert sampled.manifest("models", SECOND)["facts"]["steps"] == 400


def test_a_second_run_of_the_same_day_is_refused(first_night_copy: NightlyRun) -> None:
    child = start_beside("build_positives", first_night_copy, "--force")
    lock = first_night_copy.warehouse / "_locks" / f"{SECOND}.json"
    wait_until(lock.exists, child)
    message = fails("nightly", first_night_copy, code=1)
    assert f"worked on by jobs.build_positives (process {child.pid}" in message
    kill(child)
    succeeds("build_positives", first_night_copy, "--force")


def test_a_lost_mlflow_server_does_not_lose_the_training(sampled: NightlyRun) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    flags = ("--set", f"tracking.uri={uri}", "--set", "training.checkpoint_steps=1", "--set", "training.epochs=210")
    server = start_mlflow(sampled, port)
    few_retries = os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    child = start_beside("train", sampled, *flags, env=few_retries)
    progress = sampled.warehouse / "_on_the_way" / "models" / SECOND
    wait_until(lambda: bool(list(progress.glob("*/step=[0-9]*"))), child)
    kill(server)
    output = child.communicate(timeout=1800)[0]
    assert child.returncode == 1, output
    assert not STACK.search(output), output
    assert f"the MLflow tracking server at {uri} does not answer" in message_of(output)
    assert sampled.manifest("models", SECOND)["facts"]["steps"] == 420

    assert f"the MLflow tracking server at {uri} does not answer" in fails(
        "evaluate", sampled, *flags, code=1, env=few_retries
    )
    start_mlflow(sampled, port)
    assert "already done" in succeeds("train", sampled, *flags)
    succeeds("evaluate", sampled, *flags)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("nightjar").experiment_id])
    jobs = {run.data.tags.get("nightjar.job", "night"): run.info.status for run in runs}
    assert jobs == {"night": "FINISHED", "train": "KILLED", "evaluate": "FINISHED"}


def start_mlflow(nightly_run: NightlyRun, port: int) -> "subprocess.Popen[str]":
    """Start an MLflow server and wait until it answers. It is killed at the end of the test."""
    store = f"sqlite:///{nightly_run.folder}/server.db"
    flags = ["--backend-store-uri", store, "--artifacts-destination", str(nightly_run.folder / "artifacts")]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *flags, *address],
        cwd=nightly_run.folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # it would start seven more processes
    )
    CHILDREN.append(server)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    wait_until(answers, server)
    return server

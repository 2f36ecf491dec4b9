"""What breaks in the night: one clear error and its exit code, the release in use as it was; then the same command goes on."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.jobs.nightly_run import FIRST, ROOT, SECOND, NightlyRun, command

STACK = re.compile(r"Traceback|^\s+at \S+\(|^\s+File \"", re.MULTILINE)
# A busy machine: Spark, told to stop, interrupts its own threads that still drop blocks, and refuses what they go on with;
# the JVM prints both.
INTERRUPTED = re.compile(
    r'^(?:Exception in thread "block-manager-storage-async-thread-pool-|java\.util\.concurrent\.RejectedExecutionException: )'
    r".*\n(?:(?:\s+at |\s+\.\.\. |Caused by: ).*\n)*",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def sampled(first_night_copy: NightlyRun) -> NightlyRun:
    """The first night and the samples of the second. Every test leaves both in place."""
    first_night_copy.run("build_positives", "--ds", SECOND)
    first_night_copy.run("build_negatives", "--ds", SECOND)
    return first_night_copy


CHILDREN: list["subprocess.Popen[str]"] = []


@pytest.fixture(autouse=True)
def _current_stays(first_night_copy: NightlyRun) -> Iterator[None]:
    before = first_night_copy.current()
    yield
    while CHILDREN:
        end(CHILDREN.pop())
    assert first_night_copy.current() == before


def fails(job: str, first_night_copy: NightlyRun, *flags: str, code: int, **options: Any) -> str:
    """The one message of a job that ends with this code."""
    said = INTERRUPTED.sub("", first_night_copy.run(job, "--ds", SECOND, *flags, code=code, **options))
    assert options.get("allow_traceback") or not STACK.search(said), said
    (message,) = re.findall(r"^error: (.*)$", said, re.MULTILINE)
    return message


def succeeds(job: str, first_night_copy: NightlyRun, *flags: str) -> str:
    return first_night_copy.run(job, "--ds", SECOND, *flags)


def file_of(first_night_copy: NightlyRun, table: str, ds: str) -> Path:
    return max(
        (first_night_copy.warehouse / table / f"ds={ds}").rglob("*.parquet"), key=lambda file: file.stat().st_size
    )


@contextmanager
def spoilt(file: Path, spoil: Callable[[bytes], bytes]) -> Iterator[None]:
    """A file with other content, for a while."""
    kept = file.with_name(f"_{file.name}.kept")
    shutil.copy2(file, kept)
    file.write_bytes(spoil(kept.read_bytes()))
    try:
        yield
    finally:
        kept.replace(file)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 16 KB at a folder of the warehouse."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # Spark keeps a file open that it could not end.


def test_an_input_partition_that_is_missing(first_night_copy: NightlyRun) -> None:
    day = first_night_copy.warehouse / "interactions" / f"ds={SECOND}"
    aside = day.rename(first_night_copy.folder / "aside")
    message = fails("build_positives", first_night_copy, code=3)
    assert f"has no partition for ds={SECOND}" in message
    aside.rename(day)
    assert "build_positives" in succeeds("build_positives", first_night_copy)


def test_an_input_file_that_is_cut_short(first_night_copy: NightlyRun) -> None:
    succeeds("build_positives", first_night_copy)
    file = file_of(first_night_copy, "interactions", SECOND)
    with spoilt(file, half):
        message = fails("build_positives", first_night_copy, code=3)
        assert f"table interactions: the file file://{file} cannot be read" in message
    assert "already done" in succeeds("build_positives", first_night_copy)


def test_a_state_of_last_night_that_is_cut_short(first_night_copy: NightlyRun) -> None:
    file = file_of(first_night_copy, "user_histories", FIRST)
    with spoilt(file, half):
        message = fails("build_positives", first_night_copy, "--force", code=3)
        assert f"table user_histories: the file file://{file} cannot be read" in message
        assert f"delete the folder file://{file.parent} and run the night of ds={FIRST} again" in message
    succeeds("build_positives", first_night_copy, "--force")


def test_a_full_disk_in_the_middle_of_a_table(sampled: NightlyRun) -> None:
    before = sampled.rows("positives", SECOND)
    staging = sampled.warehouse / "_staging" / "samples"
    with small_disk(staging):
        message = fails("build_negatives", sampled, "--force", code=1)
        assert "No space left on device" in message
        assert "run the same command again" in message
        assert not [file for file in staging.rglob("*") if file.is_file()], "what is left would keep the disk full"
    assert sampled.rows("positives", SECOND) == before
    succeeds("build_negatives", sampled, "--force")


@pytest.mark.parametrize("table", ["samples", "item_features"])
def test_a_table_that_is_cut_short(sampled: NightlyRun, table: str) -> None:
    file = file_of(sampled, table, SECOND)
    with spoilt(file, half):
        message = fails("train", sampled, "--force", code=3)
        assert f"table {table}: the file file://{file} cannot be read" in message
        folder = sampled.warehouse / table / f"ds={SECOND}"
        assert f"delete the folder file://{folder} and run the night of ds={SECOND} again" in message
    succeeds("train", sampled, "--force")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_in_the_middle_of_training(sampled: NightlyRun, processes: int) -> None:
    flags = ("--force", "--set", "training.checkpoint_steps=1", "--set", f"training.processes={processes}")
    with small_disk(sampled.warehouse / "_on_the_way"):
        message = fails("train", sampled, *flags, code=1, allow_traceback=processes > 1)
        assert "No space left on device" in message
    succeeds("train", sampled, *flags)


def test_a_checkpoint_of_last_night_that_is_damaged(sampled: NightlyRun) -> None:
    file = sampled.warehouse / "models" / f"ds={FIRST}" / "model.safetensors"
    with spoilt(file, lambda content: content[:-1] + bytes([content[-1] ^ 1])):
        message = fails("train", sampled, "--force", code=3)
        assert f"table models ds={FIRST}: file://{file} is not what was written" in message
    succeeds("train", sampled, "--force")


def test_a_checkpoint_on_the_way_that_is_damaged(sampled: NightlyRun) -> None:
    flags = ("--set", "training.checkpoint_steps=1", "--set", "training.epochs=200")
    child = start("train", sampled, *flags)
    progress = sampled.warehouse / "_on_the_way" / "models" / SECOND
    wait(lambda: bool(list(progress.glob("*/step=[0-9]*/progress.json"))), child)
    end(child)
    kept = list(progress.glob("*/step=*/tensors.safetensors"))  # two where it died before the older one was removed
    for tensors in kept:
        tensors.write_bytes(half(tensors.read_bytes()))
    said = succeeds("train", sampled, *flags)
    assert any(f"{tensors.parent} is damaged or of another version: it is left out" in said for tensors in kept)
    assert sampled.manifest("models", SECOND)["facts"]["steps"] == 400


def test_a_day_that_another_run_works_on(first_night_copy: NightlyRun) -> None:
    child = start("build_positives", first_night_copy, "--force")
    lock = first_night_copy.warehouse / "_locks" / f"{SECOND}.json"
    wait(lock.exists, child)
    message = fails("nightly", first_night_copy, code=1)
    assert f"worked on by jobs.build_positives (process {child.pid}" in message
    end(child)
    succeeds("build_positives", first_night_copy, "--force")


def test_a_record_that_goes_away_in_the_middle(sampled: NightlyRun) -> None:
    """What was trained by then is not lost."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    flags = ("--set", f"tracking.uri={uri}", "--set", "training.checkpoint_steps=1", "--set", "training.epochs=210")
    server = serve(sampled, port)
    few = os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    child = start("train", sampled, *flags, env=few)
    progress = sampled.warehouse / "_on_the_way" / "models" / SECOND
    wait(lambda: bool(list(progress.glob("*/step=[0-9]*"))), child)
    end(server)
    said = child.communicate(timeout=1800)[0]
    assert child.returncode == 1, said
    assert not STACK.search(said), said
    (message,) = re.findall(r"^error: (.*)$", said, re.MULTILINE)
    assert f"the record at {uri} does not answer" in message
    assert sampled.manifest("models", SECOND)["facts"]["steps"] == 420

    assert f"the record at {uri} does not answer" in fails("evaluate", sampled, *flags, code=1, env=few)
    serve(sampled, port)
    assert "already done" in succeeds("train", sampled, *flags)
    succeeds("evaluate", sampled, *flags)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("nightjar").experiment_id])
    jobs = {run.data.tags.get("nightjar.job", "night"): run.info.status for run in runs}
    assert jobs == {"night": "FINISHED", "train": "KILLED", "evaluate": "FINISHED"}


def start(
    job: str, first_night_copy: NightlyRun, *flags: str, env: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """A job of the second night that goes on beside the test."""
    child = subprocess.Popen(
        command(job, "--config", first_night_copy.config, "--ds", SECOND, *flags),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
    )
    CHILDREN.append(child)
    return child


def serve(first_night_copy: NightlyRun, port: int) -> "subprocess.Popen[str]":
    """An MLflow server that answers."""
    store = f"sqlite:///{first_night_copy.folder}/server.db"
    flags = ["--backend-store-uri", store, "--artifacts-destination", str(first_night_copy.folder / "artifacts")]
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *flags, *place],
        cwd=first_night_copy.folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven more processes
    )

    CHILDREN.append(server)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    wait(answers, server)
    return server


def wait(condition: Callable[[], bool], child: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(child: "subprocess.Popen[str]") -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout:
        child.stdout.close()

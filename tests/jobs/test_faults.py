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

from tests.jobs.nightly_run import FIRST, ROOT, SECOND, House, command, run

STACK = re.compile(r"Traceback|^\s+at \S+\(|^\s+File \"", re.MULTILINE)
# A busy machine: Spark, told to stop, interrupts its own threads that still drop blocks, and refuses what they go on with;
# the JVM prints both.
INTERRUPTED = re.compile(
    r'^(?:Exception in thread "block-manager-storage-async-thread-pool-|java\.util\.concurrent\.RejectedExecutionException: )'
    r".*\n(?:(?:\s+at |\s+\.\.\. |Caused by: ).*\n)*",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def house(first_night: House, tmp_path_factory: pytest.TempPathFactory) -> House:
    """The first night is published; every test is about the second."""
    return first_night.copy(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def sampled(house: House) -> House:
    """The same, with the samples of the second night; every test leaves it so."""
    run("build_positives", "--config", house.config, "--ds", SECOND)
    run("build_negatives", "--config", house.config, "--ds", SECOND)
    return house


CHILDREN: list["subprocess.Popen[str]"] = []


@pytest.fixture(autouse=True)
def _current_stays(house: House) -> Iterator[None]:
    before = house.current()
    yield
    while CHILDREN:
        end(CHILDREN.pop())
    assert house.current() == before


def fails(job: str, house: House, *flags: str, code: int, **how: Any) -> str:
    """The one message of a job that ends with this code."""
    said = INTERRUPTED.sub("", run(job, "--config", house.config, "--ds", SECOND, *flags, code=code, **how))
    assert how.get("traces") or not STACK.search(said), said
    (message,) = re.findall(r"^error: (.*)$", said, re.MULTILINE)
    return message


def succeeds(job: str, house: House, *flags: str) -> str:
    return run(job, "--config", house.config, "--ds", SECOND, *flags)


def file_of(house: House, table: str, ds: str) -> Path:
    return max((house.warehouse / table / f"ds={ds}").rglob("*.parquet"), key=lambda file: file.stat().st_size)


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


def test_an_input_partition_that_is_missing(house: House) -> None:
    day = house.warehouse / "interactions" / f"ds={SECOND}"
    aside = day.rename(house.folder / "aside")
    message = fails("build_positives", house, code=3)
    assert f"has no partition for ds={SECOND}" in message
    aside.rename(day)
    assert "build_positives" in succeeds("build_positives", house)


def test_an_input_file_that_is_cut_short(house: House) -> None:
    succeeds("build_positives", house)
    file = file_of(house, "interactions", SECOND)
    with spoilt(file, half):
        message = fails("build_positives", house, code=3)
        assert f"table interactions: the file file://{file} cannot be read" in message
    assert "already done" in succeeds("build_positives", house)


def test_a_state_of_last_night_that_is_cut_short(house: House) -> None:
    file = file_of(house, "user_histories", FIRST)
    with spoilt(file, half):
        message = fails("build_positives", house, "--force", code=3)
        assert f"table user_histories: the file file://{file} cannot be read" in message
        assert f"delete the folder file://{file.parent} and run the night of ds={FIRST} again" in message
    succeeds("build_positives", house, "--force")


def test_a_full_disk_in_the_middle_of_a_table(sampled: House) -> None:
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
def test_a_table_that_is_cut_short(sampled: House, table: str) -> None:
    file = file_of(sampled, table, SECOND)
    with spoilt(file, half):
        message = fails("train", sampled, "--force", code=3)
        assert f"table {table}: the file file://{file} cannot be read" in message
        folder = sampled.warehouse / table / f"ds={SECOND}"
        assert f"delete the folder file://{folder} and run the night of ds={SECOND} again" in message
    succeeds("train", sampled, "--force")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_in_the_middle_of_training(sampled: House, processes: int) -> None:
    flags = ("--force", "--set", "training.checkpoint_steps=1", "--set", f"training.processes={processes}")
    with small_disk(sampled.warehouse / "_on_the_way"):
        message = fails("train", sampled, *flags, code=1, traces=processes > 1)
        assert "No space left on device" in message
    succeeds("train", sampled, *flags)


def test_a_checkpoint_of_last_night_that_is_damaged(sampled: House) -> None:
    file = sampled.warehouse / "models" / f"ds={FIRST}" / "model.safetensors"
    with spoilt(file, lambda content: content[:-1] + bytes([content[-1] ^ 1])):
        message = fails("train", sampled, "--force", code=3)
        assert f"table models ds={FIRST}: file://{file} is not what was written" in message
    succeeds("train", sampled, "--force")


def test_a_checkpoint_on_the_way_that_is_damaged(sampled: House) -> None:
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


def test_a_day_that_another_run_works_on(house: House) -> None:
    child = start("build_positives", house, "--force")
    lock = house.warehouse / "_locks" / f"{SECOND}.json"
    wait(lock.exists, child)
    message = fails("nightly", house, code=1)
    assert f"worked on by jobs.build_positives (process {child.pid}" in message
    end(child)
    succeeds("build_positives", house, "--force")


def test_a_record_that_goes_away_in_the_middle(sampled: House) -> None:
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


def start(job: str, house: House, *flags: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """A job of the second night that goes on beside the test."""
    child = subprocess.Popen(
        command(job, "--config", house.config, "--ds", SECOND, *flags),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
    )
    CHILDREN.append(child)
    return child


def serve(house: House, port: int) -> "subprocess.Popen[str]":
    """An MLflow server that answers."""
    store = f"sqlite:///{house.folder}/server.db"
    flags = ["--backend-store-uri", store, "--artifacts-destination", str(house.folder / "artifacts")]
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *flags, *place],
        cwd=house.folder,
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

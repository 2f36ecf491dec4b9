"""A night that is killed many times ends in the same tables and the same release as a night that is not killed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from model.io.urls import checksum
from pipelines.storage.manifest import Manifest
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, ROOT, SECOND, NightlyRun, command, rows_of, run_job

KILLS = int(os.environ.get("NIGHTJAR_KILLS", "5"))  # with more than FEW, the first night is killed too
SEED = int(os.environ.get("NIGHTJAR_KILLS_SEED", "1"))
FEW = 10
# Paths in the warehouse that each step changes, in order; {} stands for the ds.
STEPS = {
    "build_positives": (
        *(
            f"{table}/ds={{}}"
            for table in ("vocabularies", "item_features", "item_versions", "user_histories", "positives")
        ),
        "item_stats/ds={}",
        "_staging/positives/{}",
    ),
    "build_negatives": ("samples/ds={}", "_staging/samples/{}"),
    "train": ("_staging/known_items/{}", "_on_the_way/models/{}", "models/ds={}", "_staging/models/{}"),
    "evaluate": ("item_embeddings/ds={}", "item_neighbours/ds={}", "evaluations/ds={}", "_staging/evaluations/{}"),
    "publish_items": ("releases", "_staging/releases/{}", "mlflow.db"),
}
ENDED = re.compile(r"(\w+) (\d{4}-\d\d-\d\d): done in (\d+\.\d) s$")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # part of the file names that Spark gives


@dataclass(frozen=True)
class Moment:
    """When to kill a run: `delay` seconds into a step, or `delay` seconds after `changes` changes of `path` in that step."""

    ds: str
    step: str
    path: str | None
    changes: int
    delay: float


def moments(rng: random.Random, nights: list[str], seconds: dict[tuple[str, str], float]) -> list[Moment]:
    """KILLS moments in the order of the steps, spread evenly over the steps. `seconds`: how long each step took."""
    steps = [(ds, step) for ds in nights for step in STEPS]
    chosen = sorted(rng.sample(range(len(steps)), KILLS % len(steps)) + [*range(len(steps))] * (KILLS // len(steps)))
    planned = []
    for ds, step in (steps[number] for number in chosen):
        path = rng.choice([None, *STEPS[step]]) if rng.random() < 0.7 else None
        delay = rng.random() * (0.02 if path else seconds[ds, step])
        planned.append(Moment(ds, step, path and path.format(ds), rng.randint(1, 6), delay))
    return planned


class Process:
    """A run of jobs/nightly.py in a new process, and the steps that it has finished."""

    def __init__(self, nightly_run: NightlyRun, flags: list[str]) -> None:
        self.nightly_run, self.lines = nightly_run, list[str]()
        self.ended: dict[tuple[str, str], float] = {}
        self.child = subprocess.Popen(
            command("nightly", *flags),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.child.stdout or ():
            self.lines.append(line)
            if match := ENDED.search(line):
                self.ended[match[2], match[1]] = float(match[3])

    def is_running(self) -> bool:
        """Whether the run goes on. Fails the test if it has ended with an error."""
        code = self.child.poll()
        assert code in (None, 0), self.end()
        return code is None

    def end(self) -> str:
        """Wait for the end of the run and return its output."""
        try:
            self.child.wait(timeout=3600)
        except BaseException:
            self.kill()
            raise
        self.reader.join(timeout=60)
        return "".join(self.lines)

    def kill(self) -> bool:
        """Kill the run, its JVM, trainer and Python workers (which have their own group). False if it had ended before."""
        children = psutil.Process(self.child.pid).children(recursive=True) if self.is_running() else []
        alive = self.child.poll() is None
        if alive:
            os.killpg(self.child.pid, signal.SIGKILL)
        for child in children:
            if child.is_running():
                child.kill()
        self.child.wait()
        psutil.wait_procs(children, timeout=30)
        return alive

    def kill_at(self, moment: Moment, before: tuple[str, str] | None) -> bool:
        """Kill the run at this moment, or at the end of the step if that is earlier. `before`: the step before it."""
        while self.is_running() and before is not None and before not in self.ended:
            time.sleep(0.002)
        began, path = time.monotonic(), self.nightly_run.warehouse / (moment.path or "")
        seen, changes = state_of(path), 0
        while self.is_running() and (moment.ds, moment.step) not in self.ended:
            if moment.path is None and time.monotonic() - began >= moment.delay:
                break
            if moment.path and (now := state_of(path)) != seen:
                seen, changes = now, changes + 1
                if changes == moment.changes:
                    time.sleep(moment.delay)
                    break
            time.sleep(0.0005)
        return self.kill()


def state_of(path: Path) -> list[Any]:
    """Inode and times of a path and of its direct children: a value that changes when one of them is written."""
    try:
        status = path.stat()
        inside = [(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(path)] if path.is_dir() else []
        return [status.st_ino, status.st_mtime_ns, sorted(inside)]
    except FileNotFoundError:
        return []


class Follower(threading.Thread):
    """Reads `current.json` all the time and checks that it always names a complete release."""

    def __init__(self, nightly_run: NightlyRun) -> None:
        super().__init__(daemon=True)
        self.releases, self.done = nightly_run.warehouse / "releases", threading.Event()
        self.problems: list[str] = []
        self.followed: list[str] = []
        self.reads = 0

    def run(self) -> None:
        while not self.done.wait(0.005):
            try:
                release = json.loads((self.releases / "current.json").read_text())["release_id"]
                assert json.loads((self.releases / release / "manifest.json").read_text())["release_id"] == release
                self.reads += 1
                if release not in self.followed:
                    self.followed.append(release)
            except FileNotFoundError as error:
                if self.followed or "current.json" not in str(error):  # it is missing before the first release
                    self.problems.append(repr(error))
            except Exception as error:
                self.problems.append(repr(error))


def contents(warehouse: Path) -> dict[str, Any]:
    """Manifests, rows and files of a warehouse, without times of writing and without the file names that Spark gives."""
    content: dict[str, Any] = {}
    for file in sorted(warehouse.glob("**/ds=*/_manifest.json")):
        folder = file.parent
        manifest = Manifest(**json.loads(UUID.sub("*", file.read_text())))
        fields = {name: value for name, value in vars(manifest).items() if name != "written_at"}
        manifest.facts.get("health", {}).pop("memory_mb", None)
        name = str(folder.relative_to(warehouse))
        content[name] = fields | {"fingerprint": manifest.fingerprint, "content": rows_of(folder)}
        for tensors in folder.glob("*.safetensors"):
            content[f"{name}/{tensors.name}"] = checksum(str(tensors))
    for file in sorted((warehouse / "releases").glob("*.json")) + sorted((warehouse / "releases").glob("*/*.json")):
        content[str(file.relative_to(warehouse))] = json.loads(UUID.sub("*", file.read_text()))
        # The digest covers checksums of Parquet files, whose bytes may differ (see below).
        content[str(file.relative_to(warehouse))].pop("digest", None)
    for file in (warehouse / "releases").glob("*/manifest.json"):
        name, folder = str(file.relative_to(warehouse)), file.parent
        for path, digest in json.loads(file.read_text())["files"].items():
            assert checksum(str(folder / path)) == digest
            # Spark's Parquet writer lists the encodings of a column in a different order in each process.
            if path.endswith(".parquet"):
                content[name]["files"][UUID.sub("*", path)] = pq.ParquetFile(folder / path).read().to_pylist()
    return content


@pytest.fixture
def nights(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[NightlyRun, list[str], list[str]]:
    """A run without the nights to be killed, their days, and the flags of jobs/nightly.py for them."""
    if KILLS > FEW:
        nightly_run, days, bootstrap = NightlyRun.simulate(tmp_path), [FIRST, SECOND], [*BOOTSTRAP]
    else:
        nightly_run, days, bootstrap = request.getfixturevalue("first_night").copy(tmp_path), [SECOND], []
    training = ["--set", "training.checkpoint_steps=1", "--set", "training.epochs=5"]
    flags = ["--config", nightly_run.config, *training, "--from", days[0], "--to", SECOND, *bootstrap]
    return nightly_run, days, flags


def uninterrupted(nightly_run: NightlyRun, flags: list[str]) -> tuple[dict[str, Any], dict[tuple[str, str], float]]:
    """Contents of the warehouse after a run that is not killed, and seconds per step. Restores the warehouse.

    All runs are in the same folder, because fingerprints of inputs contain paths and times.
    """
    folder = nightly_run.folder
    shutil.copytree(nightly_run.warehouse, folder / "before")
    process = Process(nightly_run, flags)
    assert "Traceback" not in process.end()
    assert process.child.returncode == 0, process.end()
    expected = contents(nightly_run.warehouse)
    nightly_run.warehouse.rename(folder / "uninterrupted")
    (folder / "before").rename(nightly_run.warehouse)
    return expected, process.ended


@pytest.mark.long
def test_a_night_that_is_killed_at_any_moment_ends_in_the_same_tables_and_release(
    nights: tuple[NightlyRun, list[str], list[str]],
) -> None:
    nightly_run, days, flags = nights
    expected, seconds = uninterrupted(nightly_run, flags)
    follower = Follower(nightly_run)
    follower.start()
    order = [(ds, step) for ds in days for step in STEPS]
    killed = 0
    for moment in moments(random.Random(SEED), days, seconds):
        number = order.index((moment.ds, moment.step))
        if Process(nightly_run, flags).kill_at(moment, order[number - 1] if number else None):
            killed += 1
            print(f"killed: {moment}", flush=True)
    output = run_job("nightly", *flags)
    follower.done.set()
    follower.join()

    assert killed >= 0.9 * KILLS
    assert follower.problems == []
    assert follower.reads > 100
    actual = contents(nightly_run.warehouse)
    assert actual.keys() == expected.keys(), output
    for name in expected:
        assert actual[name] == expected[name], name
    assert nightly_run.current() == follower.followed[-1]
    assert leftovers(nightly_run.warehouse) == []
    assert_one_run_per_night(nightly_run)


def leftovers(warehouse: Path) -> list[Path]:
    """Files that only a running job may have."""
    folders = [warehouse / name for name in ("_staging", "_on_the_way", "_locks")]
    files = [file for folder in folders for file in folder.rglob("*.*") if file.is_file()]
    return [*files, *warehouse.rglob("*.tmp"), *warehouse.rglob("*.writing-*")]


def assert_one_run_per_night(nightly_run: NightlyRun) -> None:
    """MLflow has one run per night, one model version per release, and no run that seems to go on."""
    client = MlflowClient(nightly_run.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    nights = sorted(run.data.tags["nightjar.night"] for run in runs if "nightjar.night" in run.data.tags)
    assert nights == [FIRST, SECOND]
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
    champion = client.get_model_version_by_alias("nightjar", "champion")
    assert champion.tags["release_id"] == nightly_run.current()
    versions = [version.tags["release_id"] for version in client.search_model_versions("name = 'nightjar'")]
    assert len(versions) == len(set(versions)) == 2

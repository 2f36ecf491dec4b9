"""A night that is killed again and again ends in the tables and the release of one that was left alone."""

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
from tests.jobs.nightly_run import FIRST, ROOT, SECOND, NightlyRun, command, rows_of, run_job

KILLS = int(os.environ.get("NIGHTJAR_KILLS", "5"))  # above FEW, the first night is killed too
SEED = int(os.environ.get("NIGHTJAR_KILLS_SEED", "1"))
FEW = 10
# What a step changes in the warehouse, in order; {} is the ds.
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
    "train": ("_on_the_way/models/{}", "models/ds={}", "_staging/models/{}"),
    "evaluate": ("item_embeddings/ds={}", "item_neighbours/ds={}", "evaluations/ds={}", "_staging/evaluations/{}"),
    "publish_items": ("releases", "_staging/releases/{}", "mlflow.db"),
}
ENDED = re.compile(r"(\w+) (\d{4}-\d\d-\d\d): (\d+\.\d) s$")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # Spark puts one into the name of each file


@dataclass(frozen=True)
class Moment:
    """When a run is killed: in a step, after a share of its time, or (`path`) so many changes there later."""

    ds: str
    step: str
    path: str | None
    changes: int
    delay: float


def moments(draw: random.Random, nights: list[str], seconds: dict[tuple[str, str], float]) -> list[Moment]:
    """KILLS moments, as many in each step, in the order of the steps."""
    steps = [(ds, step) for ds in nights for step in STEPS]
    chosen = sorted(draw.sample(range(len(steps)), KILLS % len(steps)) + [*range(len(steps))] * (KILLS // len(steps)))
    found = []
    for ds, step in (steps[place] for place in chosen):
        path = draw.choice([None, *STEPS[step]]) if draw.random() < 0.7 else None
        delay = draw.random() * (0.02 if path else seconds[ds, step])
        found.append(Moment(ds, step, path and path.format(ds), draw.randint(1, 6), delay))
    return found


class Process:
    """A run of the nights, with the steps that it has ended."""

    def __init__(self, nightly_run: NightlyRun, flags: list[str]) -> None:
        self.nightly_run, self.said = nightly_run, list[str]()
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
            self.said.append(line)
            if found := ENDED.search(line):
                self.ended[found[2], found[1]] = float(found[3])

    def is_on(self) -> bool:
        """Whether it runs; an assertion where it ended otherwise than well."""
        code = self.child.poll()
        assert code in (None, 0), self.end()
        return code is None

    def end(self) -> str:
        try:
            self.child.wait(timeout=3600)
        except BaseException:
            self.kill()
            raise
        self.reader.join(timeout=60)
        return "".join(self.said)

    def kill(self) -> bool:
        """SIGKILL to all of it: JVM, trainer, Python workers (which are a group of their own). False: it had ended."""
        family = psutil.Process(self.child.pid).children(recursive=True) if self.is_on() else []
        alive = self.child.poll() is None
        if alive:
            os.killpg(self.child.pid, signal.SIGKILL)
        for one in family:
            if one.is_running():
                one.kill()
        self.child.wait()
        psutil.wait_procs(family, timeout=30)
        return alive

    def kill_at(self, moment: Moment, before: tuple[str, str] | None) -> bool:
        """Kill it in this moment, or when the step has ended, whichever is first."""
        while self.is_on() and before is not None and before not in self.ended:
            time.sleep(0.002)
        began, path = time.monotonic(), self.nightly_run.warehouse / (moment.path or "")
        seen, changes = look(path), 0
        while self.is_on() and (moment.ds, moment.step) not in self.ended:
            if moment.path is None and time.monotonic() - began >= moment.delay:
                break
            if moment.path and (now := look(path)) != seen:
                seen, changes = now, changes + 1
                if changes == moment.changes:
                    time.sleep(moment.delay)
                    break
            time.sleep(0.0005)
        return self.kill()


def look(path: Path) -> list[Any]:
    """What changes when something is written at a path or right under it."""
    try:
        here = path.stat()
        inside = [(one.name, one.stat().st_mtime_ns) for one in os.scandir(path)] if path.is_dir() else []
        return [here.st_ino, here.st_mtime_ns, sorted(inside)]
    except FileNotFoundError:
        return []


class Follower(threading.Thread):
    """A reader of `current` that never rests: whatever it finds must lead to a whole release."""

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
                if self.followed or "current.json" not in str(error):  # before the first release there is none
                    self.problems.append(repr(error))
            except Exception as error:
                self.problems.append(repr(error))


def contents(warehouse: Path) -> dict[str, Any]:
    """All that a run leaves to its readers: manifests, rows, files; not when it was written, nor names that Spark gives."""
    found: dict[str, Any] = {}
    for file in sorted(warehouse.glob("**/ds=*/_manifest.json")):
        folder = file.parent
        manifest = Manifest(**json.loads(UUID.sub("*", file.read_text())))
        said = {name: value for name, value in vars(manifest).items() if name != "written_at"}
        manifest.facts.get("health", {}).pop("memory_mb", None)
        name = str(folder.relative_to(warehouse))
        found[name] = said | {"fingerprint": manifest.fingerprint, "content": rows_of(folder)}
        for tensors in folder.glob("*.safetensors"):
            found[f"{name}/{tensors.name}"] = checksum(str(tensors))
    for file in sorted((warehouse / "releases").glob("*.json")) + sorted((warehouse / "releases").glob("*/*.json")):
        found[str(file.relative_to(warehouse))] = json.loads(UUID.sub("*", file.read_text()))
        # It covers the checksums of Parquet files, whose bytes may differ: below.
        found[str(file.relative_to(warehouse))].pop("digest", None)
    for file in (warehouse / "releases").glob("*/manifest.json"):
        name, folder = str(file.relative_to(warehouse)), file.parent
        for path, digest in json.loads(file.read_text())["files"].items():
            assert checksum(str(folder / path)) == digest
            # Spark's writer lists the encodings of a column in an order that differs from process to process.
            if path.endswith(".parquet"):
                found[name]["files"][UUID.sub("*", path)] = pq.ParquetFile(folder / path).read().to_pylist()
    return found


def test_killed_at_any_moment_the_same_command_ends_in_the_same_night(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    draw = random.Random(SEED)
    training = ["--set", "training.checkpoint_steps=1", "--set", "training.epochs=5"]
    if KILLS > FEW:
        nightly_run, nights, bootstrap = NightlyRun.simulate(tmp_path), [FIRST, SECOND], ["--bootstrap-days", "4"]
    else:
        nightly_run, nights, bootstrap = request.getfixturevalue("first_night").copy(tmp_path), [SECOND], []
    flags = ["--config", nightly_run.config, *training, "--from", nights[0], "--to", SECOND, *bootstrap]

    # Both runs are in the same place: fingerprints of inputs hold their paths and times.
    shutil.copytree(nightly_run.warehouse, tmp_path / "before")
    alone = Process(nightly_run, flags)
    assert "Traceback" not in alone.end()
    assert alone.child.returncode == 0, alone.end()
    wanted = contents(nightly_run.warehouse)
    nightly_run.warehouse.rename(tmp_path / "alone")
    (tmp_path / "before").rename(nightly_run.warehouse)

    follower = Follower(nightly_run)
    follower.start()
    order = [(ds, step) for ds in nights for step in STEPS]
    killed = []
    for moment in moments(draw, nights, alone.ended):
        place = order.index((moment.ds, moment.step))
        process = Process(nightly_run, flags)
        if process.kill_at(moment, order[place - 1] if place else None):
            killed.append(moment)
            print(f"killed: {moment}", flush=True)
    said = run_job("nightly", *flags)
    follower.done.set()
    follower.join()

    assert len(killed) >= 0.9 * KILLS
    assert follower.problems == []
    assert follower.reads > 100
    got = contents(nightly_run.warehouse)
    assert got.keys() == wanted.keys(), said
    for name in wanted:
        assert got[name] == wanted[name], name
    assert nightly_run.current() == follower.followed[-1]
    left = [
        file for name in ("_staging", "_on_the_way", "_locks") for file in (nightly_run.warehouse / name).rglob("*.*")
    ]
    left += [*nightly_run.warehouse.rglob("*.tmp"), *nightly_run.warehouse.rglob("*.writing-*")]
    assert [file for file in left if file.is_file()] == []

    client = MlflowClient(nightly_run.tracking_uri)
    experiment = client.get_experiment_by_name("nightjar").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    assert sorted(one.data.tags["nightjar.night"] for one in runs if "nightjar.night" in one.data.tags) == [
        FIRST,
        SECOND,
    ]
    assert {one.info.status for one in runs} <= {"FINISHED", "FAILED", "KILLED"}
    champion = client.get_model_version_by_alias("nightjar", "champion")
    assert champion.tags["release_id"] == nightly_run.current()
    versions = [one.tags["release_id"] for one in client.search_model_versions("name = 'nightjar'")]
    assert len(versions) == len(set(versions)) == 2

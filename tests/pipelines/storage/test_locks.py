"""Locks: one run per day at a time; locks of dead runs are taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from pipelines.storage import locks
from pipelines.storage.locks import LockedError, locked
from pipelines.storage.warehouse import Warehouse

DS = "2024-03-04"


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path))


def write_lock(warehouse: Warehouse, **changes: Any) -> None:
    """Write the lock file of another run."""
    content = {"token": "x", "job": "train", "host": locks.process_namespace(), "pid": os.getpid(), "begun": ""}
    warehouse.write_text(f"{warehouse.root}/_locks/{DS}.json", json.dumps(content | {"beat": time.time()} | changes))


def test_one_run_at_a_time_holds_a_day_and_releases_it(warehouse: Warehouse) -> None:
    with locked(warehouse, DS, "nightly"):
        message = r"worked on by jobs\.nightly \(process \d+ on .*wait until it has ended"
        with pytest.raises(LockedError, match=message), locked(warehouse, DS, "train"):
            pass
        with locked(warehouse, "2024-03-05", "nightly"):  # Other days are not locked.
            pass
    with pytest.raises(ZeroDivisionError), locked(warehouse, DS, "train"):
        1 / 0  # noqa: B018
    with locked(warehouse, DS, "train"):
        pass
    assert not list(Path(warehouse.root.removeprefix("file://"), "_locks").iterdir())


def test_the_lock_of_a_dead_run_is_taken_over(warehouse: Warehouse) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for changes in (
        {"pid": dead.pid},
        {"pid": os.getpid(), "begun": f"{locks.start_time(os.getpid())}0"},  # The process id was reused.
        {"host": "elsewhere", "beat": time.time() - locks.SILENCE - 1},
    ):
        write_lock(warehouse, **changes)
        with locked(warehouse, DS, "nightly"):
            pass
    warehouse.write_text(f"{warehouse.root}/_locks/{DS}.json", "")  # The run died while it wrote the lock.
    with locked(warehouse, DS, "nightly"):
        pass


def test_a_run_on_another_machine_is_alive_while_it_sends_heartbeats(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(warehouse, host="elsewhere", beat=time.time() - 200)
    with (
        pytest.raises(LockedError, match=r"jobs\.train .* on elsewhere, last sign of life 20\d s ago"),
        locked(warehouse, DS, "nightly"),
    ):
        pass
    monkeypatch.setattr(locks, "BEAT", 0.05)
    file = f"{warehouse.root}/_locks/2024-03-06.json"
    with locked(warehouse, "2024-03-06", "nightly"):
        first = json.loads(warehouse.read_text(file))["beat"]
        deadline = time.monotonic() + 30
        while json.loads(warehouse.read_text(file))["beat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_only_a_process_that_has_ended_is_dead(warehouse: Warehouse) -> None:
    write_lock(warehouse, begun=locks.start_time(os.getpid()))
    with pytest.raises(LockedError, match=f"ds={DS} is being worked on"), locked(warehouse, DS, "nightly"):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 30
    while locks.start_time(ended.pid) is not None:  # The process is a zombie until wait() is called.
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ended.wait()
    assert locks.start_time(ended.pid) is None
    assert locks.start_time(os.getpid()) == locks.start_time(os.getpid())


def test_heartbeats_continue_after_a_failed_read(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    file = f"{warehouse.root}/_locks/{DS}.json"
    read, failed = locks._read, []

    def fails_once(*args: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OSError("no answer")
        return read(*args)

    with locked(warehouse, DS, "nightly"):
        first = json.loads(warehouse.read_text(file))["beat"]
        monkeypatch.setattr(locks, "_read", fails_once)
        deadline = time.monotonic() + 30
        while json.loads(warehouse.read_text(file))["beat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert failed


def test_a_short_lock_is_waited_for(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    order, taken = [], threading.Event()

    def first() -> None:
        with locks.locked_briefly(warehouse, "current", "releases"):
            taken.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    taken.wait()
    with locks.locked_briefly(warehouse, "current", "publish_items"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    with (
        locks.locked_briefly(warehouse, "current", "releases"),
        pytest.raises(LockedError, match=r"current is being worked on by jobs\.releases"),
        locks.locked_briefly(warehouse, "current", "publish_items"),
    ):
        pass


def test_only_one_of_many_runs_takes_over_a_stale_lock(warehouse: Warehouse) -> None:
    write_lock(warehouse, pid=-1)
    acquired, refused, barrier = [], [], threading.Barrier(6)

    def enter() -> None:
        barrier.wait()
        try:
            with locked(warehouse, DS, "nightly"):
                acquired.append(1)
                time.sleep(1)
        except LockedError:
            refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(acquired), len(refused)) == (1, 5)

"""One run of a day at a time."""

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


def leave(warehouse: Warehouse, **said: Any) -> None:
    """The lock file of a run that is not this one."""
    mine = {"token": "x", "job": "train", "host": locks.place(), "pid": os.getpid(), "begun": ""}
    warehouse.write_text(f"{warehouse.root}/_locks/{DS}.json", json.dumps(mine | {"beat": time.time()} | said))


def test_a_day_is_held_once_and_given_back(warehouse: Warehouse) -> None:
    with locked(warehouse, DS, "nightly"):
        said = r"worked on by jobs\.nightly \(process \d+ on .*wait until it has ended"
        with pytest.raises(LockedError, match=said), locked(warehouse, DS, "train"):
            pass
        with locked(warehouse, "2024-03-05", "nightly"):  # Another day is free.
            pass
    with pytest.raises(ZeroDivisionError), locked(warehouse, DS, "train"):
        1 / 0  # noqa: B018
    with locked(warehouse, DS, "train"):
        pass
    assert not list(Path(warehouse.root.removeprefix("file://"), "_locks").iterdir())


def test_what_a_dead_run_left_is_taken_over(warehouse: Warehouse) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for said in (
        {"pid": dead.pid},
        {"pid": os.getpid(), "begun": f"{locks.begun(os.getpid())}0"},  # The number is used again.
        {"host": "elsewhere", "beat": time.time() - locks.SILENCE - 1},
    ):
        leave(warehouse, **said)
        with locked(warehouse, DS, "nightly"):
            pass
    warehouse.write_text(f"{warehouse.root}/_locks/{DS}.json", "")  # It died while it wrote.
    with locked(warehouse, DS, "nightly"):
        pass


def test_a_run_elsewhere_is_alive_while_it_gives_signs(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(warehouse, host="elsewhere", beat=time.time() - 200)
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


def test_a_process_that_lives_is_not_dead_and_one_that_has_ended_is(warehouse: Warehouse) -> None:
    leave(warehouse, begun=locks.begun(os.getpid()))
    with pytest.raises(LockedError, match=f"ds={DS} is being worked on"), locked(warehouse, DS, "nightly"):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 30
    while locks.begun(ended.pid) is not None:  # A zombie until it is waited for.
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ended.wait()
    assert locks.begun(ended.pid) is None
    assert locks.begun(os.getpid()) == locks.begun(os.getpid())


def test_a_store_that_does_not_answer_once_stops_no_heart(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    file = f"{warehouse.root}/_locks/{DS}.json"
    read, failed = locks._read, []

    def fails_once(*asked: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OSError("no answer")
        return read(*asked)

    with locked(warehouse, DS, "nightly"):
        first = json.loads(warehouse.read_text(file))["beat"]
        monkeypatch.setattr(locks, "_read", fails_once)
        deadline = time.monotonic() + 30
        while json.loads(warehouse.read_text(file))["beat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert failed


def test_a_lock_of_a_moment_is_waited_for(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    order, taken = [], threading.Event()

    def first() -> None:
        with locks.locked_for_a_moment(warehouse, "current", "releases"):
            taken.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    taken.wait()
    with locks.locked_for_a_moment(warehouse, "current", "publish_items"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    with (
        locks.locked_for_a_moment(warehouse, "current", "releases"),
        pytest.raises(LockedError, match=r"current is being worked on by jobs\.releases"),
        locks.locked_for_a_moment(warehouse, "current", "publish_items"),
    ):
        pass


def test_of_many_that_find_a_dead_run_one_goes_on(warehouse: Warehouse) -> None:
    leave(warehouse, pid=-1)
    got, refused, all_in = [], [], threading.Barrier(6)

    def enter() -> None:
        all_in.wait()
        try:
            with locked(warehouse, DS, "nightly"):
                got.append(1)
                time.sleep(1)
        except LockedError:
            refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)

"""One run of a day at a time, and one that moves `current`: a lock file beside the tables, which dies with its run."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from py4j.protocol import Py4JError

from pipelines.contract.errors import NightjarError
from pipelines.storage.dates import parse_ds
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")

BEAT = 30.0  # seconds between two signs of life
SILENCE = 10 * BEAT  # after so many without one, a run on another machine counts as dead
PATIENCE = 60.0  # seconds to wait for a lock that is held for moments


class LockedError(NightjarError):
    """Another run holds the lock (exit 1)."""


@contextmanager
def locked(warehouse: Warehouse, ds: str, job: str) -> Iterator[None]:
    """Hold the lock of a day. LockedError while a run that is alive holds it; what a dead one left is taken over.

    Dead: its process is gone from this machine, or it has been silent for SILENCE on another one. Where a name can be
    taken twice (object stores), two runs that begin in the same instant may both get it.
    """
    with _held(warehouse, parse_ds(ds).isoformat(), job):
        yield


@contextmanager
def locked_for_a_moment(warehouse: Warehouse, name: str, job: str) -> Iterator[None]:
    """Hold a lock that nobody holds for long: to read a small file, decide, and write it. Waits PATIENCE, then LockedError."""
    with ExitStack() as stack:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                stack.enter_context(_held(warehouse, name, job))
                break
            except LockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield


@contextmanager
def _held(warehouse: Warehouse, name: str, job: str) -> Iterator[None]:
    uri = f"{warehouse.root}/_locks/{name}.json"
    mine = {"token": uuid.uuid4().hex, "job": job, "host": place(), "pid": os.getpid(), "begun": begun(os.getpid())}
    _take(warehouse, uri, mine)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(warehouse, uri, mine, done), name="lock", daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        if (_read(warehouse, uri) or {}).get("token") == mine["token"]:
            warehouse.delete(uri)


def _take(warehouse: Warehouse, uri: str, mine: dict[str, Any]) -> None:
    while not warehouse.create_text(uri, _alive(mine)):
        held = _read(warehouse, uri)
        if held is None:
            continue  # It has just been given back.
        if not _is_dead(held):
            raise LockedError(
                f"{_name_of(uri)} is being worked on by jobs.{held['job']} (process {held['pid']} on {held['host']}, last "
                f"sign of life {time.time() - held['beat']:.0f} s ago): wait until it has ended. If it has, delete {uri}"
            )
        # Of several that find it dead, one may put its own in its place: whoever holds the right to that of this token.
        right = f"{uri}.{held['token']}"
        _take(warehouse, right, mine)
        still = (_read(warehouse, uri) or {}).get("token") == held["token"]
        if still:
            warehouse.write_text(uri, _alive(mine))
        warehouse.delete(right)
        if still:
            return


def _beat(warehouse: Warehouse, uri: str, mine: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            if (_read(warehouse, uri) or {}).get("token") != mine["token"]:
                log.error("the lock %s was taken over or deleted while this run goes on: another may work there", uri)
                return
            warehouse.write_text(uri, _alive(mine))
        except (OSError, Py4JError) as error:  # A full disk, a store that does not answer: the next beat may do better.
            log.warning("the lock %s could not be renewed: %s", uri, error)


def _alive(mine: dict[str, Any]) -> str:
    return json.dumps(mine | {"beat": time.time()})


def _read(warehouse: Warehouse, uri: str) -> dict[str, Any] | None:
    """What a lock file says; None where it is gone. One that says nothing (its run died while it wrote) is dead."""
    try:
        return dict(json.loads(warehouse.read_text(uri)))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"token": "broken", "job": "?", "pid": -1, "host": place(), "begun": "", "beat": 0.0}


def _is_dead(held: dict[str, Any]) -> bool:
    if held["host"] != place():
        return bool(time.time() - held["beat"] > SILENCE)
    return begun(held["pid"]) != held["begun"]


def place() -> str:
    """Where numbers of processes mean the same: the host, and on Linux its namespace, which containers have of their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def begun(pid: int) -> str | None:
    """When a process began: a number that is used again belongs to another one. None where it does not live.

    On Linux in ticks since the machine started, which no change of its clock moves.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if state == "Z" else f"{boot} {rest[18]}"
    except OSError:
        pass
    try:
        return str(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError):
        return None


def _name_of(uri: str) -> str:
    """The day, or whatever a lock is of."""
    name = uri.rpartition("/")[2].partition(".json")[0]
    return f"ds={name}" if name[:1].isdigit() else name

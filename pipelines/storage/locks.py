"""Lock files: at most one run per day, and one process at a time that moves `current`. A lock expires with its run."""

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

BEAT = 30.0  # seconds between two heartbeats
SILENCE = 10 * BEAT  # seconds without a heartbeat after which a run on another machine counts as dead
PATIENCE = 60.0  # seconds to wait for a short lock


class LockedError(NightjarError):
    """Another run holds the lock (exit 1)."""


@contextmanager
def locked(warehouse: Warehouse, ds: str, job: str) -> Iterator[None]:
    """Hold the lock of a day. Raises LockedError if a live run holds it. Takes over the lock of a dead run.

    A run is dead if its process on this machine has ended, or if it runs on another machine and sent no heartbeat for
    SILENCE seconds. Some object stores cannot create a file exclusively: there, two runs that start in the same instant
    may both get the lock.
    """
    with _held(warehouse, parse_ds(ds).isoformat(), job):
        yield


@contextmanager
def locked_briefly(warehouse: Warehouse, name: str, job: str) -> Iterator[None]:
    """Hold a lock for a read-decide-write of a small file. Waits up to PATIENCE seconds, then raises LockedError."""
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
    own = {
        "token": uuid.uuid4().hex,
        "job": job,
        "host": process_namespace(),
        "pid": os.getpid(),
        "begun": start_time(os.getpid()),
    }
    _take(warehouse, uri, own)
    done = threading.Event()
    heartbeat = threading.Thread(target=_beat, args=(warehouse, uri, own, done), name="lock", daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        done.set()
        heartbeat.join()
        if (_read(warehouse, uri) or {}).get("token") == own["token"]:
            warehouse.delete(uri)


def _take(warehouse: Warehouse, uri: str, own: dict[str, Any]) -> None:
    while not warehouse.create_text(uri, _with_heartbeat(own)):
        held = _read(warehouse, uri)
        if held is None:
            continue  # The lock has just been released.
        if not _is_dead(held):
            raise LockedError(
                f"{_name_of(uri)} is being worked on by jobs.{held['job']} (process {held['pid']} on {held['host']}, last "
                f"sign of life {time.time() - held['beat']:.0f} s ago): wait until it has ended. If it has, delete {uri}"
            )
        # Only the process that holds the takeover lock of this token replaces the stale lock.
        takeover = f"{uri}.{held['token']}"
        _take(warehouse, takeover, own)
        is_stale = (_read(warehouse, uri) or {}).get("token") == held["token"]
        if is_stale:
            warehouse.write_text(uri, _with_heartbeat(own))
        warehouse.delete(takeover)
        if is_stale:
            return


def _beat(warehouse: Warehouse, uri: str, own: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            if (_read(warehouse, uri) or {}).get("token") != own["token"]:
                log.error("lost the lock %s: it was deleted or taken over while this run is active", uri)
                return
            warehouse.write_text(uri, _with_heartbeat(own))
        except (OSError, Py4JError) as error:  # For example a full disk or an unavailable store. The next beat retries.
            log.warning("cannot renew the lock %s: %s", uri, error)


def _with_heartbeat(own: dict[str, Any]) -> str:
    return json.dumps(own | {"beat": time.time()})


def _read(warehouse: Warehouse, uri: str) -> dict[str, Any] | None:
    """The content of a lock file; None if it does not exist.

    An unreadable file, whose run died while it wrote the file, counts as the lock of a dead run.
    """
    try:
        return dict(json.loads(warehouse.read_text(uri)))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"token": "broken", "job": "?", "pid": -1, "host": process_namespace(), "begun": "", "beat": 0.0}


def _is_dead(held: dict[str, Any]) -> bool:
    if held["host"] != process_namespace():
        return bool(time.time() - held["beat"] > SILENCE)
    return start_time(held["pid"]) != held["begun"]


def process_namespace() -> str:
    """Where process ids are unique: the host and, on Linux, the PID namespace, which differs between containers."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def start_time(pid: int) -> str | None:
    """When a process started, to detect reused process ids. None if the process is not alive.

    On Linux the time is in clock ticks since boot, which do not change with the system clock.
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
    """The name of the lock in messages: the day, or the name of a short lock."""
    name = uri.rpartition("/")[2].partition(".json")[0]
    return f"ds={name}" if name[:1].isdigit() else name

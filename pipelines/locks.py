"""One run of a day at a time: a lock file beside the tables, which dies with its run."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from py4j.protocol import Py4JError

from pipelines.errors import NightjarError
from pipelines.storage import Warehouse, parse_ds

log = logging.getLogger("nightjar")

BEAT = 30.0  # seconds between two signs of life
SILENCE = 10 * BEAT  # after so many without one, a run on another machine counts as dead


class LockedError(NightjarError):
    """Another run works on the same day (exit 1)."""


@contextmanager
def locked(warehouse: Warehouse, ds: str, job: str) -> Iterator[None]:
    """Hold the lock of a day. LockedError while a run that is alive holds it; what a dead one left is taken over.

    Dead: its process is gone from this machine, or it has been silent for SILENCE on another one. Where a name can be
    taken twice (object stores), two runs that begin in the same instant may both get it.
    """
    uri = f"{warehouse.root}/_locks/{parse_ds(ds).isoformat()}.json"
    mine = {"token": uuid.uuid4().hex, "job": job, "host": socket.gethostname(), "pid": os.getpid(), "begun": _begun()}
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
                f"this day is being worked on by jobs.{held['job']} (process {held['pid']} on {held['host']}, last sign of "
                f"life {time.time() - held['beat']:.0f} s ago): wait until it has ended. If it has, delete {uri}"
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
        if (_read(warehouse, uri) or {}).get("token") != mine["token"]:
            log.error("the lock %s was taken over or deleted while this run goes on: another may work on this day", uri)
            return
        try:
            warehouse.write_text(uri, _alive(mine))
        except (OSError, Py4JError) as error:  # A full disk, say: the next beat may find room.
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
        return {"token": "broken", "job": "?", "pid": -1, "host": socket.gethostname(), "begun": 0.0, "beat": 0.0}


def _is_dead(held: dict[str, Any]) -> bool:
    if held["host"] != socket.gethostname():
        return bool(time.time() - held["beat"] > SILENCE)
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["begun"]) > 1
    except (psutil.Error, ValueError):
        return True


def _begun() -> float:
    """When this process began: a number that is used again belongs to another process."""
    return float(psutil.Process().create_time())

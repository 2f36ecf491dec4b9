"""Logs what a job is doing: the start and the end of each step, and a heartbeat while nothing else is logged."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pipelines.contract.log_lines import LogHandler, counted, duration

log = logging.getLogger("nightjar")

INTERVAL = 30.0  # seconds without a line after which the heartbeat logs one


@dataclass
class Activity:
    """What the job is doing. Without a name, the heartbeat is silent."""

    name: str
    since: float = field(default_factory=time.monotonic)


_activities: list[Activity] = []  # the innermost one last


@contextmanager
def activity(name: str) -> Iterator[Activity]:
    """Name what the job does within the block. Empty: something else shows the progress, and the heartbeat is silent."""
    _activities.append(current := Activity(name))
    try:
        yield current
    finally:
        _activities.remove(current)


@contextmanager
def step(name: str, note: str = "") -> Iterator[None]:
    """Log the start of a step, and its end unless it raises. `note`: follows the start."""
    log.info("%s: starts%s", name, note and f" ({note})")
    with activity(name) as current:
        yield
    log.info("%s: done in %.1f s", name, time.monotonic() - current.since)


@contextmanager
def heartbeat(tasks: Callable[[], str], interval: float = INTERVAL) -> Iterator[None]:
    """Within the block, log what the job does whenever nothing has been logged for `interval` seconds. See Heartbeat."""
    ended, beats = threading.Event(), Heartbeat(tasks, interval)

    def beat() -> None:
        while not ended.wait(min(1.0, interval / 4)):
            line = beats.line()
            if line and not ended.is_set():
                log.info(line)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)  # It may wait for an answer of a JVM that is busy or dead.


class Heartbeat:
    """Decides when to say that a job still runs."""

    def __init__(self, tasks: Callable[[], str], interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`tasks`: what Spark has done and what is left, as text; empty if it has nothing to do."""
        self._tasks, self._interval, self._clock = tasks, interval, clock
        self._since = clock()

    def line(self) -> str | None:
        """The line to log now; None if the last line of any kind is younger than the interval."""
        current, now = _activities[-1] if _activities else Activity(""), self._clock()
        if not current.name:
            self._since = now
        written = [handler.last for handler in log.handlers if isinstance(handler, LogHandler)]
        if now - max([self._since, *written]) < self._interval:
            return None
        self._since, done = now, ""
        with suppress(Exception):  # The step reports what is wrong with Spark.
            done = self._tasks()
        return f"{current.name}: running for {duration(now - current.since)}{done and f'; {done}'}"


def spark_tasks(spark: Any) -> str:
    """How many tasks of the newest Spark job are done, and how many are left; empty if no job runs.

    A job's tasks include those of stages that Spark skips because their output exists.
    """
    tracker = spark.sparkContext.statusTracker()
    jobs = sorted(tracker.getActiveJobsIds())
    info = tracker.getJobInfo(jobs[-1]) if jobs else None
    stages = [stage for number in (info.stageIds if info else ()) if (stage := tracker.getStageInfo(number))]
    tasks, done = sum(stage.numTasks for stage in stages), sum(stage.numCompletedTasks for stage in stages)
    if not stages:
        return ""
    return f"Spark job {jobs[-1]}: {done:,} of {counted(tasks, 'task')} done, {tasks - done:,} left"

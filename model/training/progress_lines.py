"""How far a training is, in plain lines at growing intervals: for logs, where a progress bar would be unreadable."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("nightjar.training")  # Jobs show what this logger says.

FIRST, LONGEST = 10.0, 300.0  # seconds until the first line, and at most between two; each interval doubles the last


class StepTotals(Protocol):
    """What a Recorder knows: the step, and sums of figures over all steps."""

    step: int

    def total(self, name: str) -> float:
        """The sum of a figure over all steps."""


class ProgressLines:
    """Logs step, speed, loss and time left, the last two over the steps since the line before."""

    def __init__(self, total_steps: int, sums: StepTotals, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._sums, self._clock = total_steps, sums, clock
        self._interval, self._since = FIRST, clock()
        self._before = self._now()

    def _now(self) -> tuple[int, float, float]:
        return self._sums.step, self._sums.total("rows"), self._sums.total("loss")

    def after_step(self) -> None:
        """Log a line if the interval is over."""
        seconds = self._clock() - self._since
        if seconds < self._interval:
            return
        step, rows, loss = (now - before for now, before in zip(self._now(), self._before, strict=True))
        left = (self._steps - self._sums.step) * seconds / step
        log.info(
            "training: step %s of %s, %s rows/s, loss %.4f, %s left",
            f"{self._sums.step:,}", f"{self._steps:,}", f"{rows / seconds:,.0f}", loss / step, duration(left),
        )  # fmt: skip
        self._since, self._before = self._clock(), self._now()
        self._interval = min(LONGEST, 2 * self._interval)


def duration(seconds: float) -> str:
    """A span of time, to what matters of it.

    >>> duration(42), duration(754), duration(7500)
    ('42 s', '13 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def log_to_stdout() -> None:
    """Write the lines to stdout in a process that shows no log of Nightjar yet, e.g. one of several that train."""
    logger = logging.getLogger("nightjar")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)

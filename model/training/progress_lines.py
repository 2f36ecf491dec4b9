"""Logs the progress of training as lines at growing intervals, for logs in which a progress bar would be unreadable."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("nightjar.training")  # Jobs show the messages of this logger.

FIRST, LONGEST = 10.0, 300.0  # Seconds: first interval and longest interval. Each interval is twice the previous one.


class StepTotals(Protocol):
    """The interface of Recorder that ProgressLines reads."""

    step: int

    def total(self, name: str) -> float:
        """The sum of a figure over all steps."""


class ProgressLines:
    """Logs step, speed, loss and time left. Speed, loss and time left are computed from the steps since the previous line."""

    def __init__(self, total_steps: int, totals: StepTotals, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._totals, self._clock = total_steps, totals, clock
        self._interval, self._since = FIRST, clock()
        self._before = self._now()

    def _now(self) -> tuple[int, float, float]:
        return self._totals.step, self._totals.total("rows"), self._totals.total("loss")

    def after_step(self) -> None:
        """Log a line if the interval has passed."""
        seconds = self._clock() - self._since
        if seconds < self._interval:
            return
        step, rows, loss = (now - before for now, before in zip(self._now(), self._before, strict=True))
        left = (self._steps - self._totals.step) * seconds / step
        log.info(
            "training: step %s of %s, %s rows/s, loss %.4f, %s left",
            f"{self._totals.step:,}", f"{self._steps:,}", f"{rows / seconds:,.0f}", loss / step, duration(left),
        )  # fmt: skip
        self._since, self._before = self._clock(), self._now()
        self._interval = min(LONGEST, 2 * self._interval)


def duration(seconds: float) -> str:
    """Format a duration in a precision that fits its length.

    >>> duration(42), duration(754), duration(7500)
    ('42 s', '13 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def log_to_stdout() -> None:
    """Write the lines to stdout, unless this process has a handler for logs of Nightjar. Used by training workers."""
    logger = logging.getLogger("nightjar")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)

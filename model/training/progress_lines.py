"""Logs the progress of training as lines, for logs in which a progress bar would be unreadable."""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from model.distributed.collectives import rank, world_size
from model.training.spec import EpochMetrics, TrainingSpec
from pipelines.contract.log_lines import counted, duration

log = logging.getLogger("nightjar.training")  # Jobs show the messages of this logger.

FIRST, INTERVAL = (
    10.0,
    25.0,
)  # Seconds to the first line, and between lines: less than the 30 s of jobs/common/progress.py.
EPOCHS = 20


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
        self._interval = INTERVAL


def log_start(spec: TrainingSpec, steps: int, device: str) -> None:
    """Log the size of a run, on rank 0. `steps`: of the whole run."""
    if rank():
        return
    rows = sum(file.rows if file.positives is None else file.positives for file in spec.train)
    log.info(
        "training: %s%s steps in %s of %s rows; %s on %s",
        "at most " if spec.early_stopping else "", f"{steps:,}", counted(spec.epochs, "epoch"), f"{rows:,}",
        counted(world_size(), "process"), device,
    )  # fmt: skip


def log_resume(step: int, steps: int, epoch: int) -> None:
    """Log where a run resumes, on rank 0. `epoch`: from 0."""
    if not rank():
        log.info("training: resumes after step %s of %s, in epoch %d", f"{step:,}", f"{steps:,}", epoch + 1)


def log_epoch(metrics: EpochMetrics, epochs: int) -> None:
    """Log the losses of an epoch, on rank 0. `epochs`: of the whole run; of many epochs about EPOCHS are logged."""
    every, done = -(-epochs // EPOCHS), metrics.epoch + 1
    if rank() or (done % every and done < epochs):
        return
    held_out = "" if metrics.valid_loss is None else f", {metrics.valid_loss:.4f} on the held-out hours"
    log.info(
        "training: epoch %d of %d: loss %.4f%s (%s)",
        done, epochs, metrics.loss, held_out, duration(metrics.seconds),
    )  # fmt: skip

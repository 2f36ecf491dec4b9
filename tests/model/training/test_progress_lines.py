"""Training logs its epochs, and its progress at intervals if there is no progress bar."""

import itertools
import logging

import pytest

from model.training.progress_lines import EPOCHS, FIRST, INTERVAL, ProgressLines, log_epoch
from model.training.spec import EpochMetrics


class StepTotals:
    """One step per second, 100 rows per step; the loss of step n is n."""

    def __init__(self) -> None:
        self.step = 0

    def total(self, name: str) -> float:
        return {"rows": 100.0 * self.step, "loss": float(sum(range(self.step + 1)))}[name]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What training logs."""
    caplog.set_level(logging.INFO, "nightjar.training")
    monkeypatch.setattr(logging.getLogger("nightjar"), "propagate", True)
    return caplog


def test_lines_come_at_intervals_with_speed_loss_and_time_left(log: pytest.LogCaptureFixture) -> None:
    totals = StepTotals()
    lines = ProgressLines(4_000, totals, clock=lambda: float(totals.step))
    logged_at = []
    for step in range(1, 2_001):
        totals.step = step
        before = len(log.records)
        lines.after_step()
        logged_at += [step] * (len(log.records) - before)
    assert logged_at[0] == FIRST
    assert {after - before for before, after in itertools.pairwise(logged_at)} == {INTERVAL}
    assert log.messages[1] == "training: step 35 of 4,000, 100 rows/s, loss 23.0000, 66 min left"


def test_epochs_are_logged_and_of_many_a_few(log: pytest.LogCaptureFixture) -> None:
    def epoch(number: int, valid_loss: float | None = None) -> EpochMetrics:
        return EpochMetrics(epoch=number, loss=2.5, valid_loss=valid_loss, valid_recall_in_batch=None, seconds=83.2)

    log_epoch(epoch(0), 2)
    log_epoch(epoch(1, 2.75), 2)
    assert log.messages == [
        "training: epoch 1 of 2: loss 2.5000 (83 s)",
        "training: epoch 2 of 2: loss 2.5000, 2.7500 on the held-out hours (83 s)",
    ]
    log.clear()
    for number in range(1_003):
        log_epoch(epoch(number), 1_003)
    assert len(log.messages) == EPOCHS
    assert log.messages[-1].startswith("training: epoch 1003 of 1003")

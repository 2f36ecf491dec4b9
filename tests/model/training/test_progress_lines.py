"""Training logs its progress at growing intervals if there is no progress bar."""

import itertools
import logging

import pytest

from model.training.progress_lines import FIRST, LONGEST, ProgressLines, duration


class StepTotals:
    """One step per second, 100 rows per step; the loss of step n is n."""

    def __init__(self) -> None:
        self.step = 0

    def total(self, name: str) -> float:
        return {"rows": 100.0 * self.step, "loss": float(sum(range(self.step + 1)))}[name]


def test_lines_come_at_growing_intervals_with_speed_loss_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nightjar.training")
    logging.getLogger("nightjar").propagate = True
    totals = StepTotals()
    lines = ProgressLines(4_000, totals, clock=lambda: float(totals.step))
    logged_at = []
    for step in range(1, 2_001):
        totals.step = step
        before = len(caplog.records)
        lines.after_step()
        logged_at += [step] * (len(caplog.records) - before)
    assert logged_at[0] == FIRST
    intervals = [after - before for before, after in itertools.pairwise(logged_at)]
    assert intervals[:4] == [20, 40, 80, 160]
    assert set(intervals[5:]) == {LONGEST}
    assert caplog.messages[1] == "training: step 30 of 4,000, 100 rows/s, loss 20.5000, 66 min left"


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "5 s"), (754, "13 min"), (7500, "2 h 05 min")])
def test_the_precision_of_a_duration_fits_its_length(seconds: float, text: str) -> None:
    assert duration(seconds) == text

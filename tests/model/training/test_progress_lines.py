"""A training whose output is no terminal says how far it is, more rarely the longer it takes."""

import itertools
import logging

import pytest

from model.training.progress_lines import FIRST, LONGEST, ProgressLines, duration


class StepTotals:
    """A step a second, 100 rows each, with a loss of the step's number."""

    def __init__(self) -> None:
        self.step = 0

    def total(self, name: str) -> float:
        return {"rows": 100.0 * self.step, "loss": float(sum(range(self.step + 1)))}[name]


def test_lines_come_at_growing_intervals_with_speed_loss_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nightjar.training")
    logging.getLogger("nightjar").propagate = True
    sums = StepTotals()
    lines = ProgressLines(4_000, sums, clock=lambda: float(sums.step))
    at = []
    for step in range(1, 2_001):
        sums.step = step
        before = len(caplog.records)
        lines.after_step()
        at += [step] * (len(caplog.records) - before)
    assert at[0] == FIRST
    intervals = [after - before for before, after in itertools.pairwise(at)]
    assert intervals[:4] == [20, 40, 80, 160]
    assert set(intervals[5:]) == {LONGEST}
    assert caplog.messages[1] == "training: step 30 of 4,000, 100 rows/s, loss 20.5000, 66 min left"


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "5 s"), (754, "13 min"), (7500, "2 h 05 min")])
def test_a_span_is_said_to_what_matters_of_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text

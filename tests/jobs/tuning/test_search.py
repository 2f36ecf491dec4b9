"""The budget: what is too short is refused with the time that it takes, and the final check keeps its time."""

import argparse
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.tuning.plan import CONFIG, SEARCH
from jobs.tuning.search import SEEDS, Budget, Search
from jobs.tuning.space import TuningData, changes, start_values, training_parameters
from jobs.tuning.study import Study
from jobs.tuning.tail import Tail
from jobs.tuning.trials import Measured
from pipelines.contract.errors import UsageError
from tests.jobs.tuning.test_study import USER

DATA = TuningData(rows=27_000, days=6, ranking_logs=False)
NOTHING: Any = None


def searching(folder: Path, budget: Budget, figures: list[float], seconds: float) -> Search:
    """A search after trials with these figures, the first of them the config. No stored result but theirs."""
    parameters = [p for p in training_parameters(USER, DATA) if p.name in ("loss.temperature", "model.dim")]
    study = Study(NOTHING, f"file://{folder}", "study", 7, parameters)
    start = start_values(parameters, USER)
    for number, recall in enumerate(figures):
        fixed = start | {"loss.temperature": 0.2 + 0.01 * number}
        trial = study.next(SEARCH if number else CONFIG, fixed)
        trial.begin(changes(trial.values, USER))
        trial.finish(recall, seconds)
    stored = Measured([], "", seconds)
    trials: Any = argparse.Namespace(
        config=USER,
        tail=Tail("2024-03-08", "2024-03-07", 7, []),
        table_seconds=30.0,
        stored=lambda changed, seed: stored if seed == USER.seed else None,
    )
    return Search(trials, study, NOTHING, NOTHING, budget)


def test_a_budget_that_is_too_short_is_refused_with_the_time_that_is_needed(tmp_path: Path) -> None:
    search = searching(tmp_path, Budget(2, None, time.monotonic() - 50), [0.4], seconds=40)
    with pytest.raises(
        UsageError, match=r"--minutes 2: is too short.*A trial takes about 40 s, and 5. s are spent"
    ) as caught:
        search.run()
    assert "again with --minutes 6 or more" in str(caught.value)
    assert "What was measured is kept" in str(caught.value)


def test_the_time_of_the_final_check_is_reserved(tmp_path: Path) -> None:
    better = searching(tmp_path / "a", Budget(2, None, time.monotonic() - 75), [0.4, 0.5], seconds=10)
    assert better.check_seconds() == 2 * SEEDS * 10
    better.run()  # 45 s are left, 40 of them for the check: no trial starts, so the planner is not asked
    same = searching(tmp_path / "b", Budget(2, None, time.monotonic()), [0.5, 0.4], seconds=10)
    assert same.check_seconds() == 2 * SEEDS * 10, "a better setting may still come"


def test_the_number_of_trials_ends_the_search(tmp_path: Path) -> None:
    searching(tmp_path, Budget(60, 2, time.monotonic()), [0.4, 0.5], seconds=10).run()

"""The study continues where it stopped, and the plan of its trials."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from jobs.common.config import Config, load_config
from jobs.tuning.plan import CONFIG, DEFAULTS, NEAR, REVERT, SEARCH, TABLES, Planner
from jobs.tuning.space import TuningData, changes, sampling_parameters, training_parameters, value_of
from jobs.tuning.study import STARTUP, OpenTrial, Study
from tests.jobs.nightly_run import ROOT

DATA = TuningData(rows=27_000, days=6, ranking_logs=False)
USER = load_config(str(ROOT / "conf/demo.yaml"))
# A part of the space: each value of a trial is a commit of sqlite.
TRAINING = {"loss.temperature", "model.dim", "model.hidden", "model.dropout", "training.learning_rate"}
SAMPLING = {"positives.downsample", "negatives.uniform"}


class Steps:
    """Runs trials whose figure is a function of their values."""

    def __init__(self, folder: Path, config: Config = USER) -> None:
        self.config = config
        self.training = [p for p in training_parameters(config, DATA) if p.name in TRAINING]
        self.sampling = [p for p in sampling_parameters(config, DATA) if p.name in SAMPLING]
        nothing: Any = None  # The folder is local, so the study does not use the warehouse.
        self.study = Study(nothing, f"file://{folder}", "study", 7, [*self.training, *self.sampling])
        self.planner = Planner(self.study, config, self.training, self.sampling)

    def begin(self, used: float = 0.0, *, may_build: bool = True) -> OpenTrial:
        step = self.planner.next(used, may_build=may_build)
        trial = self.study.next(*step)
        trial.begin(changes(trial.values, self.config))
        return trial

    def run(self, used: float = 0.0, *, may_build: bool = True) -> OpenTrial:
        trial = self.begin(used, may_build=may_build)
        trial.finish(figure(trial.values), seconds=1.0)
        return trial


def figure(values: dict[str, Any]) -> float:
    """A figure that is highest at temperature 0.1, and higher without down-sampling."""
    return 0.5 - abs(values["loss.temperature"] - 0.1) + (values["positives.downsample"] is None) * 0.1


def test_the_first_trials_are_the_config_and_the_defaults(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    first, second, third = steps.run(), steps.run(), steps.run()
    assert (first.kind, changes(first.values, USER)) == (CONFIG, {})
    assert (second.kind, second.values["loss.temperature"]) == (DEFAULTS, 0.15)
    assert third.kind == NEAR
    assert all(third.values[p.name] == first.values[p.name] for p in steps.sampling), "the sample tables are the same"


def test_an_interrupted_study_tries_what_an_uninterrupted_one_tries(tmp_path: Path) -> None:
    whole = Steps(tmp_path / "whole")
    expected = [whole.run().values for _ in range(4)]
    values = [Steps(tmp_path / "parts").run().values for _ in range(2)]  # each in a new process, as it were
    stopped = Steps(tmp_path / "parts").begin()
    stopped.interrupt()
    killed = Steps(tmp_path / "parts").begin()  # ends without a word
    assert stopped.values == killed.values == expected[2]
    values += [Steps(tmp_path / "parts").run().values for _ in range(2)]
    assert values == expected


def test_trials_near_the_best_one_come_before_those_of_the_whole_space_and_then_in_turn(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.run(), steps.run()
    before = steps.study.values_of(steps.study.best)
    for _ in range(STARTUP):
        trial = steps.run()
        different = {name for name, value in trial.values.items() if value != before[name]}
        assert trial.kind == NEAR
        assert 1 <= len(different) <= 3
        assert different <= TRAINING
        before = steps.study.values_of(steps.study.best)
    assert [steps.run().kind for _ in range(4)] == [SEARCH, NEAR, SEARCH, NEAR]
    tried = [trial.user_attrs["changes"] for trial in steps.study.ended]
    assert len({str(changed) for changed in tried}) == len(tried), "nothing is tried twice"
    assert (steps.study.best.value or 0) > (steps.study.completed[0].value or 0)


def test_a_value_near_another_is_a_different_one_in_the_range() -> None:
    rng = np.random.default_rng(1)
    for parameter in training_parameters(USER, DATA):
        value = value_of(USER, parameter.name)
        moved = [parameter.near(value, rng) for _ in range(200)]
        if parameter.choices:
            assert (
                set(map(str, moved)) == {str(choice) for choice in parameter.choices if choice != value}
                or len(parameter.choices) == 1
            )
            continue
        assert all(max(parameter.low, value / 2.01) <= other <= min(parameter.high, 2.01 * value) for other in moved)
        assert min(moved) < value < max(moved)
        if parameter.whole:
            assert value not in moved
            assert all(isinstance(other, int) for other in moved)
            assert {parameter.near(int(parameter.low), rng) for _ in range(20)} == {int(parameter.low) + 1}


def test_other_sample_tables_are_tried_once_each_in_the_middle_of_the_budget(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    for _ in range(3):
        steps.run()
    assert steps.run(0.5, may_build=False).kind == NEAR
    choices = sum(len(parameter.choices) - 1 for parameter in steps.sampling)
    kinds = [steps.run(0.5).kind for _ in range(2 * choices + 12)]
    assert kinds[:3] == [TABLES, NEAR, TABLES]
    assert choices - 1 <= kinds.count(TABLES) <= choices + 2
    assert set(kinds[-2:]) <= {NEAR, SEARCH}
    assert steps.study.values_of(steps.study.best)["positives.downsample"] is None
    assert steps.run(0.5).values["positives.downsample"] is None, "the search goes on with the best tables"


def test_changes_without_effect_are_taken_back_at_the_end(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    for _ in range(6):
        steps.run()
    before = len(changes(steps.study.values_of(steps.study.best), USER))
    while steps.planner.next(0.9, may_build=True).kind == REVERT:
        assert len(changes(steps.run(0.9).values, USER)) < before
    best = steps.study.best
    assert len(steps.study.ended) <= 6 + before, "each change is taken back once"
    assert changes(steps.study.values_of(best), USER).keys() <= {"loss.temperature"}
    assert best.value == max(other.value or 0 for other in steps.study.completed)


def test_a_trial_that_is_clearly_worse_than_the_median_is_pruned_unless_it_may_not_be(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    for _ in range(5):
        trial = steps.begin()
        for number, recall in enumerate((0.4, 0.45, 0.5, 0.49), 1):
            trial.report(number, recall, may_prune=False)
        trial.finish(0.49, seconds=1.0)
    slow = steps.begin()
    for number, recall in enumerate((0.385, 0.443, 0.495, 0.48), 1):
        slow.report(number, recall, may_prune=True)
    slow.finish(0.48, seconds=1.0)
    late = steps.begin()
    late.report(1, 0.385, may_prune=True)
    with pytest.raises(optuna.TrialPruned):
        late.report(2, 0.435, may_prune=True)
    late.prune()
    spared, bad = steps.begin(), steps.begin()
    spared.report(1, 0.1, may_prune=False)
    with pytest.raises(optuna.TrialPruned):
        bad.report(1, 0.1, may_prune=True)
    bad.prune()
    assert len(steps.study.ended) == len(steps.study.completed) + 2

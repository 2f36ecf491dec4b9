"""Which trial comes next: a pure function of the trials so far and of the share of the budget that is used.

1. The config as it is, then the defaults.
2. Model, loss and training, with the sample tables of the best trial so far: first the best trial with one to three other
   values, then in turn such a trial and one of TPE. Random values of twenty settings are nearly always far worse than a
   config that somebody thought about, and in a small budget all trials of TPE would be random.
3. In the middle of the budget, if it allows, every other trial: the best one with another choice of one setting of the
   sample tables, each choice once.
4. At the end of the budget: the best trial with one of its changes taken back, each once. Changes without effect go.
"""

from typing import NamedTuple

from jobs.common.config import Config
from jobs.tuning.space import Parameter, Values, changes, encoded, start_values
from jobs.tuning.study import CHANGES, KIND, STARTUP, WHAT, Study
from model.seeds import numpy_generator

CONFIG, DEFAULTS, NEAR, SEARCH, TABLES, REVERT = "config", "defaults", "near", "search", "tables", "revert"
TABLES_FROM, REVERT_FROM = 0.4, 0.75  # shares of the budget
CHANGED = (0.6, 0.3, 0.1)  # chances that a trial near the best one changes one, two or three settings
ATTEMPTS = 100  # draws of a trial near the best one that has not been tried


class Step(NamedTuple):
    """The kind of the next trial, and the values that are fixed; TPE chooses the others."""

    kind: str
    fixed: Values
    what: str = ""  # the setting that is changed or taken back


class Planner:
    """Plans the trials of a study."""

    def __init__(self, study: Study, config: Config, training: list[Parameter], sampling: list[Parameter]) -> None:
        self._study, self._config, self._training, self._sampling = study, config, training, sampling
        self._start = start_values([*training, *sampling], config)

    def next(self, used: float, *, may_build: bool) -> Step:
        """`used`: share of the budget. `may_build`: whether time remains to build other sample tables."""
        kinds = {trial.user_attrs.get(KIND) for trial in self._study.ended}
        if CONFIG not in kinds:
            return Step(CONFIG, self._start)
        if DEFAULTS not in kinds:
            return Step(DEFAULTS, self._start | start_values(self._training, Config()))
        best = self._study.values_of(self._study.best)
        tried = [trial.user_attrs[CHANGES] for trial in self._study.ended]
        steps: list[Step] = []
        if used >= REVERT_FROM:
            steps = self._reverts(best)
        elif used >= TABLES_FROM and may_build and self._study.ended[-1].user_attrs.get(KIND) != TABLES:
            steps = self._other_tables(best)
        done = {trial.user_attrs.get(WHAT) for trial in self._study.ended}
        for step in steps:
            if step.what not in done and changes(step.fixed, self._config) not in tried:
                return step
        searched = [trial.user_attrs.get(KIND) for trial in self._study.ended]
        searched = [kind for kind in searched if kind in (NEAR, SEARCH)]
        if len(searched) < STARTUP or searched[-1] == SEARCH:
            near = self._near(best, tried)
            if near:
                return near
        return Step(SEARCH, {parameter.name: best[parameter.name] for parameter in self._sampling})

    def _near(self, best: Values, tried: list[Values]) -> Step | None:
        """The best trial with one to three other values that do not need other sample tables. None if all seem tried."""
        rng = numpy_generator(self._config.seed, "near", len(self._study.ended))
        for _ in range(ATTEMPTS):
            count = 1 + int(rng.choice(len(CHANGED), p=CHANGED))
            chosen = rng.choice(len(self._training), min(count, len(self._training)), replace=False)
            moved = {p.name: p.near(best[p.name], rng) for p in (self._training[place] for place in chosen)}
            values = best | moved
            if changes(values, self._config) not in tried:
                return Step(NEAR, values)
        return None

    def _other_tables(self, best: Values) -> list[Step]:
        """The best trial with another choice of one setting of the sample tables."""
        return [
            Step(TABLES, best | {parameter.name: choice}, f"{parameter.name}={encoded(choice)}")
            for parameter in self._sampling
            for choice in parameter.choices
            if choice != best[parameter.name]
        ]

    def _reverts(self, best: Values) -> list[Step]:
        """The best trial with one changed setting as it is in the config."""
        changed = changes(best, self._config)
        names = [name for name in best if name in changed and name in self._start]
        return [Step(REVERT, best | {name: self._start[name]}, name) for name in names]

"""Runs the trials of a study until the budget ends, keeping the time that the final check needs."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import TrialPruned
from pydantic import ValidationError

from jobs.common.runner import log
from jobs.tracking.tuning_tracker import TuningTracker
from jobs.tuning.plan import CONFIG, DEFAULTS, Planner
from jobs.tuning.space import Values, changes
from jobs.tuning.study import CHANGES, SECONDS, OpenTrial, Study
from jobs.tuning.trials import Measured, Trials
from model.evaluation.ranking_metrics import bootstrap_interval
from model.training.degenerate_loss import DegenerateLossError
from pipelines.contract.errors import UsageError
from pipelines.contract.log_lines import duration

SEEDS = 2  # other seeds with which the final check trains the best setting and the config's
RESAMPLES = 1000


class OutOfTimeError(Exception):
    """The budget of this call ended during a trial."""


@dataclass(frozen=True)
class Budget:
    """The time of this call, and the number of trials of the study."""

    minutes: int
    trials: int | None
    started: float

    @property
    def end(self) -> float:
        """When the time is over, on the monotonic clock."""
        return self.started + 60 * self.minutes

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self.end - time.monotonic())


class Search:
    """Trials of one call."""

    def __init__(self, trials: Trials, study: Study, planner: Planner, tracker: TuningTracker, budget: Budget) -> None:
        self._trials, self._study, self._planner = trials, study, planner
        self._tracker, self._budget, self._ds = tracker, budget, trials.tail.ds
        self._epoch_seconds: list[float] = []

    def run(self) -> None:
        """Run trials. Raises UsageError if the time does not suffice for the first one and the final check."""
        while self._has_time():
            step = self._planner.next(self._used(), may_build=self._may_build())
            trial = self._study.next(*step)
            try:
                self._run(trial)
            except OutOfTimeError:
                trial.interrupt()
                if not self._study.completed:
                    raise self._too_short(self._first_trial_estimate()) from None
                log.info(
                    "tune %s: trial %d stopped at the end of the budget, and the next call repeats it",
                    self._ds, trial.number,
                )  # fmt: skip
                return
            except BaseException:
                trial.interrupt()
                raise

    def check_seconds(self) -> float:
        """The time that the final check needs: trainings with other seeds that are not stored yet."""
        if not self._study.completed:
            return 0.0
        seeds = check_seeds(self._trials.config.seed)
        changed = self._study.best.user_attrs[CHANGES]
        if not changed:  # A better setting may still come. It will take about as long.
            return 2 * len(seeds) * self._seconds_of({})
        settings: list[Values] = [{}, changed]
        wanted = [(setting, seed) for setting in settings for seed in seeds]
        return sum(self._seconds_of(setting) for setting, seed in wanted if self._trials.stored(setting, seed) is None)

    def _seconds_of(self, changed: Values) -> float:
        measured = self._trials.stored(changed, self._trials.config.seed)
        return measured.seconds if measured else 0.0

    def _has_time(self) -> bool:
        """Whether another trial can start."""
        completed, budget = self._study.completed, self._budget
        if not completed:
            return True
        if budget.trials and len(self._study.ended) >= budget.trials:
            return False
        usual = statistics.median(trial.user_attrs[SECONDS] for trial in completed)
        if len(self._study.ended) == 1:
            # Not only the config's own figure: another trial and its check must fit, or the call would change nothing.
            needed = usual + 2 * SEEDS * usual
            if budget.left < needed:
                raise self._too_short(usual)
            return True
        return budget.left - self.check_seconds() > 0.5 * usual

    def _too_short(self, usual: float) -> UsageError:
        spent = time.monotonic() - self._budget.started
        minutes = int((self._trials.table_seconds + (2 + 2 * SEEDS) * usual) / 60) + 2
        return UsageError(
            f"--minutes {self._budget.minutes}: is too short for the trial of the config, another one and the final check. A "
            f"trial takes about {duration(usual)}, and {duration(spent)} are spent. What was measured is kept: run the same "
            f"command again with --minutes {max(minutes, self._budget.minutes + 1)} or more"
        )

    def _first_trial_estimate(self) -> float:
        """Seconds of a trial, from the passes of the one that was stopped."""
        passes = self._trials.config.training.bootstrap_epochs
        wanted = self._trials.config.training.bootstrap_max_epochs if passes == "auto" else passes
        return float(np.mean(self._epoch_seconds)) * wanted

    def _used(self) -> float:
        """Share of the budget that is used: of the time for trials, or of their number."""
        time_for_trials = max(1.0, 60 * self._budget.minutes - self.check_seconds())
        used = (time.monotonic() - self._budget.started) / time_for_trials
        if self._budget.trials:
            used = max(used, len(self._study.ended) / self._budget.trials)
        return used

    def _may_build(self) -> bool:
        """Whether the time left allows other sample tables and a few trials on them."""
        usual = statistics.median([trial.user_attrs[SECONDS] for trial in self._study.completed] or [0.0])
        return self._budget.left - self.check_seconds() > 2 * self._trials.table_seconds + 3 * usual

    def _run(self, trial: OpenTrial) -> None:
        """Run a trial to its end, and log it."""
        changed = changes(trial.values, self._trials.config)
        trial.begin(changed)
        deadline = self._budget.end - self.check_seconds()
        passes: list[float] = []
        planned = changed.get("training.bootstrap_epochs", self._trials.config.training.bootstrap_epochs)
        since = time.monotonic()

        def after_epoch(epoch: int, recall: float) -> None:
            passes.append(recall)
            self._epoch_seconds.append((time.monotonic() - since) / epoch)
            # The first two trials are what all others are compared with.
            trial.report(epoch, recall, may_prune=trial.kind not in (CONFIG, DEFAULTS))
            if time.monotonic() > deadline and epoch != planned:
                raise OutOfTimeError("the budget of this call ended")

        with self._tracker.job(f"trial {trial.number}") as job:
            job.params(described(changed))
            job.tags({"nightjar.trial": str(trial.number), "kind": trial.kind})
            state = "completed"
            try:
                measured = self._trials.measure(changed, self._trials.config.seed, job, after_epoch)
            except TrialPruned:
                state = "pruned"
                trial.prune()
                self._log(trial, f"stopped after pass {len(passes)}, at {passes[-1]:.4f} clearly below the median")
            except (ValidationError, DegenerateLossError) as error:
                if trial.kind == CONFIG:
                    raise
                state = "failed"
                trial.fail(str(error))
                self._log(trial, f"cannot be trained: {str(error).splitlines()[0]}")
            else:
                passes = measured.epochs
                figures = self.figures(measured)
                trial.finish(figures["value"], measured.seconds)
                name = f"recall_at_{self._trials.k}"
                job.metrics({name: figures["value"], f"{name}.low": figures["low"], f"{name}.high": figures["high"]})
                job.metrics({"seconds": measured.seconds})
                self._log(trial, f"Recall@{self._trials.k} {figures['value']:.4f} in {duration(measured.seconds)}")
            points = [{"epoch": number, f"recall_at_{self._trials.k}.epoch": r} for number, r in enumerate(passes, 1)]
            job.series(points, "epoch")
            job.tags({"state": state})

    def figures(self, measured: Measured) -> dict[str, float]:
        """Recall@K over the users that judge trials, with its 95% interval."""
        values = np.array(measured.by_user)[~self._trials.users.checks_B]
        low, high = bootstrap_interval(values, RESAMPLES, self._trials.config.seed)
        return {"value": float(values.mean()), "low": low, "high": high}

    def _log(self, trial: OpenTrial, text: str) -> None:
        best = ""
        if self._study.completed:
            leading = self._study.best
            best = f"; best {leading.value:.4f} (trial {leading.number})"
        log.info(
            "tune %s: trial %d (%s): %s%s; %s left",
            self._ds, trial.number, trial.kind, text, best, duration(self._budget.left),
        )  # fmt: skip


def check_seeds(seed: int) -> list[int]:
    """The seeds of the final check."""
    return [seed + number for number in range(1, SEEDS + 1)]


def described(changed: Values) -> dict[str, Any]:
    """Changes as parameters for MLflow."""
    return dict(changed) if changed else {"changes": "none"}

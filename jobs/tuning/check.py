"""The final check: compares the best setting with the config, with other seeds and on users that judged no trial."""

from dataclasses import dataclass, field

import numpy as np

from jobs.common.runner import log
from jobs.tracking.tuning_tracker import TuningTracker
from jobs.tuning.search import RESAMPLES, check_seeds, described
from jobs.tuning.space import Values, changes
from jobs.tuning.study import CHANGES, Study
from jobs.tuning.trials import Measured, Trials
from model.evaluation.ranking_metrics import bootstrap_interval


@dataclass(frozen=True)
class Decision:
    """The setting to use. `changed` is empty if no other setting is certainly better than the config."""

    changed: Values
    k: int
    trials: int
    before: float  # Recall@K of the config on the users of the check, mean over the seeds
    after: float  # that of the best setting
    low: float  # 95% interval of the gain
    high: float
    reverted: dict[str, float] = field(default_factory=dict)  # setting -> change of Recall@K when only it is taken back

    @property
    def gain(self) -> str:
        """The comparison as text."""
        return (
            f"Recall@{self.k} {self.before:.4f} -> {self.after:.4f}, gain {self.after - self.before:+.4f} "
            f"(95% {self.low:+.4f} to {self.high:+.4f})"
        )


def decide(trials: Trials, study: Study, tracker: TuningTracker) -> Decision:
    """Compare the best setting with the config. Keeps the config unless the gain is certain (paired bootstrap over users)."""
    best, ds = study.best, trials.tail.ds
    changed, count = best.user_attrs[CHANGES], len(study.ended)
    if not changed:
        log.info("tune %s: none of %d trials has a higher figure than the config", ds, count)
        nothing = float("nan")
        return Decision({}, trials.k, count, nothing, nothing, nothing, nothing)
    seeds = check_seeds(trials.config.seed)
    checks_B = trials.users.checks_B
    figures = {}
    for name, setting in (("config", {}), ("best", changed)):
        by_seed = [_measure(trials, tracker, name, setting, seed) for seed in seeds]
        figures[name] = np.mean([measured.by_user for measured in by_seed], axis=0)[checks_B]
    low, high = bootstrap_interval(figures["best"] - figures["config"], RESAMPLES, trials.config.seed)
    before, after = float(figures["config"].mean()), float(figures["best"].mean())
    kept = changed if low > 0 else {}
    decision = Decision(kept, trials.k, count, before, after, low, high, _reverted(trials, study, changed))
    log.info(
        "tune %s: %s on %s other users, with %d other seeds: %s",
        ds, decision.gain, f"{checks_B.sum():,}", len(seeds),
        "certain" if kept else "not certain, so the config stays as it is",
    )  # fmt: skip
    return decision


def _measure(trials: Trials, tracker: TuningTracker, name: str, setting: Values, seed: int) -> Measured:
    if measured := trials.stored(setting, seed):
        return measured
    with tracker.job(f"check {name} seed {seed}") as job:
        job.params(described(setting) | {"seed": seed})
        measured = trials.measure(setting, seed, job, lambda *_: None)
        recall = np.array(measured.by_user)[trials.users.checks_B]
        job.metrics({f"recall_at_{trials.k}": float(recall.mean())})
        job.tags({"kind": "check"})
    log.info(
        "tune %s: check of %s with seed %d: Recall@%d %.4f", trials.tail.ds, name, seed, trials.k, float(recall.mean())
    )
    return measured


def _reverted(trials: Trials, study: Study, changed: Values) -> dict[str, float]:
    """Of the changes that a trial took back: how the figure changed."""
    figures = {_key(trial.user_attrs[CHANGES]): trial.value for trial in study.completed}
    best = figures[_key(changed)]
    result = {}
    for name in changed:
        others = changes({key: value for key, value in changed.items() if key != name}, trials.config)
        value = figures.get(_key(others))
        if value is not None and best is not None:
            result[name] = value - best
    return result


def _key(changed: Values) -> str:
    return repr(sorted(changed.items()))

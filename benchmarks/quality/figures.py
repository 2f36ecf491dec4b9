"""Figures of rankings: metrics per user and slice, coverage, and paired intervals of differences.

One function measures the lists of every model, ours included. Shapes: B asked users, M items, n values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks.quality.question import Question
from benchmarks.quality.ranking import LISTED
from model.evaluation.ranking_metrics import METRICS, NO_ITEM, THIRDS, popularity_thirds, ranking_metrics

KS = (10, 50, 100)
assert max(KS) <= LISTED
COVERED = 50  # coverage counts the items of lists of this length
SLICES = ("all", *THIRDS, "unseen")
Metrics = dict[tuple[str, str, int], np.ndarray]  # metric, slice, k -> [B], NaN for users without targets in the slice


def slices_of(question: Question) -> dict[str, np.ndarray]:
    """For each of SLICES, which items [M] belong to it: thirds of the past events, and items without past events.

    As in the product, `tail` includes the items without events.
    """
    counts = question.counts()
    thirds = popularity_thirds(counts)
    parts = {part: thirds == number for number, part in enumerate(THIRDS)}
    return {"all": np.ones(len(counts), bool), **parts, "unseen": counts == 0}


def metrics_of(question: Question, lists: np.ndarray) -> Metrics:
    """Metrics of each asked user. `lists`: [B, LISTED] positions of items, best first."""
    rows, items = question.targets
    found: Metrics = {}
    for part, belongs in slices_of(question).items():
        chosen = belongs[items]
        metrics = ranking_metrics(lists, (rows[chosen], items[chosen]), len(question.items), KS)
        found |= {(name, part, k): metrics[name][:, place] for name in METRICS for place, k in enumerate(KS)}
    return found


def coverage_of(lists: np.ndarray, items: int) -> float:
    """The share of the corpus that is in at least one list of COVERED items."""
    shown = np.unique(lists[:, :COVERED])
    return float((shown != NO_ITEM).sum() / items)


def mean_over_seeds(runs: Sequence[Metrics]) -> Metrics:
    """The mean of each user's figures over runs."""
    return {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0]}


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def bootstrap(values: np.ndarray, groups: np.ndarray, samples: int = 2000, seed: int = 17) -> Interval:
    """Mean of values [n] with a 95% percentile interval. Resamples whole groups [n], e.g. all nights of one user.

    NaN values are left out. For differences of two models on the same users this is the paired bootstrap.
    """
    measured = ~np.isnan(values)
    values, groups = values[measured], groups[measured]
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    _, number = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(number, weights=values), np.bincount(number)
    drawn = _draws(len(sums), samples, seed)
    means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _draws(groups: int, samples: int, seed: int) -> np.ndarray:
    """[samples, groups] how often each resample contains each group."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=samples).astype(np.float64)


def pooled(nights: Mapping[str, Metrics], key: tuple[str, str, int], order: Sequence[str]) -> np.ndarray:
    """One figure of the users of several nights, one night after the other."""
    return np.concatenate([nights[night][key] for night in order])

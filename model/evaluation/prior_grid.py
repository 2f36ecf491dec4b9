"""Chooses the recency prior of a night: one pass of scores over all items for held-out events, then the grid.

Shapes: B events, n items of a batch, d vector length, G points of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.evaluation.release_recall import RecallResult, recall_loss_bound

Floats = npt.NDArray[np.float32]
Bonus = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CELLS = 16_000_000  # Scores in memory at once.


class GridPoint(NamedTuple):
    """One setting of the prior. The half-life of beta 0 has no effect and is None. A night tries one half-life."""

    beta: float
    half_life_days: float | None


@dataclass(frozen=True)
class Targets:
    """The held-out events: the user's vector, the item taken, and the items that the user's ranking leaves out."""

    users_Bd: Floats
    items_B: Ints
    vectors_Bd: Floats  # Vectors of the items taken.
    bonus_GB: Bonus  # Their bonus at each point of the grid.
    excluded: tuple[Ints, Ints]  # (event, item) pairs, sorted by item. They include the item taken.


@dataclass(frozen=True)
class MeasuredPoint:
    """The recall of one point, and how much of its gain over the chosen prior was certain when it was compared with it."""

    beta: float
    half_life_days: float | None
    recall: float
    certain_gain: float | None  # None: the first one.


def grid_points(betas: Sequence[float], half_life: float) -> list[GridPoint]:
    """The grid, in ascending order."""
    return [GridPoint(beta, half_life if beta else None) for beta in sorted(betas)]


def expected_point(points: Sequence[GridPoint], expected_beta: float) -> GridPoint:
    """The point to use without held-out events: the beta nearest to the expected one."""
    return min(points, key=lambda point: abs(point.beta - expected_beta))


def excluded_pairs(items_B: Ints, excluded: Sequence[Ints] | None) -> tuple[Ints, Ints]:
    """`Targets.excluded` of events that take `items_B` and leave out the items in `excluded`."""
    rows = np.arange(len(items_B))
    if excluded is not None:
        rows = np.concatenate([rows, np.repeat(rows, [len(items) for items in excluded])])
        items_B = np.concatenate([items_B, *excluded])
    order = np.argsort(items_B, kind="stable")
    return rows[order].astype(np.int64), items_B[order].astype(np.int64)


def count_better(targets: Targets, items_n: Ints, vectors_nd: Floats, bonus_Gn: Bonus) -> npt.NDArray[np.int64]:
    """[G, B] how many of these items score higher than the item that each event took, at each point of the grid."""
    points, events = targets.bonus_GB.shape
    own_B = np.einsum("bd,bd->b", targets.users_Bd, targets.vectors_Bd)
    own_GB = (own_B + targets.bonus_GB).astype(np.float32)
    bonus_Gn = bonus_Gn.astype(np.float32)
    rows, columns = _pairs_of(targets.excluded, items_n)
    better_GB = np.zeros((points, events), np.int64)
    step = max(1, CELLS // max(1, len(items_n)))
    for start in range(0, events, step):
        part = slice(start, min(start + step, events))
        scores_bn = targets.users_Bd[part] @ vectors_nd.T
        within = (rows >= part.start) & (rows < part.stop)
        scores_bn[rows[within] - start, columns[within]] = -np.inf
        for point in range(points):
            better_GB[point, part] = (scores_bn + bonus_Gn[point] > own_GB[point, part, None]).sum(axis=1)
    return better_GB


def choose(
    points: Sequence[GridPoint],
    hits_GB: npt.NDArray[np.bool_],
    owners_B: Ints,
    samples: int,
    seed: int,
    expected_beta: float = 0.0,
) -> tuple[GridPoint, list[MeasuredPoint]]:
    """The chosen point, and the measurement of every point in the order of the grid.

    From the beta nearest to `expected_beta` on, one further away replaces the chosen one only if its gain in recall is
    certain (97.5%, paired bootstrap over users). So ties and uncertain gains leave the nearer beta.
    """
    by_user = [RecallResult(hits.astype(np.float64), owners_B, 0.0).by_user() for hits in hits_GB]
    order = sorted(range(len(points)), key=lambda n: (abs(points[n].beta - expected_beta), points[n].beta))
    chosen, gains = order[0], {}
    for place in order[1:]:
        gains[place] = recall_loss_bound(by_user[place], by_user[chosen], samples, seed)
        if gains[place] > 0:
            chosen = place
    measured = [MeasuredPoint(*point, float(by_user[n].mean()), gains.get(n)) for n, point in enumerate(points)]
    return points[chosen], measured


def _pairs_of(excluded: tuple[Ints, Ints], items_n: Ints) -> tuple[Ints, Ints]:
    """The excluded pairs of these items as (event, position in the batch)."""
    rows, items = excluded
    first, last = np.searchsorted(items, items_n, "left"), np.searchsorted(items, items_n, "right")
    counts = last - first
    columns = np.repeat(np.arange(len(items_n)), counts)
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return rows[places], columns

"""Ranking quality over the full corpus, in numpy. Never over sampled candidates (Krichene and Rendle, KDD 2020).

Shapes: B users, M items of the corpus, K the longest cut-off. Items are positions in the corpus, 0 … M-1; pairs
(row, position) come as two arrays of equal length.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]
NO_ITEM = -1  # place of a ranking that no item could take

METRICS = ("recall", "ndcg", "hit_rate")
THIRDS = ("head", "mid", "tail")
SLICES = ("all", *THIRDS, "new_items", "unseen_items", "known_users", "new_users")


def top_k(scores_BM: Floats, k: int, excluded: tuple[Ints, Ints] | None = None) -> Ints:
    """Positions of the k best scores of each row, best first; NO_ITEM where too few are left.

    `excluded`: pairs (row, position) that must not appear. Equal scores: the lower position first.
    """
    scores_BM = np.array(scores_BM, dtype=np.float32, copy=True)
    if excluded is not None:
        scores_BM[excluded] = -np.inf
    size = min(k, scores_BM.shape[1])
    if size < scores_BM.shape[1]:
        # argpartition picks arbitrarily among equals; nudging by position would cost precision, so ties at the edge
        # are settled by taking everything at least as good as the k-th and sorting stably.
        edge_B1 = -np.partition(-scores_BM, size - 1, axis=1)[:, size - 1 : size]
        rows, places = np.nonzero(scores_BM >= edge_B1)
    else:
        rows, places = np.nonzero(np.ones_like(scores_BM, dtype=bool))
    order = np.lexsort((places, -scores_BM[rows, places], rows))
    rows, places = rows[order], places[order]
    starts = np.searchsorted(rows, np.arange(len(scores_BM)))
    chosen = starts[:, None] + np.arange(size)
    top_BK = places[chosen]
    top_BK[~np.isfinite(np.take_along_axis(scores_BM, top_BK, axis=1))] = NO_ITEM
    if size < k:
        top_BK = np.pad(top_BK, ((0, 0), (0, k - size)), constant_values=NO_ITEM)
    return top_BK


def ranking_metrics(top_BK: Ints, targets: tuple[Ints, Ints], items: int, ks: Sequence[int]) -> dict[str, Floats]:
    """Metrics of each user at each cut-off: {"recall", "ndcg", "hit_rate"} -> [B, len(ks)], NaN for users without targets.

    Recall@k = |top k and targets| / |targets|. HitRate@k = any of them there. NDCG@k = sum over hits of 1/log2(1 + rank),
    over the same sum had all min(k, |targets|) first places been hits (Järvelin and Kekäläinen, TOIS 2002).

    >>> m = ranking_metrics(np.array([[3, 1, 0]]), (np.array([0, 0]), np.array([1, 2])), items=4, ks=[1, 3])
    >>> m["recall"].tolist(), m["hit_rate"].tolist(), m["ndcg"].round(3).tolist()
    ([[0.0, 0.5]], [[0.0, 1.0]], [[0.0, 0.387]])
    """
    users, longest = top_BK.shape
    rows, places = targets
    wanted_B = np.bincount(rows, minlength=users)
    pairs = np.sort(rows * items + places)
    asked = np.arange(users)[:, None] * items + np.maximum(top_BK, 0)
    at = np.minimum(np.searchsorted(pairs, asked), max(len(pairs) - 1, 0))
    hit_BK = (pairs[at] == asked) & (top_BK >= 0) if len(pairs) else np.zeros(top_BK.shape, bool)
    gain_K = 1.0 / np.log2(np.arange(2, longest + 2))
    hits_BK, gains_BK = hit_BK.cumsum(axis=1), (hit_BK * gain_K).cumsum(axis=1)
    best_K = np.concatenate([[0.0], gain_K.cumsum()])
    places_K = np.array(ks) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "recall": hits_BK[:, places_K] / wanted_B[:, None],
            "ndcg": gains_BK[:, places_K] / best_K[np.minimum(np.array(ks)[None, :], wanted_B[:, None])],
            "hit_rate": (hits_BK[:, places_K] > 0).astype(float),
        }
    for values in found.values():
        values[wanted_B == 0] = np.nan
    return found


def popularity_thirds(counts_M: Ints) -> Ints:
    """0 (head), 1 (mid) or 2 (tail) for each item: items sorted by count, cut where a third of all clicks is reached.

    An item belongs to the third in which its first click falls; items without clicks are tail.
    """
    order = np.lexsort((np.arange(len(counts_M)), -counts_M))
    before = np.concatenate([[0], counts_M[order].cumsum()[:-1]])
    total = max(int(counts_M.sum()), 1)
    thirds = np.empty(len(counts_M), np.int64)
    thirds[order] = np.minimum(3 * before // total, 2)
    thirds[counts_M == 0] = 2
    return thirds


def bootstrap_interval(values: Floats, samples: int, seed: int) -> tuple[float, float]:
    """95% interval of the mean over users, by resampling them (percentiles of `samples` means)."""
    if samples == 0 or len(values) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(samples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

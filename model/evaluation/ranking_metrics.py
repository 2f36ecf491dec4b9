"""Ranking metrics over the full corpus, in numpy. Sampled candidates would bias them (Krichene and Rendle, KDD 2020).

Shapes: B users, M items of the corpus, K the largest cut-off. Items are positions in the corpus, 0 … M-1. Pairs
(row, position) are two arrays of equal length.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]
NO_ITEM = -1  # Fills the end of a ranking with too few items.

METRICS = ("recall", "ndcg", "hit_rate")
THIRDS = ("head", "mid", "tail")
SLICES = ("all", *THIRDS, "new_items", "unseen_items", "known_users", "new_users")


def top_k(scores_BM: Floats, k: int, excluded: tuple[Ints, Ints] | None = None) -> Ints:
    """Positions of the k best scores of each row, best first, [B, k]. Rows with fewer items end in NO_ITEM.

    `excluded`: pairs (row, position) to leave out. Of equal scores the lower position comes first.
    """
    scores_BM = np.array(scores_BM, dtype=np.float32, copy=True)
    if excluded is not None:
        scores_BM[excluded] = -np.inf
    size = min(k, scores_BM.shape[1])
    if size < scores_BM.shape[1]:
        # argpartition picks arbitrarily among equal scores. So that ties are deterministic, take all scores that are at
        # least the k-th best and sort them stably.
        kth_best_B1 = -np.partition(-scores_BM, size - 1, axis=1)[:, size - 1 : size]
        rows, positions = np.nonzero(scores_BM >= kth_best_B1)
    else:
        rows, positions = np.nonzero(np.ones_like(scores_BM, dtype=bool))
    order = np.lexsort((positions, -scores_BM[rows, positions], rows))
    rows, positions = rows[order], positions[order]
    starts = np.searchsorted(rows, np.arange(len(scores_BM)))
    top_BK = positions[starts[:, None] + np.arange(size)]
    top_BK[~np.isfinite(np.take_along_axis(scores_BM, top_BK, axis=1))] = NO_ITEM
    if size < k:
        top_BK = np.pad(top_BK, ((0, 0), (0, k - size)), constant_values=NO_ITEM)
    return top_BK


def ranking_metrics(top_BK: Ints, targets: tuple[Ints, Ints], items: int, ks: Sequence[int]) -> dict[str, Floats]:
    """Metrics of each user at each cut-off: {"recall", "ndcg", "hit_rate"} -> [B, len(ks)], NaN for users without targets.

    Recall@k = |top k and targets| / |targets|. HitRate@k = 1 if the top k has a target, else 0. NDCG@k = sum over hits of
    1/log2(1 + rank), divided by that sum for a ranking whose first min(k, |targets|) ranks are hits (Järvelin and
    Kekäläinen, TOIS 2002).

    >>> m = ranking_metrics(np.array([[3, 1, 0]]), (np.array([0, 0]), np.array([1, 2])), items=4, ks=[1, 3])
    >>> m["recall"].tolist(), m["hit_rate"].tolist(), m["ndcg"].round(3).tolist()
    ([[0.0, 0.5]], [[0.0, 1.0]], [[0.0, 0.387]])
    """
    users, longest = top_BK.shape
    rows, positions = targets
    targets_B = np.bincount(rows, minlength=users)
    target_pairs = np.sort(rows * items + positions)
    top_pairs = np.arange(users)[:, None] * items + np.maximum(top_BK, 0)
    found_at = np.minimum(np.searchsorted(target_pairs, top_pairs), max(len(target_pairs) - 1, 0))
    hit_BK = np.zeros(top_BK.shape, bool)
    if len(target_pairs):
        hit_BK = (target_pairs[found_at] == top_pairs) & (top_BK >= 0)
    gain_K = 1.0 / np.log2(np.arange(2, longest + 2))
    hits_BK, gains_BK = hit_BK.cumsum(axis=1), (hit_BK * gain_K).cumsum(axis=1)
    ideal_gains = np.concatenate([[0.0], gain_K.cumsum()])
    cutoffs = np.array(ks)
    with np.errstate(invalid="ignore", divide="ignore"):
        metrics = {
            "recall": hits_BK[:, cutoffs - 1] / targets_B[:, None],
            "ndcg": gains_BK[:, cutoffs - 1] / ideal_gains[np.minimum(cutoffs[None, :], targets_B[:, None])],
            "hit_rate": (hits_BK[:, cutoffs - 1] > 0).astype(float),
        }
    for values in metrics.values():
        values[targets_B == 0] = np.nan
    return metrics


def popularity_thirds(counts_M: Ints) -> Ints:
    """0 (head), 1 (mid) or 2 (tail) for each item [M]: items sorted by count, cut at each third of all clicks.

    An item belongs to the third that its first click falls into. Items without clicks are tail.
    """
    order = np.lexsort((np.arange(len(counts_M)), -counts_M))
    before = np.concatenate([[0], counts_M[order].cumsum()[:-1]])
    total = max(int(counts_M.sum()), 1)
    thirds = np.empty(len(counts_M), np.int64)
    thirds[order] = np.minimum(3 * before // total, 2)
    thirds[counts_M == 0] = 2
    return thirds


def bootstrap_interval(values: Floats, samples: int, seed: int) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over users. `samples`: number of resamples."""
    if samples == 0 or len(values) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(samples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

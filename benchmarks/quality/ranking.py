"""Lists of the best items from scores, in blocks of users. Imports numpy only, like the question."""

from collections.abc import Callable

import numpy as np

from benchmarks.quality.question import Question
from model.evaluation.ranking_metrics import top_k

LISTED = 100  # items per list
CELLS = 16_000_000  # scores in memory at once


def lists_of(question: Question, scores_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[B, LISTED] positions of the best items of each asked user, best first. Excluded items are in no list.

    `scores_of`: the scores [rows, M] of some rows of asked users. An item with the score -inf is in no list.
    """
    rows, items = question.excluded
    order = np.argsort(rows, kind="stable")
    rows, items = rows[order], items[order]
    step = max(1, CELLS // max(len(question.items), 1))
    lists = [np.zeros((0, LISTED), np.int64)]
    for start in range(0, len(question.asked), step):
        block = np.arange(start, min(start + step, len(question.asked)))
        low, high = np.searchsorted(rows, [block[0], block[-1] + 1])
        lists.append(top_k(scores_of(block), LISTED, (rows[low:high] - start, items[low:high])))
    return np.concatenate(lists)


def recent_counts(question: Question, days: float | None) -> np.ndarray:
    """[M] events of each item in the last `days` days before the end of the past; None: in all of it."""
    chosen = slice(None) if days is None else question.event_time >= question.end - days * 86_400
    return np.bincount(question.event_item[chosen], minlength=len(question.items)).astype(np.float64)


def by_popularity(question: Question) -> np.ndarray:
    """[M] scores below 1e-6 in the order of popularity: they break ties, and rank for users without events."""
    counts = question.counts()
    return (counts / (1e6 * max(int(counts.max(initial=0)), 1))).astype(np.float32)

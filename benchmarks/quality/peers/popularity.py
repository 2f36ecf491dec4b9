"""Recent popularity: the most frequent items of the last days, the same list for everyone."""

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.peers.search import Setting
from benchmarks.quality.question import Question
from benchmarks.quality.ranking import by_popularity, lists_of, recent_counts

WINDOWS = (7, 30, None, 14, 3, 1, 60, 90, 180, 365)  # days; None: all of the past


class Popularity:
    """Counts of a window, whose length is tuned. The counts of the whole past break ties."""

    def settings(self, question: Question) -> list[Setting]:
        """One per window."""
        return [{"days": days} for days in WINDOWS]

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """One list of items, less what each user had."""
        counts = recent_counts(question, setting["days"]) + by_popularity(question).astype(np.float64)
        # float32 cannot hold a large count with a tie-break: the scores are the places in the order of the counts.
        scores = np.empty(len(counts), np.float32)
        scores[np.lexsort((-np.arange(len(counts)), counts))] = np.arange(len(counts), dtype=np.float32)
        yield setting, lists_of(question, lambda block: np.broadcast_to(scores, (len(block), len(scores))))

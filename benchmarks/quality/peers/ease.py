"""EASE (Steck, WWW 2019): the best linear model from a user's items to items, in closed form.

    G = X'X + lambda I,  P = G^-1,  B_ij = -P_ij / P_jj,  B_jj = 0,  scores = X B

The inverse takes memory and time by the square and cube of the items, so a larger catalogue is cut to its most popular items.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.peers.item_cf import user_items
from benchmarks.quality.peers.search import Setting
from benchmarks.quality.question import Question
from benchmarks.quality.ranking import by_popularity, lists_of

PENALTIES = (250, 1000, 50, 4000, 10, 500, 100, 2000)
MOST_ITEMS = 10_000  # 400 MB per matrix, about a minute on 2 cores


def weights(gram: np.ndarray, penalty: float) -> np.ndarray:
    """B of a Gram matrix X'X."""
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram), dtype=gram.dtype))
    inverse /= -np.diag(inverse)
    np.fill_diagonal(inverse, 0.0)
    return inverse


class Ease:
    """The penalty is tuned. `items`: the most items that it can list, the most popular ones."""

    def settings(self, question: Question) -> list[Setting]:
        """One per penalty."""
        return [{"penalty": penalty, "items": MOST_ITEMS} for penalty in PENALTIES]

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """The lists of one closed form."""
        counts = question.counts()
        chosen = np.argsort(-counts, kind="stable")[: min(setting["items"], int((counts > 0).sum()))]
        matrix = user_items(question)[:, chosen]
        B = weights((matrix.T @ matrix).toarray().astype(np.float32), setting["penalty"])
        history, ties = matrix[question.asked], by_popularity(question)

        def scores(block: np.ndarray) -> np.ndarray:
            found = np.full((len(block), len(question.items)), -np.inf, np.float32)
            found[:, chosen] = history[block] @ B + ties[chosen]
            return found

        yield setting, lists_of(question, scores)

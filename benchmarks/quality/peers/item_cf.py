"""Item-item collaborative filtering (Linden, Smith and York, IEEE Internet Computing 2003).

    sim(i, j) = n_ij / (sqrt(n_i n_j) + shrinkage)      n_ij: users with both items

An item scores the sum of its similarities with the user's items, over each item's nearest neighbours.
Shapes: U users, M items.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.quality.peers.search import Setting
from benchmarks.quality.question import Question
from benchmarks.quality.ranking import by_popularity, lists_of

SHRINKAGE = (0, 10, 50, 3, 200)
NEIGHBOURS = (20, 50, 100, 200, 400)  # in order: a search stops where more of them no longer help
LATEST = (None, 50)  # items of the user that count; None: all
ROWS = 1024  # items whose similarities are in memory at once


def user_items(question: Question, latest: int | None = None) -> Any:
    """[U, M] sparse, 1 for each item of a user; `latest`: only for the last items."""
    users, items = len(question.users), len(question.items)
    # The newest event of each pair, newest first within a user.
    order = np.lexsort((-question.event_time, question.event_user))
    keys = question.event_user[order] * items + question.event_item[order]
    first = np.sort(np.unique(keys, return_index=True)[1])
    user, item = keys[first] // items, keys[first] % items
    if latest is not None:
        place = np.arange(len(user)) - np.searchsorted(user, user)
        user, item = user[place < latest], item[place < latest]
    return sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(users, items))


def nearest(matrix: Any, shrinkage: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(neighbours, similarities), both [M, most]: the nearest items first; similarity 0 where there are fewer."""
    items = matrix.shape[1]
    by_item = matrix.T.tocsr()
    norms = np.sqrt(np.asarray(matrix.sum(axis=0), np.float64).ravel())
    neighbours, similarities = np.zeros((items, most), np.int32), np.zeros((items, most), np.float32)
    for start in range(0, items, ROWS):
        together = (by_item[start : start + ROWS] @ matrix).tocsr()
        for row in range(together.shape[0]):
            item, span = start + row, slice(together.indptr[row], together.indptr[row + 1])
            other = together.indices[span]
            similarity = together.data[span] / (norms[item] * norms[other] + shrinkage)
            other, similarity = other[other != item], similarity[other != item]
            if len(other) > most:
                best = np.argpartition(-similarity, most - 1)[:most]
                other, similarity = other[best], similarity[best]
            order = np.lexsort((other, -similarity))
            neighbours[item, : len(order)] = other[order]
            similarities[item, : len(order)] = similarity[order]
    return neighbours, similarities


class ItemCf:
    """Shrinkage, number of neighbours and number of the user's items are tuned."""

    def settings(self, question: Question) -> list[Setting]:
        """One per shrinkage and number of the user's items: all numbers of neighbours come from one pass."""
        return [{"shrinkage": s, "latest": n, "neighbours": NEIGHBOURS} for s in SHRINKAGE for n in LATEST]

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """The lists for each number of neighbours."""
        numbers = setting["neighbours"] if isinstance(setting["neighbours"], tuple) else (setting["neighbours"],)
        items, most = len(question.items), max(numbers)
        neighbours, similarities = nearest(user_items(question), setting["shrinkage"], most)
        history = user_items(question, setting["latest"])[question.asked]
        ties = by_popularity(question)
        for number in numbers:
            rows = np.repeat(np.arange(items), number)
            parts = (similarities[:, :number].ravel(), (rows, neighbours[:, :number].ravel()))
            similar = sp.csr_matrix(parts, shape=(items, items))
            similar.eliminate_zeros()
            scores = _scorer(history @ similar, ties)
            yield setting | {"neighbours": number}, lists_of(question, scores)


def _scorer(scores: Any, ties: np.ndarray) -> Any:
    return lambda block: scores[block].toarray() + ties

"""ALS (Hu, Koren and Volinsky, ICDM 2008) and BPR (Rendle et al., UAI 2009) of the package implicit."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.quality.peers.search import Setting
from benchmarks.quality.question import Question
from benchmarks.quality.ranking import by_popularity, lists_of


def shuffled(settings: list[Setting], seed: int = 1) -> list[Setting]:
    """The first setting, then the others in random order, the same in each run."""
    order = 1 + np.random.default_rng(seed).permutation(len(settings) - 1)
    return [settings[0], *(settings[place] for place in order)]


def grid(**values: tuple[Any, ...]) -> list[Setting]:
    """All combinations. The first values of each are the usual ones."""
    return shuffled([dict(zip(values, chosen)) for chosen in itertools.product(*values.values())])


def counted_items(question: Question) -> Any:
    """[U, M] sparse, the number of events of a user with an item."""
    ones = np.ones(len(question.event_user), np.float32)
    shape = (len(question.users), len(question.items))
    matrix = sp.csr_matrix((ones, (question.event_user, question.event_item)), shape=shape)
    matrix.sum_duplicates()
    return matrix


def lists_of_factors(question: Question, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Lists by inner product; users without events get the most popular items."""
    new = np.bincount(question.event_user, minlength=len(question.users))[question.asked] == 0
    ties = by_popularity(question)

    def scores(block: np.ndarray) -> np.ndarray:
        found = users[question.asked[block]] @ items.T
        found[new[block]] = ties
        return np.asarray(found)

    return lists_of(question, scores)


class Als:
    """Factors, regularisation, confidence and iterations are tuned."""

    def settings(self, question: Question) -> list[Setting]:
        """A random order of a grid."""
        return grid(
            factors=(64, 32, 128),
            regularization=(0.01, 0.1, 1.0, 10.0, 30.0, 100.0),
            alpha=(1.0, 10.0, 40.0),
            iterations=(15, 30),
        )

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """One fit."""
        from implicit.als import AlternatingLeastSquares

        model = AlternatingLeastSquares(**setting, random_state=seed)
        model.fit(counted_items(question), show_progress=False)
        yield setting, lists_of_factors(question, model.user_factors, model.item_factors)


class Bpr:
    """Factors, learning rate, regularisation and iterations are tuned."""

    def settings(self, question: Question) -> list[Setting]:
        """A random order of a grid."""
        return grid(
            factors=(64, 32, 128),
            learning_rate=(0.01, 0.03, 0.1),
            regularization=(0.01, 0.001, 0.1),
            iterations=(100, 30, 300),
        )

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """One fit. Its factors include a bias of each item."""
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        model = BayesianPersonalizedRanking(**setting, random_state=seed)
        model.fit(counted_items(question), show_progress=False)
        yield setting, lists_of_factors(question, model.user_factors, model.item_factors)

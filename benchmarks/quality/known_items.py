"""Simulated worlds: how far users can be known from their clicks, by a ranker that knows the items.

The truth's own ranking knows the taste of each user, which nobody can learn from a dozen clicks. This one knows tastes and
attractiveness of all items, and the mean and spread of tastes given the features of a user. Of each user it finds the most
probable taste given the clicks (maximum a posteriori). A model that also has to learn the items ranks below it, up to chance.

Shapes: B users, M items, d taste dimensions, F indicators of features.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.question import Question
from pipelines.simulation.truth import POPULARITY_WEIGHT, TASTE_WEIGHT

RIDGE = 5.0  # rows: keeps rare values of features at the mean
STEPS, RATE = 150, 0.03  # of Adam: the log posterior is concave, and 300 steps change no list


def probable_tastes(
    question: Question, user_taste_Ud: np.ndarray, item_taste_Md: np.ndarray, popularity_M: np.ndarray
) -> np.ndarray:
    """[U, d] the most probable taste of each user given features and past events.

    P(clicks | taste) is a softmax over all items, p(taste | features) a normal distribution: its mean is a ridge regression of
    the true tastes on indicators of the users' features, its variance that of the residuals.
    """
    mean_Ud, variance = given_features(question.user_features, user_taste_Ud)
    items, mean, popularity = (
        torch.tensor(TASTE_WEIGHT * item_taste_Md),
        torch.tensor(mean_Ud),
        torch.tensor(popularity_M),
    )
    users = torch.tensor(question.event_user)
    clicked_Ud = torch.zeros_like(mean).index_add(0, users, items[torch.tensor(question.event_item)])
    clicks_U = torch.bincount(users, minlength=len(mean)).float()
    taste = mean.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([taste], lr=RATE)

    def loss() -> Tensor:
        normaliser = torch.logsumexp(taste @ items.T + popularity, 1)
        likelihood = ((taste * clicked_Ud).sum(1) - clicks_U * normaliser).sum()
        return ((taste - mean) ** 2).sum() / (2 * variance) - likelihood

    for _ in range(STEPS):
        optimiser.zero_grad()
        (loss() / len(mean)).backward()
        optimiser.step()
    return taste.detach().numpy()


def popularity_of(attractiveness_M: np.ndarray) -> np.ndarray:
    """[M] the part of the utility that all users share, as the simulator has it."""
    return (POPULARITY_WEIGHT * np.log(attractiveness_M)).astype(np.float32)


def given_features(features: Mapping[str, np.ndarray], taste_Ud: np.ndarray) -> tuple[np.ndarray, float]:
    """[U, d] expected tastes given the features, and the variance of a component around them."""
    indicators_UF = np.column_stack([np.ones(len(taste_Ud)), *(_indicators(values) for values in features.values())])
    covariance = indicators_UF.T @ indicators_UF + RIDGE * np.eye(indicators_UF.shape[1])
    expected_Ud = indicators_UF @ np.linalg.solve(covariance, indicators_UF.T @ taste_Ud)
    return expected_Ud.astype(np.float32), float(((taste_Ud - expected_Ud) ** 2).mean())


def _indicators(values: np.ndarray) -> np.ndarray:
    """[U, values] which values each user has, from indices [U] or [U, V]. 0: no value."""
    values = values.reshape(len(values), -1)
    found = np.zeros((len(values), int(values.max(initial=0)) + 1))
    found[np.arange(len(values))[:, None], values] = 1
    return found[:, 1:]

"""Simulated worlds: how far users and items together can be known from clicks, by a learner that knows how the logs arise.

It knows the form of the utility, and the mean and spread of tastes given the features of users and of items. The tastes of
all users and items and the attractiveness of items it learns from the clicks (maximum a posteriori). A model that sees the
same clicks and also has to learn what the features mean should rank below it, unless it uses more than clicks: the stages of
the ranking logs, or the time of clicks where tastes change. It is a mark and not a limit: it takes the most probable values,
and an average over all plausible ones could rank a little better.

Shapes: U users, M items, d taste dimensions, E events.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.known_items import given_features
from benchmarks.quality.question import DAY, Question
from pipelines.simulation.truth import POPULARITY_WEIGHT, TASTE_WEIGHT

STEPS, RATE = 300, 0.03  # of Adam
NOT_PUBLISHED = -1e4  # added to the logit of an item that nobody could click yet


class Learned(NamedTuple):
    """What the clicks say: tastes [U, d] and [M, d], and attractiveness [M]."""

    user_taste_Ud: np.ndarray
    item_taste_Md: np.ndarray
    attractiveness_M: np.ndarray


def learned(
    question: Question, user_taste_Ud: np.ndarray, item_taste_Md: np.ndarray, zipf: float, published_M: np.ndarray
) -> Learned:
    """The most probable tastes and attractiveness given features and past events.

    P(an event) is a softmax over the items that were published on its day. Tastes have normal distributions given the
    features (`known_items.given_features` of the true tastes, which are read for nothing else), the logarithm of
    attractiveness an exponential one with mean `zipf`, as the simulator draws it. published_M: seconds since 1970.
    """
    (mean_Ud, user_variance), (mean_Md, item_variance) = (
        given_features(question.user_features, user_taste_Ud),
        given_features(question.item_features, item_taste_Md),
    )
    user_mean, item_mean = torch.tensor(mean_Ud), torch.tensor(mean_Md)
    users, items = (mean.clone().requires_grad_(True) for mean in (user_mean, item_mean))
    log_attractiveness = torch.full((len(mean_Md),), zipf, requires_grad=True)
    event_user, event_item = torch.tensor(question.event_user), torch.tensor(question.event_item)
    days = _days(question, published_M)
    optimiser = torch.optim.Adam([users, items, log_attractiveness], lr=RATE)

    def loss() -> Tensor:
        utility = TASTE_WEIGHT * users @ items.T + POPULARITY_WEIGHT * log_attractiveness
        normaliser = sum((counts * torch.logsumexp(utility[active] + masks, 1)).sum() for active, counts, masks in days)
        surprise = normaliser - utility[event_user, event_item].sum()
        deviations = ((users - user_mean) ** 2).sum() / (2 * user_variance)
        deviations = deviations + ((items - item_mean) ** 2).sum() / (2 * item_variance)
        return surprise + deviations + log_attractiveness.sum() / zipf

    for _ in range(STEPS):
        optimiser.zero_grad()
        (loss() / len(mean_Ud)).backward()
        optimiser.step()
        with torch.no_grad():
            log_attractiveness.clamp_(min=0)
    return Learned(users.detach().numpy(), items.detach().numpy(), log_attractiveness.detach().exp().numpy())


def _days(question: Question, published_M: np.ndarray) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each day with events: the users that have some, how many, and what is added to the logits of the items [M]."""
    day_E = question.event_time // DAY
    found = []
    for day in np.unique(day_E):
        of_day = day_E == day
        users, counts = np.unique(question.event_user[of_day], return_counts=True)
        could_M = published_M < (day + 1) * DAY
        could_M[question.event_item[of_day]] = True
        masks = np.where(could_M, 0.0, NOT_PUBLISHED).astype(np.float32)
        found.append((torch.tensor(users), torch.tensor(counts), torch.tensor(masks)))
    return found

"""Rankers of the quality benchmark that know parts of a simulator's truth, on a small world."""

from typing import NamedTuple

import numpy as np

from benchmarks.quality.known_items import popularity_of, probable_tastes
from benchmarks.quality.known_relations import learned
from benchmarks.quality.question import DAY, Question
from tests.toy_question import END, question


class ToyTruth(NamedTuple):
    """A small simulated world: its true values and the question with its clicks."""

    group: np.ndarray
    taste: np.ndarray
    item_group: np.ndarray
    item_taste: np.ndarray
    attractiveness: np.ndarray
    clicks: np.ndarray  # of each user
    question: Question


def toy_truth(users: int = 200, items: int = 300, most_clicks: int = 20, d: int = 8) -> ToyTruth:
    """Tastes are those of groups, which features state, and as much noise. Half of the items come out on the second day."""
    rng = np.random.default_rng(3)

    def unit(values: np.ndarray) -> np.ndarray:
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    group, item_group = rng.integers(1, 5, users), rng.integers(1, 9, items)
    taste = unit(rng.normal(size=(4, d))[group - 1] + 0.8 * rng.normal(size=(users, d)))
    item_taste = unit(rng.normal(size=(8, d))[item_group - 1] + 0.8 * rng.normal(size=(items, d)))
    attractiveness = np.exp(rng.exponential(1.0, items)).astype(np.float32)
    chance = np.exp(8.0 * taste @ item_taste.T + popularity_of(attractiveness))
    clicks = rng.integers(0, most_clicks, users)
    events = []
    for user, (count, row) in enumerate(zip(clicks, chance)):
        for number in range(count):
            day = int(number >= count // 2)
            possible = row * (np.arange(items) < (items if day else items // 2))
            events.append((user, int(rng.choice(items, p=possible / possible.sum())), 2.0 - day))
    features = {"user_features": {"group": group}, "item_features": {"group": item_group}}
    return ToyTruth(group, taste, item_group, item_taste, attractiveness, clicks, question(events, **features))


def test_a_ranker_that_knows_the_items_learns_users_from_features_and_clicks() -> None:
    world = toy_truth()
    found = probable_tastes(world.question, world.taste, world.item_taste, popularity_of(world.attractiveness))
    mean = np.stack([world.taste[world.group == g].mean(0) for g in range(1, 5)])[world.group - 1]
    known = world.clicks > 12
    assert ((found - world.taste) ** 2)[known].sum() < 0.6 * ((mean - world.taste) ** 2)[known].sum()
    np.testing.assert_allclose(found[world.clicks == 0], mean[world.clicks == 0], atol=0.15)


def test_a_learner_that_knows_the_relations_learns_users_and_items_from_clicks() -> None:
    world = toy_truth(users=400, items=100, most_clicks=60)
    published = np.where(np.arange(100) < 50, END - 3 * DAY, END - DAY)
    found = learned(world.question, world.taste, world.item_taste, 1.0, published)
    users, items = (
        np.stack([true[group == g].mean(0) for g in range(1, group.max() + 1)])[group - 1]
        for group, true in ((world.group, world.taste), (world.item_group, world.item_taste))
    )

    def error(users_Ud: np.ndarray, items_Md: np.ndarray) -> float:
        return float(((users_Ud @ items_Md.T - world.taste @ world.item_taste.T) ** 2).mean())

    assert error(found.user_taste_Ud, found.item_taste_Md) < 0.5 * error(users, items), "features alone"
    order = np.corrcoef(np.log(found.attractiveness_M), np.log(world.attractiveness))[0, 1]
    assert order > 0.5
    assert found.attractiveness_M.min() >= 1
    always = learned(world.question, world.taste, world.item_taste, 1.0, np.zeros(100))
    new = np.arange(100) >= 50
    assert found.attractiveness_M[new].sum() > 1.2 * always.attractiveness_M[new].sum(), (
        "nobody could click them at first"
    )

"""Simulates the funnel for a block of users: recall, filters, coarse and fine ranking, re-ranking, clicks. numpy only.

Shapes: R requests at once, M items, K recalled items. The days of a block run in order, because a user is not shown items
that they clicked before.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.config import Simulation
from pipelines.simulation.truth import (
    DAY,
    POPULARITY_WEIGHT,
    REQUESTS,
    FloatArray,
    IntArray,
    TrueItems,
    catalogue,
    click_probability,
    daily_tastes,
    generator,
    start_second,
    true_utility,
    user_block,
)

# Each stage ranks by true utility (logits) plus noise, with less noise than the stage before. The noise is strong enough
# that many shown items are outside the user's true top 50: logs of a perfect ranker would leave nothing to learn.
RECALL_NOISE = 0.4  # length of the error in the recall model's taste vector, relative to the true taste
RECALL_POPULARITY = 0.8  # recall weighs popularity more than users do (POPULARITY_WEIGHT)
COARSE_NOISE = 4.5
FINE_NOISE = 3.8
RERANK_NOISE = 3.2
FILTERED = 0.04  # share of recalled items that rules remove before ranking (stock, region, policy)
LIKED = 0.2  # share of clicks that a like follows

MOST_REQUESTS = 8  # per user and day
LAST_START = DAY - 3600  # seconds; the events of a request end on the day of the request
PAUSE = 300  # smallest number of seconds between two requests of a user
SCORES_AT_ONCE = 4_000_000  # float32 scores in memory at once, for any number of items


@dataclass(frozen=True)
class RequestBatch:
    """The n-th requests of a day by the users of a block. Rows of `items`: ranked items, best first, then filtered items."""

    day: int
    number: int  # 0 is the user's first request of the day
    user_id: IntArray  # [R]
    event_time: FloatArray  # [R] unix seconds
    items: IntArray  # [R, K] item indices
    position: IntArray  # [R, K] rank in the last stage that the item reached, 1 is best
    ranked: IntArray  # [R] number of ranked items; filtered items follow
    clicked: np.ndarray  # [R, exposed] bool
    liked: np.ndarray  # [R, exposed] bool, only for clicked items
    delay: FloatArray  # [R, exposed] seconds from the request to the click


def simulate_block(sim: Simulation, seed: int, block: int) -> Iterator[RequestBatch]:
    """All requests of a block of users, day by day. Holds one batch and the clicked items of the users in memory."""
    users, items = user_block(sim, seed, block), catalogue(sim, seed)
    clicked_items: list[list[int]] = [[] for _ in users.user_id]
    for day, tastes in enumerate(daily_tastes(sim, seed, block)):
        rng = generator(seed, REQUESTS, block, day)
        count = np.minimum(rng.poisson(users.rate), MOST_REQUESTS)
        # Requests of a user do not overlap, so the next request knows all earlier clicks.
        draws = rng.beta(2.5, 1.5, size=(len(count), MOST_REQUESTS)) * (LAST_START - MOST_REQUESTS * PAUSE)
        draws[np.arange(MOST_REQUESTS) >= count[:, None]] = np.inf
        times = np.sort(draws, axis=1) + PAUSE * np.arange(MOST_REQUESTS)
        for number in range(int(count.max(initial=0))):
            row = np.flatnonzero(count > number)
            seconds = np.floor(start_second(sim) + day * DAY + times[row, number])
            recalled = _recall(sim, tastes[row], seconds, items, [clicked_items[r] for r in row], rng)
            ranked = _rank(sim, tastes[row], recalled, items, rng)
            requests = _react(sim, tastes[row], ranked, items, rng, day, number, users.user_id[row], seconds)
            for at, r in enumerate(row):
                shown = requests.items[at, : requests.clicked.shape[1]]
                clicked_items[r].extend(shown[requests.clicked[at]].tolist())
            yield requests


def _recall(
    sim: Simulation,
    taste: FloatArray,
    seconds: FloatArray,
    items: TrueItems,
    clicked_items: list[list[int]],
    rng: np.random.Generator,
) -> IntArray:
    """[R, K] published items that the user has not clicked yet, sorted by a noisy estimate of utility, best first."""
    noise = rng.normal(size=taste.shape) * RECALL_NOISE / np.sqrt(sim.taste_dim)
    estimate = (taste + noise).astype(np.float32)
    published = np.searchsorted(items.publish_time, seconds, side="left")
    popularity_bonus = ((RECALL_POPULARITY - POPULARITY_WEIGHT) * np.log(items.attractiveness)).astype(np.float32)
    eligible = min(count - len(k) for count, k in zip(published, clicked_items))
    size = max(1, min(sim.recalled, int(eligible)))
    recalled = np.empty((len(taste), size), dtype=np.int64)
    live = int(published.max())
    step = max(1, SCORES_AT_ONCE // live)
    for first in range(0, len(taste), step):
        part = slice(first, first + step)
        scores = true_utility(estimate[part], items.taste[:live], items.attractiveness[:live]) + popularity_bonus[:live]
        for at, (count, clicked) in enumerate(zip(published[part], clicked_items[part])):
            scores[at, count:] = -np.inf
            scores[at, clicked] = -np.inf
        top = np.argpartition(-scores, size - 1, axis=1)[:, :size] if size < live else np.argsort(-scores, axis=1)
        best = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        recalled[part] = np.take_along_axis(top, best, axis=1)
    return recalled


def _rank(
    sim: Simulation, taste: FloatArray, recalled: IntArray, items: TrueItems, rng: np.random.Generator
) -> tuple[IntArray, IntArray, IntArray]:
    """Filter and rank recalled items [R, K]. Returns items [R, K], positions [R, K] and ranked [R] of a RequestBatch."""
    utility = _utility_of(taste, recalled, items)
    filtered = rng.uniform(size=recalled.shape) < FILTERED
    score = np.where(filtered, -np.inf, utility + COARSE_NOISE * rng.normal(size=recalled.shape))
    # A stable sort puts filtered items last, in the order of recall.
    order = np.argsort(-score, axis=1, kind="stable")
    for head_size, noise in ((sim.coarse_kept, FINE_NOISE), (sim.fine_kept, RERANK_NOISE)):
        head = order[:, :head_size]
        score = np.take_along_axis(utility, head, axis=1) + noise * rng.normal(size=head.shape)
        score = np.where(np.take_along_axis(filtered, head, axis=1), -np.inf, score)
        order[:, :head_size] = np.take_along_axis(head, np.argsort(-score, axis=1, kind="stable"), axis=1)
    ranked = (~filtered).sum(axis=1)
    place = np.arange(recalled.shape[1])
    position = np.where(place < ranked[:, None], place, order) + 1
    return np.take_along_axis(recalled, order, axis=1), position, ranked


def _react(
    sim: Simulation,
    taste: FloatArray,
    ranking: tuple[IntArray, IntArray, IntArray],
    items: TrueItems,
    rng: np.random.Generator,
    day: int,
    number: int,
    user_id: IntArray,
    seconds: FloatArray,
) -> RequestBatch:
    """Draw clicks and likes on the exposed items, from true utility and the probability that the position is examined."""
    listed, position, ranked = ranking
    shown = listed[:, : sim.exposed]
    place = np.arange(1, shown.shape[1] + 1)
    chance = click_probability(_utility_of(taste, shown, items), place)
    clicked = (rng.uniform(size=shown.shape) < chance) & (place <= ranked[:, None])
    liked = clicked & (rng.uniform(size=shown.shape) < LIKED)
    delay = np.floor(place * 3 + rng.uniform(1, 20, size=shown.shape))
    return RequestBatch(day, number, user_id, seconds, listed, position, ranked, clicked, liked, delay)


def _utility_of(taste: FloatArray, chosen: IntArray, items: TrueItems) -> FloatArray:
    """[R, K] true utility of the items [R, K] of each row."""
    return np.stack([true_utility(t[None], items.taste[c], items.attractiveness[c])[0] for t, c in zip(taste, chosen)])

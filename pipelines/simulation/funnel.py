"""One block of simulated users through the funnel: recall, filters, coarse and fine ranking, re-ranking, clicks. numpy.

R requests at once, M items, K recalled. A block's days run in order because a user is not shown what they clicked before.
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
    Items,
    catalogue,
    click_probability,
    daily_tastes,
    generator,
    start_second,
    true_utility,
    user_block,
)

# Each stage sees the true utility (logits) through noise, and each sees it better than the one before. The noise is strong
# enough that a user is shown much beyond their true first fifty: logs of a perfect ranker would leave nothing to learn.
RECALL_NOISE = 0.4  # length of the error in the recall model's view of a user, relative to the taste itself
RECALL_POPULARITY = 0.8  # recall leans to what is popular more than users do
COARSE_NOISE = 4.5
FINE_NOISE = 3.8
RERANK_NOISE = 3.2
FILTERED = 0.04  # share of the recalled that rules take out before ranking (stock, region, policy)
LIKED = 0.2  # share of the clicks followed by a like

MOST_REQUESTS = 8  # a user and day
LAST_START = DAY - 3600  # what a request leads to ends within its day
PAUSE = 300  # seconds between two requests of a user, at least
SCORES_AT_ONCE = 4_000_000  # float32 scores held at a time, whatever the number of items


@dataclass(frozen=True)
class Requests:
    """Requests of one block and round of a day. Rows of `items`: best first as far as ranked, then the filtered ones."""

    day: int
    number: int  # 0 is the user's first request of the day
    user_id: IntArray  # [R]
    event_time: FloatArray  # [R] unix seconds
    items: IntArray  # [R, K] item indices
    position: IntArray  # [R, K] rank in the last stage reached, 1 is best
    ranked: IntArray  # [R] how many were ranked: the filtered ones lie behind
    clicked: np.ndarray  # [R, exposed] bool
    liked: np.ndarray  # [R, exposed] bool, only where clicked
    delay: FloatArray  # [R, exposed] seconds from the request to the click


def simulate_block(sim: Simulation, seed: int, block: int) -> Iterator[Requests]:
    """All requests of a block of users, day by day; holds no more than one round and the users' clicked items."""
    users, items = user_block(sim, seed, block), catalogue(sim, seed)
    known: list[list[int]] = [[] for _ in users.user_id]
    for day, tastes in enumerate(daily_tastes(sim, seed, block)):
        rng = generator(seed, REQUESTS, block, day)
        count = np.minimum(rng.poisson(users.rate), MOST_REQUESTS)
        # Two requests of a user never overlap: a click is known by the next one.
        draws = rng.beta(2.5, 1.5, size=(len(count), MOST_REQUESTS)) * (LAST_START - MOST_REQUESTS * PAUSE)
        draws[np.arange(MOST_REQUESTS) >= count[:, None]] = np.inf
        times = np.sort(draws, axis=1) + PAUSE * np.arange(MOST_REQUESTS)
        for number in range(int(count.max(initial=0))):
            row = np.flatnonzero(count > number)
            seconds = np.floor(start_second(sim) + day * DAY + times[row, number])
            recalled = _recall(sim, tastes[row], seconds, items, [known[r] for r in row], rng)
            ranked = _rank(sim, tastes[row], recalled, items, rng)
            requests = _react(sim, tastes[row], ranked, items, rng, day, number, users.user_id[row], seconds)
            for at, r in enumerate(row):
                shown = requests.items[at, : requests.clicked.shape[1]]
                known[r].extend(shown[requests.clicked[at]].tolist())
            yield requests


def _recall(
    sim: Simulation,
    taste: FloatArray,
    seconds: FloatArray,
    items: Items,
    known: list[list[int]],
    rng: np.random.Generator,
) -> IntArray:
    """[R, K] published items that the user did not click yet, best by a noisy view of the user first."""
    noise = rng.normal(size=taste.shape) * RECALL_NOISE / np.sqrt(sim.taste_dim)
    view = (taste + noise).astype(np.float32)
    published = np.searchsorted(items.publish_time, seconds, side="left")
    lean = ((RECALL_POPULARITY - POPULARITY_WEIGHT) * np.log(items.attractiveness)).astype(np.float32)
    free = min(count - len(k) for count, k in zip(published, known))
    keep = max(1, min(sim.recalled, int(free)))
    found = np.empty((len(taste), keep), dtype=np.int64)
    live = int(published.max())
    step = max(1, SCORES_AT_ONCE // live)
    for first in range(0, len(taste), step):
        part = slice(first, first + step)
        scores = true_utility(view[part], items.taste[:live], items.attractiveness[:live]) + lean[:live]
        for at, (count, clicked) in enumerate(zip(published[part], known[part])):
            scores[at, count:] = -np.inf
            scores[at, clicked] = -np.inf
        top = np.argpartition(-scores, keep - 1, axis=1)[:, :keep] if keep < live else np.argsort(-scores, axis=1)
        best = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        found[part] = np.take_along_axis(top, best, axis=1)
    return found


def _rank(
    sim: Simulation, taste: FloatArray, recalled: IntArray, items: Items, rng: np.random.Generator
) -> tuple[IntArray, IntArray, IntArray]:
    """Filter and rank recalled items [R, K]: items [R, K] as in Requests, their positions [R, K], ranked counts [R]."""
    utility = _utility_of(taste, recalled, items)
    filtered = rng.uniform(size=recalled.shape) < FILTERED
    score = np.where(filtered, -np.inf, utility + COARSE_NOISE * rng.normal(size=recalled.shape))
    # A stable sort leaves the filtered ones behind, in the order of recall.
    order = np.argsort(-score, axis=1, kind="stable")
    for kept, noise in ((sim.coarse_kept, FINE_NOISE), (sim.fine_kept, RERANK_NOISE)):
        head = order[:, :kept]
        score = np.take_along_axis(utility, head, axis=1) + noise * rng.normal(size=head.shape)
        score = np.where(np.take_along_axis(filtered, head, axis=1), -np.inf, score)
        order[:, :kept] = np.take_along_axis(head, np.argsort(-score, axis=1, kind="stable"), axis=1)
    ranked = (~filtered).sum(axis=1)
    place = np.arange(recalled.shape[1])
    position = np.where(place < ranked[:, None], place, order) + 1
    return np.take_along_axis(recalled, order, axis=1), position, ranked


def _react(
    sim: Simulation,
    taste: FloatArray,
    ranking: tuple[IntArray, IntArray, IntArray],
    items: Items,
    rng: np.random.Generator,
    day: int,
    number: int,
    user_id: IntArray,
    seconds: FloatArray,
) -> Requests:
    """Clicks and likes on what is exposed: by true utility and by whether the position is looked at."""
    found, position, ranked = ranking
    shown = found[:, : sim.exposed]
    place = np.arange(1, shown.shape[1] + 1)
    chance = click_probability(_utility_of(taste, shown, items), place)
    clicked = (rng.uniform(size=shown.shape) < chance) & (place <= ranked[:, None])
    liked = clicked & (rng.uniform(size=shown.shape) < LIKED)
    delay = np.floor(place * 3 + rng.uniform(1, 20, size=shown.shape))
    return Requests(day, number, user_id, seconds, found, position, ranked, clicked, liked, delay)


def _utility_of(taste: FloatArray, chosen: IntArray, items: Items) -> FloatArray:
    """[R, K] true utility of each row's own items [R, K]."""
    return np.stack([true_utility(t[None], items.taste[c], items.attractiveness[c])[0] for t, c in zip(taste, chosen)])

"""The ground truth of the simulated logs: items, users, and the probability of clicks. numpy only.

Random numbers come from a counter-based generator keyed by (seed, stream, block, day). So any worker can compute any block
of users or items, and always gets the same values. Shapes: B users, M items, d taste dimensions, T tags per item.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.config import Simulation

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]

USER_BLOCK = 128  # users simulated together: large enough for BLAS, small enough for the memory of a task
ITEM_BLOCK = 4096
DAY = 86_400  # seconds
WORLD, ITEMS, USERS, DRIFT, REQUESTS, ITEM_NOISE, USER_NOISE = range(7)  # streams of the generator

AGES = ("under 18", "18-24", "25-34", "35-44", "45-54", "55+")
REGIONS = ("centre", "north", "east", "south", "west", "coast", "islands", "abroad")
TAGS_PER_ITEM = 4
INTERESTS = 3
NOISE_VALUES = 20  # distinct values, similar to a real category
PAST_DAYS = 90  # items of the first day were published during so many days before it

# Utility is in logits of the click. The taste term spans about +-7, the attractiveness term mostly +-1. So a ranking by
# popularity only finds a tenth of the next day's clicks, and the best ranking finds most of them.
TASTE_WEIGHT = 8.0
POPULARITY_WEIGHT = 0.6
CLICK_THRESHOLD = 6.2  # gives a click rate of 20-30% on exposed items
EXAMINATION_DECAY = 0.1  # position p is examined with probability 1 / (1 + decay (p - 1))


@dataclass(frozen=True)
class TrueItems:
    """Items in order of publication. In `tags`, -1 means no tag. Times are unix seconds."""

    item_id: IntArray  # [M]
    taste: FloatArray  # [M, d], unit length
    attractiveness: FloatArray  # [M], > 0, Zipf-like
    category: IntArray  # [M]
    tags: IntArray  # [M, T]
    tag_weights: FloatArray  # [M, T]
    price: FloatArray  # [M]
    publish_time: FloatArray  # [M], ascending
    noise: IntArray  # [M, noise features] random codes below NOISE_VALUES, independent of everything else


@dataclass(frozen=True)
class TrueUsers:
    """A block of users on the first day. In `interests`, -1 means no interest."""

    user_id: IntArray  # [B]
    taste: FloatArray  # [B, d], unit length
    rate: FloatArray  # [B], mean requests per day
    age: IntArray  # [B]
    region: IntArray  # [B]
    interests: IntArray  # [B, INTERESTS + 1] as in the user's profile; differs from the true interests
    activity: FloatArray  # [B], requests counted in the four weeks before the first day
    noise: IntArray  # [B, noise features] random codes below NOISE_VALUES, independent of everything else


@dataclass(frozen=True)
class TasteSpace:
    """The direction of each feature value in the taste space. Rows have unit length."""

    categories: FloatArray  # [categories, d]
    tags: FloatArray  # [tags, d]
    ages: FloatArray  # [ages, d]
    regions: FloatArray  # [regions, d]
    price: FloatArray  # [d]
    category_tags: FloatArray  # [categories, tags] log-affinity: which tags are usual in a category
    category_price: FloatArray  # [categories] log of the usual price


def generator(seed: int, *key: int) -> np.random.Generator:
    """The random generator of a key; the same on every worker."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


def true_utility(user_taste: FloatArray, item_taste: FloatArray, attractiveness: FloatArray) -> FloatArray:
    """True utility [B, M] in logits, from tastes [B, d], [M, d] and attractiveness [M]. The click probability rises with it.

    Sorting a row in descending order gives the best possible ranking for that user.
    """
    return TASTE_WEIGHT * (user_taste @ item_taste.T) + POPULARITY_WEIGHT * np.log(attractiveness)


def click_probability(utility: FloatArray, position: IntArray) -> FloatArray:
    """P(click) = P(position is examined) * sigmoid(utility - threshold), elementwise. The first position is 1."""
    examined = 1.0 / (1.0 + EXAMINATION_DECAY * (position - 1))
    return examined / (1.0 + np.exp(CLICK_THRESHOLD - utility))


def start_second(sim: Simulation) -> int:
    """Unix time of the first second of the first day."""
    return int(datetime.fromisoformat(sim.start).replace(tzinfo=timezone.utc).timestamp())


@lru_cache(maxsize=1)
def taste_space(sim: Simulation, seed: int) -> TasteSpace:
    """The taste space of a seed; the same on every worker."""
    rng = generator(seed, WORLD)
    d = sim.taste_dim
    return TasteSpace(
        categories=_unit(rng.normal(size=(sim.categories, d))),
        tags=_unit(rng.normal(size=(sim.tags, d))),
        ages=_unit(rng.normal(size=(len(AGES), d))),
        regions=_unit(rng.normal(size=(len(REGIONS), d))),
        price=_unit(rng.normal(size=d)),
        category_tags=rng.normal(scale=2.0, size=(sim.categories, sim.tags)),
        category_price=rng.normal(2.5, 0.7, size=sim.categories),
    )


def first_items(sim: Simulation) -> int:
    """Number of items that are published before the first day."""
    return sim.items - round(sim.items * sim.new_item_share)


def item_block(sim: Simulation, seed: int, block: int) -> TrueItems:
    """Items of one block. The taste of an item is the sum of its category, its tags, a small price term and random noise."""
    rng, directions = generator(seed, ITEMS, block), taste_space(sim, seed)
    index = np.arange(block * ITEM_BLOCK, min(sim.items, (block + 1) * ITEM_BLOCK))
    size = len(index)
    category = rng.integers(sim.categories, size=size)
    # Gumbel top-k: draws tags without replacement and prefers the usual tags of the category.
    preference = directions.category_tags[category] + rng.gumbel(size=(size, sim.tags))
    tags = np.argsort(-preference, axis=1)[:, :TAGS_PER_ITEM]
    present = np.arange(tags.shape[1]) < rng.integers(1, TAGS_PER_ITEM + 1, size=size)[:, None]
    weights = np.where(present, -np.sort(-rng.uniform(0.2, 1.0, size=tags.shape), axis=1), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    premium = rng.normal(size=size)
    taste = _unit(
        directions.categories[category]
        + 0.9 * np.einsum("mt,mtd->md", weights, directions.tags[tags])
        + 0.15 * premium[:, None] * directions.price
        + 0.35 * _unit(rng.normal(size=(size, sim.taste_dim)))
    )
    rank = 1.0 + rng.uniform(size=size) * sim.items
    return TrueItems(
        item_id=index + 1,
        taste=taste,
        attractiveness=((rank / sim.items) ** -sim.zipf).astype(np.float32),
        category=category,
        tags=np.where(present, tags, -1),
        tag_weights=weights.astype(np.float32),
        price=np.round(np.exp(directions.category_price[category] + 0.4 * premium), 2),
        publish_time=_publish_times(sim, index, rng.uniform(size=size)),
        noise=_noise(sim, seed, ITEM_NOISE, block, size),
    )


def item_blocks(sim: Simulation) -> int:
    """Number of item blocks."""
    return -(-sim.items // ITEM_BLOCK)


@lru_cache(maxsize=1)
def catalogue(sim: Simulation, seed: int) -> TrueItems:
    """All items of all days; cached once per worker process."""
    blocks = [item_block(sim, seed, block) for block in range(item_blocks(sim))]
    return TrueItems(**{f.name: np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(TrueItems)})


def user_block(sim: Simulation, seed: int, block: int) -> TrueUsers:
    """Users of one block. The taste of a user is mostly a few interests, plus age, region and random noise."""
    rng, directions = generator(seed, USERS, block), taste_space(sim, seed)
    index = np.arange(block * USER_BLOCK, min(sim.users, (block + 1) * USER_BLOCK))
    size = len(index)
    age, region = rng.integers(len(AGES), size=size), rng.integers(len(REGIONS), size=size)
    picked = np.argsort(rng.uniform(size=(size, sim.categories)), axis=1)[:, :INTERESTS]
    strength = rng.dirichlet(np.full(picked.shape[1], 1.5), size=size)
    taste = _unit(
        _unit(np.einsum("bi,bid->bd", strength, directions.categories[picked]))
        + 0.25 * directions.ages[age]
        + 0.25 * directions.regions[region]
        + 0.55 * _unit(rng.normal(size=(size, sim.taste_dim)))
    )
    # A profile names some true interests, the strong ones more often, and sometimes a false one.
    stated = rng.uniform(size=picked.shape) < 0.4 + strength
    false_interest = np.where(rng.uniform(size=(size, 1)) < 0.1, rng.integers(sim.categories, size=(size, 1)), -1)
    rate = sim.requests_per_user * rng.lognormal(-0.18, 0.6, size=size)  # mean of the lognormal: 1
    return TrueUsers(
        user_id=index + 1,
        taste=taste,
        rate=rate,
        age=age,
        region=region,
        interests=np.concatenate([np.where(stated, picked, -1), false_interest], axis=1),
        activity=rng.poisson(28 * rate).astype(np.float64),
        noise=_noise(sim, seed, USER_NOISE, block, size),
    )


def user_blocks(sim: Simulation) -> int:
    """Number of user blocks."""
    return -(-sim.users // USER_BLOCK)


def daily_tastes(sim: Simulation, seed: int, block: int) -> Iterator[FloatArray]:
    """Tastes [B, d] of a block of users, one array per day. Each day they move by `drift` in a random direction."""
    taste = user_block(sim, seed, block).taste
    for day in range(sim.days):
        if day and sim.drift:
            direction = _unit(generator(seed, DRIFT, block, day).normal(size=taste.shape))
            taste = _unit((1 - sim.drift) * taste + sim.drift * direction)
        yield taste


def _publish_times(sim: Simulation, index: IntArray, jitter: FloatArray) -> FloatArray:
    """Ascending publication times: old items during PAST_DAYS before the start, new items during the simulated days."""
    start, old = start_second(sim), first_items(sim)
    before = start - PAST_DAYS * DAY * (1 - (index + jitter) / max(old, 1))
    during = start + sim.days * DAY * (index - old + jitter) / max(sim.items - old, 1)
    return np.floor(np.where(index < old, before, during))


def _noise(sim: Simulation, seed: int, stream: int, block: int, size: int) -> IntArray:
    """Noise features. They use a separate random stream, so they do not change any other value."""
    return generator(seed, stream, block).integers(NOISE_VALUES, size=(size, sim.noise_features))


def _unit(vectors: FloatArray) -> FloatArray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

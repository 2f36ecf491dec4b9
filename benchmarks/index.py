"""Indexes of a release against exact search: recall, speed, and seconds to build.

    python -m benchmarks.index                                  # 1M x 64, a few factories; last line JSON
    python -m benchmarks.index --sizes 30000 100000 300000      # where cells begin to pay; the automatic choice of large sizes

Made vectors, since real ones of this number are not at hand. 2,000 tastes, normal, dimension j scaled by j^-0.35 and all
moved a little in one direction, as vectors of trained towers are (their covariance is far from round, their mean far
from 0). An item: a taste, drawn by a power law, and noise. A user: a random mixture of three tastes, and noise. All of unit
length. `effective` prints (tr C)^2 / tr C^2 of the covariance C of items and of users.

A factory gets its setting as in a night, from 1,000 users; recall@100 of the exact answer and time are then measured on
1,000 others, searched as one batch by all threads, and so is exact search (IndexFlatIP). Seconds are medians of three.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from benchmarks.support import say
from model.config import IndexConfig
from model.serving.faiss_index import Floats, Ints
from model.serving.index_choice import choose_index, default_factory, ivf_factory, recall_per_query

DIM, TASTES, DECAY, POWER = 64, 2000, 0.35, 0.7
MOVED, ITEM_NOISE, USER_NOISE, MIXED = 0.5, 0.7, 0.5, 3
BATCH, K, QUERIES, RUNS = 65_536, 100, 1000, 3
LARGE = 1_000_000
FACTORIES = ["IVF1024,SQ8", "IVF1024,PQ32", "HNSW16"]


class World:
    """Items and users of a made product; the same seed, the same vectors."""

    def __init__(self, items: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.items, self.seed = items, seed
        self.scale = np.arange(1, DIM + 1) ** -DECAY
        self.tastes = (draw.normal(size=(TASTES, DIM)) + MOVED * draw.normal(size=DIM)) * self.scale
        weights = np.arange(1, TASTES + 1) ** -POWER
        self.chance = weights / weights.sum()

    def batches(self) -> Iterator[tuple[Ints, Floats]]:
        """Items, as a night reads them."""
        for start in range(0, self.items, BATCH):
            draw = np.random.default_rng([self.seed, start])
            ids = np.arange(start, min(start + BATCH, self.items))
            yield ids, self._noisy(draw, self.tastes[draw.choice(TASTES, len(ids), p=self.chance)], ITEM_NOISE)

    def users(self, count: int, number: int) -> Floats:
        """[count, d] users; another number, other users."""
        draw = np.random.default_rng([self.seed, self.items, number])
        mixture = draw.dirichlet(np.ones(MIXED), count)
        chosen = self.tastes[draw.choice(TASTES, (count, MIXED), p=self.chance)]
        return self._noisy(draw, np.einsum("nm,nmd->nd", mixture, chosen), USER_NOISE)

    def _noisy(self, draw: np.random.Generator, vectors: np.ndarray, noise: float) -> Floats:
        moved = vectors + noise * self.scale * draw.normal(size=vectors.shape)
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def effective_dimensions(vectors: Floats) -> float:
    """(tr C)^2 / tr C^2."""
    values = np.linalg.eigvalsh(np.cov(vectors.T))
    return float(values.sum() ** 2 / (values**2).sum())


def searched(index: faiss.Index, queries: Floats) -> tuple[Ints, float]:
    """Answers, and the median of seconds for the batch; the first run warms up."""
    seconds = []
    for _ in range(RUNS + 1):
        since = time.perf_counter()
        _, found = index.search(queries, K)
        seconds.append(time.perf_counter() - since)
    return found, statistics.median(seconds[1:])


def measure(items: int, factories: list[str]) -> list[dict[str, Any]]:
    """A row for the exact index and one for each factory."""
    world = World(items, seed=1)
    held = list(world.batches())  # Made once: what is timed is the index, not the random numbers.
    swept, users = (world.users(QUERIES, number) for number in range(2))
    round_items, round_users = (effective_dimensions(vectors) for vectors in (held[0][1], users))
    say(f"{items:,} items, effective dimensions {round_items:.1f}, of users {round_users:.1f}")
    flat = choose_index(lambda: held, DIM, items, swept, IndexConfig(factory="Flat"), seed=1)
    wanted, exact = searched(flat.index, users)
    rows = [_row(items, "Flat", "", flat.build_seconds, 1.0, exact, exact)]
    del flat
    for factory in factories:
        chosen = choose_index(lambda: held, DIM, items, swept, IndexConfig(factory=factory), seed=1)
        for point in chosen.sweep:
            say(
                f"{factory} {point.value}: {point.recall:.4f} (at least {point.at_least:.4f}), {1000 * point.seconds:.0f} ms"
            )
        if chosen.factory != factory:
            setting = f"at least {max(point.at_least for point in chosen.sweep):.3f}"
            rows.append(_row(items, factory, setting, chosen.build_seconds, None, None, exact))
            continue
        found, seconds = searched(chosen.index, users)
        setting = f"{chosen.parameter} {chosen.value}"
        recall = float(recall_per_query(found, wanted).mean())
        rows.append(_row(items, factory, setting, chosen.build_seconds, recall, seconds, exact))
    return rows


def _row(
    items: int, factory: str, setting: str, built: float, recall: float | None, seconds: float | None, exact: float
) -> dict[str, Any]:
    row = {"items": items, "factory": factory, "setting": setting, "build_seconds": built, "recall_at_100": recall}
    row |= {"batch_ms": seconds and 1000 * seconds, "speed_up": seconds and exact / seconds}
    say(" | ".join(f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in row.values()))
    return row


def main() -> None:
    """Print the table as it grows, and all of it as JSON at the end."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--sizes", type=int, nargs="+", default=[LARGE], help="numbers of items")
    flags.add_argument("--factories", nargs="*", help="beside the automatic choice; default: a few, at 1M items alone")
    options = flags.parse_args()
    rows = []
    for items in options.sizes:
        others = FACTORIES if items == LARGE and options.factories is None else options.factories or []
        rows += measure(items, [ivf_factory(items), *others])
    automatic = [row for row in rows if row["factory"] == default_factory(row["items"])][-1]
    print(json.dumps({name: automatic[name] for name in ("speed_up", "recall_at_100")} | {"details": rows}))


if __name__ == "__main__":
    main()

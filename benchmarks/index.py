"""Compares Faiss indexes with exact search: recall, speed and build time.

    python -m benchmarks.index                                  # 1M x 64, a few factories; last line JSON
    python -m benchmarks.index --sizes 30000 100000 300000      # from which size on IVF pays off

The vectors are synthetic, because real ones of this number are not available. There are 2,000 normal tastes, with dimension j
scaled by j^-0.35 and a common offset: like vectors of trained towers, their covariance is far from isotropic and their mean is
not 0. An item is a taste (drawn by a power law) plus noise. A user is a random mixture of three tastes plus noise. All vectors
have unit length. The effective dimension is (tr C)^2 / tr C^2 of the covariance C of items or users.

Each factory is tuned as in a night, with 1,000 users. Then recall@100 relative to exact search (IndexFlatIP) and search time
are measured with 1,000 other users, as one batch on all threads. Seconds are medians of three runs.
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
from model.release_config import IndexConfig
from model.serving.faiss_index import Floats, Ints
from model.serving.index_choice import choose_index, default_factory, ivf_factory, recall_per_query

DIM, TASTES, DECAY, POWER = 64, 2000, 0.35, 0.7
MOVED, ITEM_NOISE, USER_NOISE, MIXED = 0.5, 0.7, 0.5, 3
BATCH, K, QUERIES, RUNS = 65_536, 100, 1000, 3
LARGE = 1_000_000
FACTORIES = ["IVF1024,SQ8", "IVF1024,PQ32", "HNSW16"]


class SyntheticVectors:
    """Vectors of items and users, determined by the seed."""

    def __init__(self, items: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.items, self.seed = items, seed
        self.scale = np.arange(1, DIM + 1) ** -DECAY
        self.tastes = (rng.normal(size=(TASTES, DIM)) + MOVED * rng.normal(size=DIM)) * self.scale
        weights = np.arange(1, TASTES + 1) ** -POWER
        self.chance = weights / weights.sum()

    def batches(self) -> Iterator[tuple[Ints, Floats]]:
        """Ids and vectors of items, in batches."""
        for start in range(0, self.items, BATCH):
            rng = np.random.default_rng([self.seed, start])
            ids = np.arange(start, min(start + BATCH, self.items))
            yield ids, self._noisy(rng, self.tastes[rng.choice(TASTES, len(ids), p=self.chance)], ITEM_NOISE)

    def users(self, count: int, number: int) -> Floats:
        """Vectors [count, d] of users. Each `number` gives other users."""
        rng = np.random.default_rng([self.seed, self.items, number])
        mixture = rng.dirichlet(np.ones(MIXED), count)
        chosen = self.tastes[rng.choice(TASTES, (count, MIXED), p=self.chance)]
        return self._noisy(rng, np.einsum("nm,nmd->nd", mixture, chosen), USER_NOISE)

    def _noisy(self, rng: np.random.Generator, vectors: np.ndarray, noise: float) -> Floats:
        moved = vectors + noise * self.scale * rng.normal(size=vectors.shape)
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def effective_dimensions(vectors: Floats) -> float:
    """(tr C)^2 / tr C^2 of the covariance C."""
    values = np.linalg.eigvalsh(np.cov(vectors.T))
    return float(values.sum() ** 2 / (values**2).sum())


def search(index: faiss.Index, queries: Floats) -> tuple[Ints, float]:
    """The top K of each query, and median seconds per batch. The first run warms up."""
    seconds = []
    for _ in range(RUNS + 1):
        since = time.perf_counter()
        _, top = index.search(queries, K)
        seconds.append(time.perf_counter() - since)
    return top, statistics.median(seconds[1:])


def measure(items: int, factories: list[str]) -> list[dict[str, Any]]:
    """One row of figures for the exact index and one for each factory."""
    vectors = SyntheticVectors(items, seed=1)
    batches = list(vectors.batches())  # in memory, so that timing does not include random numbers
    tuning_users, users = (vectors.users(QUERIES, number) for number in range(2))
    of_items, of_users = (effective_dimensions(sample) for sample in (batches[0][1], users))
    say(f"{items:,} items, effective dimensions {of_items:.1f}, of users {of_users:.1f}")
    flat = choose_index(lambda: batches, DIM, items, tuning_users, IndexConfig(factory="Flat"), seed=1)
    exact_top, exact_seconds = search(flat.index, users)
    rows = [_row(items, "Flat", "", flat.build_seconds, 1.0, exact_seconds, exact_seconds)]
    del flat
    for factory in factories:
        chosen = choose_index(lambda: batches, DIM, items, tuning_users, IndexConfig(factory=factory), seed=1)
        for point in chosen.sweep:
            say(
                f"{factory} {point.value}: {point.recall:.4f} (at least {point.at_least:.4f}), {1000 * point.seconds:.0f} ms"
            )
        if chosen.factory != factory:
            setting = f"at least {max(point.at_least for point in chosen.sweep):.3f}"
            rows.append(_row(items, factory, setting, chosen.build_seconds, None, None, exact_seconds))
            continue
        top, seconds = search(chosen.index, users)
        setting = f"{chosen.parameter} {chosen.value}"
        recall = float(recall_per_query(top, exact_top).mean())
        rows.append(_row(items, factory, setting, chosen.build_seconds, recall, seconds, exact_seconds))
    return rows


def _row(
    items: int, factory: str, setting: str, built: float, recall: float | None, seconds: float | None, exact: float
) -> dict[str, Any]:
    row = {"items": items, "factory": factory, "setting": setting, "build_seconds": built, "recall_at_100": recall}
    row |= {"batch_ms": seconds and 1000 * seconds, "speed_up": seconds and exact / seconds}
    say(" | ".join(f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in row.values()))
    return row


def main() -> None:
    """Print each row when it is measured, and all rows as JSON at the end."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--sizes", type=int, nargs="+", default=[LARGE], help="numbers of items")
    flags.add_argument(
        "--factories", nargs="*", help="factories besides the automatic one; default: a few, only at 1M items"
    )
    options = flags.parse_args()
    rows = []
    for items in options.sizes:
        factories = FACTORIES if items == LARGE and options.factories is None else options.factories or []
        rows += measure(items, [ivf_factory(items), *factories])
    automatic = [row for row in rows if row["factory"] == default_factory(row["items"])][-1]
    print(json.dumps({name: automatic[name] for name in ("speed_up", "recall_at_100")} | {"details": rows}))


if __name__ == "__main__":
    main()

"""Chooses the Faiss index of a release: the factory by the number of items, its setting by measured recall.

Recall is measured for sampled users, against exact search over the same vectors.

Shapes: M items, n queries, d vector length, k items per query.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from model.release_config import IndexConfig
from model.serving.faiss_index import FLAT, NO_ITEM, Batches, Floats, Ints, build_index, cells_of

EXACT_BELOW = 100_000  # Number of items from which the default index is approximate.
LARGEST_SHARE = 0.5  # Largest share of IVF cells that a search may probe. Probing all is exact but slower than Flat.
LARGEST_EF = 4096
# Standard errors of the mean over users by which a recall must exceed the target. For normal means the lower bound holds
# for 98 of 100 samples of users.
DEVIATIONS = 2


@dataclass(frozen=True)
class SweepPoint:
    """Measurements for one setting of a sweep."""

    value: int
    recall: float
    at_least: float  # Lower bound of the mean recall over all users: DEVIATIONS standard errors below `recall`.
    seconds: float  # Of all queries together.


@dataclass(frozen=True)
class ChosenIndex:
    """An index with its setting, and the sweep that chose it."""

    index: faiss.Index
    factory: str
    parameter: str | None  # nprobe or efSearch; None for an exact index.
    value: int | None
    recall: float  # Against exact search, for the users of the sweep.
    tried: str  # The factory that was swept. Differs from `factory` if it did not reach the target.
    sweep: list[SweepPoint]
    build_seconds: float
    exact_seconds: float = math.nan  # Of exact search for the same queries; NaN without a sweep.


def default_factory(items: int) -> str:
    """The factory for a catalogue of `items` items. The threshold EXACT_BELOW is an estimate, not measured."""
    return FLAT if items < EXACT_BELOW else ivf_factory(items)


def ivf_factory(items: int) -> str:
    """IVF with about 4 sqrt(M) cells: selecting the cells of a query then costs about as much as searching them."""
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(items)))},Flat"


def search_parameter(factory: str) -> str | None:
    """The name of the setting that trades time for recall; None for an exact index."""
    return "nprobe" if factory.startswith("IVF") else "efSearch" if factory.startswith("HNSW") else None


def choose_index(
    batches: Batches, dim: int, items: int, queries_nd: Floats, config: IndexConfig, seed: int
) -> ChosenIndex:
    """Build the index of a release with the smallest setting that reaches the target recall; exact if none does.

    A setting reaches the target if the lower bound of its recall over all users does (`SweepPoint.at_least`). With the mean
    over the sampled users `queries_nd`, half of all releases would miss the target for the other users. Recall and time
    both grow with the setting, so the smallest is the cheapest; measured times do not enter the choice.
    """
    factory = config.factory or default_factory(items)
    parameter = search_parameter(factory)
    if parameter is None:
        return _exact(batches, dim, FLAT, [])
    exact_nk, exact_seconds = exact_search(batches(), queries_nd, min(config.recall_at, items))
    started = time.perf_counter()
    index = build_index(batches, dim, factory, seed)
    build_seconds = time.perf_counter() - started
    sweep: list[SweepPoint] = []
    for value in settings_to_try(factory, config.recall_at):
        sweep.append(_measured(index, parameter, value, queries_nd, exact_nk))
        if sweep[-1].at_least >= config.recall_target:
            recall = sweep[-1].recall
            return ChosenIndex(index, factory, parameter, value, recall, factory, sweep, build_seconds, exact_seconds)
    del index
    return _exact(batches, dim, factory, sweep, exact_seconds)


def _exact(
    batches: Batches, dim: int, tried: str, sweep: list[SweepPoint], exact_seconds: float = math.nan
) -> ChosenIndex:
    started = time.perf_counter()
    index = build_index(batches, dim)
    return ChosenIndex(index, FLAT, None, None, 1.0, tried, sweep, time.perf_counter() - started, exact_seconds)


def settings_to_try(factory: str, k: int) -> list[int]:
    """Settings of a sweep, ascending, each at most 1.5 times the one before (or 1 more).

    IVF: up to LARGEST_SHARE of the cells. HNSW: from k, because Faiss raises a smaller efSearch to k.
    """
    if search_parameter(factory) == "nprobe":
        first, last = 1, math.ceil(LARGEST_SHARE * cells_of(factory))
    else:
        first, last = k, max(k, LARGEST_EF)
    values = [first]
    while values[-1] < last:
        values.append(min(last, values[-1] + max(1, values[-1] // 2)))
    return values


def _measured(index: faiss.Index, parameter: str, value: int, queries_nd: Floats, exact_nk: Ints) -> SweepPoint:
    """Set one setting on the index and measure its recall and time."""
    faiss.ParameterSpace().set_index_parameter(index, parameter, value)
    started = time.perf_counter()
    _, items_nk = index.search(queries_nd, exact_nk.shape[1])
    seconds = time.perf_counter() - started
    recall_n = recall_per_query(items_nk, exact_nk)
    return SweepPoint(value, float(recall_n.mean()), recall_lower_bound(recall_n), seconds)


def exact_search(batches: Iterable[tuple[Ints, Floats]], queries_nd: Floats, k: int) -> tuple[Ints, float]:
    """Exact search over batches, one in memory at a time: the k best items of each query [n, k], and the search time in s."""
    scores_nk = np.full((len(queries_nd), k), -np.inf, np.float32)
    items_nk = np.full((len(queries_nd), k), NO_ITEM, np.int64)
    seconds = 0.0
    for item_index, vectors in batches:
        started = time.perf_counter()
        vectors = np.ascontiguousarray(vectors, np.float32)
        batch_scores, rows = faiss.knn(queries_nd, vectors, min(k, len(vectors)), faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores_nk, batch_scores], axis=1)
        items = np.concatenate([items_nk, item_index[rows]], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores_nk, items_nk = np.take_along_axis(scores, best, 1), np.take_along_axis(items, best, 1)
        seconds += time.perf_counter() - started
    return items_nk, seconds


def recall_per_query(items_nk: Ints, exact_nk: Ints) -> npt.NDArray[np.float64]:
    """[n] share of the exact answer `exact_nk` that each query returned.

    If scores tie at rank k, only the items in `exact_nk` count as hits.
    """
    hits = [len(np.intersect1d(items, exact)) for items, exact in zip(items_nk, exact_nk)]
    return np.array(hits, np.float64) / exact_nk.shape[1]


def recall_lower_bound(recall_n: npt.NDArray[np.float64]) -> float:
    """Lower bound of the mean recall over all users, by the normal approximation; -inf for fewer than two queries."""
    if len(recall_n) < 2:
        return -math.inf
    return float(recall_n.mean() - DEVIATIONS * recall_n.std(ddof=1) / math.sqrt(len(recall_n)))

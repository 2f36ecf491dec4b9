"""The Faiss index of a release: item vectors of unit length with item indices as ids, searched by inner product.

An index is exact (Flat), or approximate with one setting that trades time for recall: `nprobe` of IVF, `efSearch` of HNSW.
The setting is chosen by recall for sampled users, measured against exact search over the same vectors.

Shapes: M items, n queries, d vector length, k items per query.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from model.config import IndexConfig
from model.io.urls import resolve

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Batches = Callable[
    [], Iterable[tuple[Ints, Floats]]
]  # Each call restarts at the first batch: (item indices [b], vectors [b, d]).
NO_ITEM = -1  # Item index of a position that no item fills.
FLAT = "Flat"
EXACT_BELOW = 100_000  # Number of items from which the default index is approximate.
ROWS_PER_CELL = 64  # Training vectors per IVF cell; Faiss warns below 39.
ROUNDS = 10  # Iterations of k-means.
CODEBOOK = 256  # Centroids of an 8-bit product quantiser. Each needs as many training vectors as a cell.
LARGEST_SHARE = 0.5  # Largest share of IVF cells that a search may probe. Probing all is exact but slower than Flat.
LARGEST_EF = 4096
# Standard errors of the mean over users by which a recall must exceed the target. For normal means the lower bound holds
# for 98 of 100 samples of users.
DEVIATIONS = 2


class IndexFactoryError(ValueError):
    """A factory string that cannot build an index of these items."""


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


def build_index(batches: Batches, dim: int, factory: str = FLAT, seed: int = 0) -> faiss.Index:
    """Build an index from batches. Holds one batch in memory, and for IVF a training sample of bounded size.

    The same items in the same order give the same bytes, on any number of cores (HNSW: since Faiss 1.15). Raises
    IndexFactoryError if there are too few items to train on, or if the factory does not fit the vectors.
    """
    index = _empty(dim, factory)
    if not index.is_trained:
        _train(index, batches, factory, seed)
    for item_index, vectors in batches():
        index.add_with_ids(np.ascontiguousarray(vectors, np.float32), item_index.astype(np.int64))
    return index


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


def cells_of(factory: str) -> int:
    """Number of cells: n of IVFn."""
    return int(factory.removeprefix("IVF").partition(",")[0])


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


def save_index(index: faiss.Index, path: Path) -> None:
    """Write an index to a local file, with its setting: `load_index` restores both."""
    faiss.write_index(index, str(path))


def load_index(url: str) -> faiss.Index:
    """Read an index, with its setting, from any URL that Arrow reads."""
    filesystem, path = resolve(url)
    with filesystem.open_input_stream(path) as stream:
        return faiss.deserialize_index(np.frombuffer(stream.read(), dtype=np.uint8))


def search(index: faiss.Index, vectors: Floats, k: int, excluded: list[Ints] | None = None) -> tuple[Floats, Ints]:
    """Scores [n, k] and item indices [n, k] of the nearest items, best first, without the items that each row excludes.

    Positions that cannot be filled hold NO_ITEM. Each search asks for as many more items as the row excludes, so the answer
    of an exact index is exact. The answer of an approximate index has no excluded item, no item twice, and the order of the
    index's scores (inner products; of rounded vectors for PQ and SQ8). A row that the setting does not fill is searched
    again exhaustively, so positions stay empty only if there are no more items or an HNSW graph does not reach them.
    """
    scores, items = _search(index, vectors, k, excluded, None)
    short = np.flatnonzero((items == NO_ITEM).any(axis=1))
    exhaustive = _exhaustive(index)
    if len(short) and exhaustive is not None:
        excluded_short = None if excluded is None else [excluded[row] for row in short]
        scores[short], items[short] = _search(index, vectors[short], k, excluded_short, exhaustive)
    return scores, items


def search_exhaustively(index: faiss.Index, vectors: Floats, k: int) -> tuple[Floats, Ints]:
    """Like `search`, but an approximate index searches all of its vectors."""
    return _search(index, vectors, k, None, _exhaustive(index))


def _search(
    index: faiss.Index, vectors: Floats, k: int, excluded: list[Ints] | None, parameters: Any
) -> tuple[Floats, Ints]:
    scores = np.full((len(vectors), k), -np.inf, np.float32)
    items = np.full((len(vectors), k), NO_ITEM, np.int64)
    counts = np.array([len(row) for row in excluded]) if excluded is not None else np.zeros(len(vectors), np.int64)
    # Rows that exclude similar numbers of items are searched together, so that one heavy user does not deepen all searches.
    depth = k + np.where(counts > 0, 2 ** np.ceil(np.log2(np.maximum(counts, 16))), 0).astype(np.int64)
    for group_depth in np.unique(depth):
        rows = np.flatnonzero(depth == group_depth)
        group_vectors = np.ascontiguousarray(vectors[rows])
        group = index.search(group_vectors, int(min(group_depth, index.ntotal)), params=parameters)
        for row, row_scores, row_items in zip(rows, *group):
            keep = row_items >= 0
            if excluded is not None and counts[row]:
                keep &= ~np.isin(row_items, excluded[row])
            row_items, row_scores = row_items[keep][:k], row_scores[keep][:k]
            items[row, : len(row_items)], scores[row, : len(row_items)] = row_items, row_scores
    return scores, items


def _exhaustive(index: Any) -> Any:
    """Search parameters with which an approximate index searches all of its vectors; None for an exact index."""
    parameters: Any = faiss  # The stubs of Faiss lack these classes.
    inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexIVF):
        return parameters.SearchParametersIVF(nprobe=inner.nlist)
    if isinstance(inner, faiss.IndexHNSW):
        return parameters.SearchParametersHNSW(efSearch=inner.ntotal)
    return None


def _measured(index: faiss.Index, parameter: str, value: int, queries_nd: Floats, exact_nk: Ints) -> SweepPoint:
    """Set one setting on the index and measure its recall and time."""
    faiss.ParameterSpace().set_index_parameter(index, parameter, value)
    started = time.perf_counter()
    _, items_nk = index.search(queries_nd, exact_nk.shape[1])
    seconds = time.perf_counter() - started
    recall_n = recall_per_query(items_nk, exact_nk)
    return SweepPoint(value, float(recall_n.mean()), recall_lower_bound(recall_n), seconds)


def _empty(dim: int, factory: str) -> faiss.Index:
    # np: no polysemous training, which takes most of the time and serves a filter that is not used here.
    name = f"IDMap,{factory}" + ("np" if "PQ" in factory else "")
    try:
        return faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexFactoryError(f"index.factory {factory} does not fit vectors of {dim}: {error}") from None


def _train(index: faiss.Index, batches: Batches, factory: str, seed: int) -> None:
    """Train with k-means on one thread: sums over several threads would change the bits of the index from run to run."""
    fewest = max(cells_of(factory), CODEBOOK if "PQ" in factory else 1)
    sample_sd = _sample(batches(), ROWS_PER_CELL * max(cells_of(factory), CODEBOOK), seed)
    if len(sample_sd) < fewest:
        raise IndexFactoryError(
            f"index.factory {factory} needs at least {fewest:,} items to train on, there are {len(sample_sd):,}: "
            "choose fewer cells, or set index.factory to null"
        )
    cells: Any = faiss.extract_index_ivf(index)
    cells.cp.niter, cells.cp.seed = ROUNDS, seed % 2**31
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.train(sample_sd)
    finally:
        faiss.omp_set_num_threads(threads)


def _sample(batches: Iterable[tuple[Ints, Floats]], rows: int, seed: int) -> Floats:
    """A uniform sample [s, d] of at most `rows` vectors, in one pass: each draws a random number, the smallest are kept."""
    rng = np.random.default_rng(seed % 2**31)
    drawn: npt.NDArray[np.float64] = np.zeros(0)
    sample: Floats | None = None
    for _, vectors in batches:
        drawn = np.concatenate([drawn, rng.random(len(vectors))])
        sample = vectors if sample is None else np.concatenate([sample, vectors])
        smallest = np.argsort(drawn)[:rows]
        drawn, sample = drawn[smallest], sample[smallest]
    return np.ascontiguousarray(sample if sample is not None else np.zeros((0, 0)), np.float32)

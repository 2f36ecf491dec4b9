"""The Faiss index of a release: item vectors by item index, searched by inner product (vectors are of unit length).

Exact (Flat), or approximate with one setting that trades time for recall: `nprobe` of IVF, `efSearch` of HNSW. Which
setting a release has is decided by the recall that users get, against exact search over the same vectors.

Shapes: M items, n queries, d vector length, k items asked for.
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
Batches = Callable[[], Iterable[tuple[Ints, Floats]]]  # (item indices [b], vectors [b, d]), readable again and again
NO_ITEM = -1
FLAT = "Flat"
EXACT_BELOW = 100_000  # items
ROWS_PER_CELL = 64  # training vectors a cell of IVF: 39 is the fewest that Faiss trains on without a warning
ROUNDS = 10  # of k-means
CODEBOOK = 256  # centroids of a product quantiser of 8 bits, each of which is trained like a cell
LARGEST_SHARE = 0.5  # of the cells of IVF that a search may look into; all of them is exact search by a slower road
LARGEST_EF = 4096
DEVIATIONS = (
    2  # of the mean over users, by which a recall must lie above the target: true for 98 samples of users in 100
)


class IndexFactoryError(ValueError):
    """A factory that no index of these items can be made by."""


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a sweep."""

    value: int
    recall: float
    at_least: float  # for other users like these: DEVIATIONS standard errors below `recall`
    seconds: float  # for all queries together


@dataclass(frozen=True)
class ChosenIndex:
    """An index with its setting, and how it was found."""

    index: faiss.Index
    factory: str
    parameter: str | None  # nprobe or efSearch; None: exact
    value: int | None
    recall: float  # of the exact answer, for the users of the sweep
    tried: str  # the factory that was swept; another than `factory` where it did not reach the target
    sweep: list[SweepPoint]
    build_seconds: float
    exact_seconds: float = math.nan  # of exact search for the same queries; NaN where nothing was swept


def default_factory(items: int) -> str:
    """The index of a catalogue of so many items. Where cells begin to pay is a judgement, not measured."""
    return FLAT if items < EXACT_BELOW else ivf_factory(items)


def ivf_factory(items: int) -> str:
    """IVF of about 4 sqrt(M) cells: finding a query's cells then costs about as much as looking into them."""
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(items)))},Flat"


def search_parameter(factory: str) -> str | None:
    """The setting that trades time for recall; None for an exact index."""
    return "nprobe" if factory.startswith("IVF") else "efSearch" if factory.startswith("HNSW") else None


def build_index(batches: Batches, dim: int, factory: str = FLAT, seed: int = 0) -> faiss.Index:
    """An index from batches; one batch is in memory at a time, and for IVF a sample of bounded size to train on.

    The same items in the same order give the same bytes, on any number of cores (HNSW: since Faiss 1.15). Raises
    IndexFactoryError where there are too few items to train on, or where the factory does not fit the vectors.
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
    """The index of a release, with the smallest setting whose recall surely reaches the target; else exact.

    Surely: for users like `queries_nd`, not just for these (`SweepPoint.at_least`). Taken by the mean of these, every other
    release would be below its target for the rest. Recall grows with the setting and so does time, so the smallest is the
    cheapest, whatever the clock said that night.
    """
    factory = config.factory or default_factory(items)
    parameter = search_parameter(factory)
    if parameter is None:
        return _exact(batches, dim, FLAT, [])
    wanted_nk, exact_seconds = exact_search(batches(), queries_nd, min(config.recall_at, items))
    since = time.perf_counter()
    index = build_index(batches, dim, factory, seed)
    built = time.perf_counter() - since
    sweep: list[SweepPoint] = []
    for value in settings_to_try(factory, config.recall_at):
        sweep.append(_measured(index, parameter, value, queries_nd, wanted_nk))
        if sweep[-1].at_least >= config.recall_target:
            recall = sweep[-1].recall
            return ChosenIndex(index, factory, parameter, value, recall, factory, sweep, built, exact_seconds)
    del index
    return _exact(batches, dim, factory, sweep, exact_seconds)


def _exact(
    batches: Batches, dim: int, tried: str, sweep: list[SweepPoint], exact_seconds: float = math.nan
) -> ChosenIndex:
    since = time.perf_counter()
    index = build_index(batches, dim)
    return ChosenIndex(index, FLAT, None, None, 1.0, tried, sweep, time.perf_counter() - since, exact_seconds)


def settings_to_try(factory: str, k: int) -> list[int]:
    """Settings worth trying, ascending, each at most half as much again as the one before.

    IVF: up to LARGEST_SHARE of the cells. HNSW: from k, below which Faiss looks at k.
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
    """n of IVFn."""
    return int(factory.removeprefix("IVF").partition(",")[0])


def exact_search(batches: Iterable[tuple[Ints, Floats]], queries_nd: Floats, k: int) -> tuple[Ints, float]:
    """The k best items of each query [n, k] over all batches, one batch in memory at a time, and the seconds of the search."""
    scores_nk = np.full((len(queries_nd), k), -np.inf, np.float32)
    items_nk = np.full((len(queries_nd), k), NO_ITEM, np.int64)
    seconds = 0.0
    for item_index, vectors in batches:
        since = time.perf_counter()
        found = min(k, len(vectors))
        new, places = faiss.knn(
            queries_nd, np.ascontiguousarray(vectors, np.float32), found, faiss.METRIC_INNER_PRODUCT
        )
        scores = np.concatenate([scores_nk, new], axis=1)
        items = np.concatenate([items_nk, item_index[places]], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores_nk, items_nk = np.take_along_axis(scores, best, 1), np.take_along_axis(items, best, 1)
        seconds += time.perf_counter() - since
    return items_nk, seconds


def recall_per_query(found_nk: Ints, wanted_nk: Ints) -> npt.NDArray[np.float64]:
    """[n] share of the exact answer that each query found.

    Where scores are equal at its edge, only the items of the answer are hits.
    """
    hits = [len(np.intersect1d(found, wanted)) for found, wanted in zip(found_nk, wanted_nk)]
    return np.array(hits, np.float64) / wanted_nk.shape[1]


def recall_lower_bound(recall_n: npt.NDArray[np.float64]) -> float:
    """What the mean over all users is at least, by the normal approximation; -inf where one query says nothing of others."""
    if len(recall_n) < 2:
        return -math.inf
    return float(recall_n.mean() - DEVIATIONS * recall_n.std(ddof=1) / math.sqrt(len(recall_n)))


def save_index(index: faiss.Index, path: Path) -> None:
    """To a local file. The setting is part of it: whoever reads the file searches with it."""
    faiss.write_index(index, str(path))


def load_index(url: str) -> faiss.Index:
    """From a file anywhere that Arrow reads, with the setting that it was saved with."""
    filesystem, path = resolve(url)
    with filesystem.open_input_stream(path) as stream:
        return faiss.deserialize_index(np.frombuffer(stream.read(), dtype=np.uint8))


def search(index: faiss.Index, vectors: Floats, k: int, excluded: list[Ints] | None = None) -> tuple[Floats, Ints]:
    """Scores [n, k] and item indices [n, k] of the nearest items, best first, without those that each row excludes.

    Places that cannot be filled hold NO_ITEM. Asks for as many more as the row excludes, so the answer is exact for an
    exact index. For an approximate one: no excluded item, no item twice, best first by the scores of the index (inner
    products, but for PQ and SQ8, which hold vectors rounded); a row that its setting does not fill is searched
    once more over everything, so places stay empty only where items have run out, or an HNSW graph does not lead to them.
    """
    scores, items = _search(index, vectors, k, excluded, None)
    short = np.flatnonzero((items == NO_ITEM).any(axis=1))
    everything = _everywhere(index)
    if len(short) and everything is not None:
        rows = None if excluded is None else [excluded[row] for row in short]
        scores[short], items[short] = _search(index, vectors[short], k, rows, everything)
    return scores, items


def search_everywhere(index: faiss.Index, vectors: Floats, k: int) -> tuple[Floats, Ints]:
    """Like `search`, but an approximate index looks at everything that it has."""
    return _search(index, vectors, k, None, _everywhere(index))


def _search(
    index: faiss.Index, vectors: Floats, k: int, excluded: list[Ints] | None, parameters: Any
) -> tuple[Floats, Ints]:
    scores = np.full((len(vectors), k), -np.inf, np.float32)
    items = np.full((len(vectors), k), NO_ITEM, np.int64)
    counts = np.array([len(row) for row in excluded]) if excluded is not None else np.zeros(len(vectors), np.int64)
    # Rows that exclude about as much are searched together: one heavy user does not make everybody's search deep.
    depth = k + np.where(counts > 0, 2 ** np.ceil(np.log2(np.maximum(counts, 16))), 0).astype(np.int64)
    for asked in np.unique(depth):
        rows = np.flatnonzero(depth == asked)
        asked_vectors = np.ascontiguousarray(vectors[rows])
        found_scores, found = index.search(asked_vectors, int(min(asked, index.ntotal)), params=parameters)
        for row, row_scores, row_items in zip(rows, found_scores, found):
            keep = row_items >= 0
            if excluded is not None and counts[row]:
                keep &= ~np.isin(row_items, excluded[row])
            row_items, row_scores = row_items[keep][:k], row_scores[keep][:k]
            items[row, : len(row_items)], scores[row, : len(row_items)] = row_items, row_scores
    return scores, items


def _everywhere(index: Any) -> Any:
    """Search parameters under which an approximate index looks at everything; None for an exact one."""
    parameters: Any = faiss  # Faiss' own stubs lack half of these classes.
    inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexIVF):
        return parameters.SearchParametersIVF(nprobe=inner.nlist)
    if isinstance(inner, faiss.IndexHNSW):
        return parameters.SearchParametersHNSW(efSearch=inner.ntotal)
    return None


def _measured(index: faiss.Index, parameter: str, value: int, queries_nd: Floats, wanted_nk: Ints) -> SweepPoint:
    """Recall and time of one setting, which the index keeps."""
    faiss.ParameterSpace().set_index_parameter(index, parameter, value)
    since = time.perf_counter()
    _, found_nk = index.search(queries_nd, wanted_nk.shape[1])
    seconds = time.perf_counter() - since
    recall_n = recall_per_query(found_nk, wanted_nk)
    return SweepPoint(value, float(recall_n.mean()), recall_lower_bound(recall_n), seconds)


def _empty(dim: int, factory: str) -> faiss.Index:
    # np: no polysemous codes, which take most of the training time and serve a filter that nobody uses here.
    name = f"IDMap,{factory}" + ("np" if "PQ" in factory else "")
    try:
        return faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexFactoryError(f"index.factory {factory} does not fit vectors of {dim}: {error}") from None


def _train(index: faiss.Index, batches: Batches, factory: str, seed: int) -> None:
    """k-means on one thread: sums over more of them end in other bits, and with them the index."""
    fewest = max(cells_of(factory), CODEBOOK if "PQ" in factory else 1)
    sample_sd = _sample(batches(), ROWS_PER_CELL * max(cells_of(factory), CODEBOOK), seed)
    if len(sample_sd) < fewest:
        raise IndexFactoryError(
            f"index.factory {factory} needs at least {fewest:,} items to train on, there are {len(sample_sd):,}: "
            "name fewer cells, or leave index.factory null"
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
    """At most `rows` vectors [s, d], drawn evenly from all batches in one pass: those that drew the smallest numbers."""
    draw = np.random.default_rng(seed % 2**31)
    drawn: npt.NDArray[np.float64] = np.zeros(0)
    sample: Floats | None = None
    for _, vectors in batches:
        drawn = np.concatenate([drawn, draw.random(len(vectors))])
        sample = vectors if sample is None else np.concatenate([sample, vectors])
        smallest = np.argsort(drawn)[:rows]
        drawn, sample = drawn[smallest], sample[smallest]
    return np.ascontiguousarray(sample if sample is not None else np.zeros((0, 0)), np.float32)

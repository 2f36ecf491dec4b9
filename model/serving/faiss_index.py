"""Builds, stores and searches the Faiss index of a release: unit vectors of items by item index, inner product.

An index is exact (Flat), or approximate with one setting that trades time for recall: `nprobe` of IVF, `efSearch` of HNSW.
`model/serving/index_choice.py` chooses it.

Shapes: M items, n queries, d vector length, k items per query.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from model.io.urls import resolve

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
# Returns batches (item indices [b], vectors [b, d]) from the first one on, at each call.
Batches = Callable[[], Iterable[tuple[Ints, Floats]]]
NO_ITEM = -1  # Item index of a position that no item fills.
FLAT = "Flat"
ROWS_PER_CELL = 64  # Training vectors per IVF cell; Faiss warns below 39.
ROUNDS = 10  # Iterations of k-means.
CODEBOOK = 256  # Centroids of an 8-bit product quantiser. Each needs as many training vectors as a cell.


class IndexFactoryError(ValueError):
    """A factory string that cannot build an index of these items."""


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


def cells_of(factory: str) -> int:
    """Number of cells: n of IVFn."""
    return int(factory.removeprefix("IVF").partition(",")[0])


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


def search_exhaustively(index: Any, vectors: Floats, k: int) -> tuple[Floats, Ints]:
    """Like `search`, but an approximate index searches all of its vectors."""
    inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexHNSW):  # A graph need not reach every vector, however long it is searched.
        scores, places = faiss.downcast_index(inner.storage).search(np.ascontiguousarray(vectors), k)
        items: Ints = faiss.vector_to_array(index.id_map)
        return scores, np.where(places < 0, NO_ITEM, items[places])
    return _search(index, vectors, k, None, _exhaustive(index))


def scores_of_items(index: Any, vectors: Floats, items: Ints) -> Floats:
    """[n] inner product of each vector [n, d] with the vector that the index has for the item beside it.

    NaN for an item that the index does not have. Reads the vectors of the index, not its graph or cells.
    """
    inner = faiss.downcast_index(index.index)
    stored = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner
    everything: Any = _exhaustive(index) if stored is inner else None
    parameters: Any = everything or faiss.SearchParameters()
    id_map, scores = faiss.vector_to_array(index.id_map), np.full(len(items), np.nan, np.float32)
    for row, item in enumerate(items):
        places = np.flatnonzero(id_map == item)
        if len(places):
            parameters.sel = faiss.IDSelectorBatch(places)
            query = np.ascontiguousarray(vectors[row : row + 1], np.float32)
            scores[row] = stored.search(query, 1, params=parameters)[0][0, 0]
    return scores


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
        # Faiss shares a search between threads by query: one query would only wait for the others to start and to end.
        with _threads(1 if len(rows) == 1 else None):
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
    with _threads(1):
        index.train(sample_sd)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let Faiss use this many OpenMP threads, in the calling thread only; None: as many as before."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


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

"""The Faiss index of a release: item vectors by item index, searched by inner product (vectors are of unit length)."""

from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from model.files import resolve

Ints = npt.NDArray[np.int64]
NOTHING = -1


def build_index(batches: Iterable[tuple[Ints, npt.NDArray[np.float32]]], dim: int) -> faiss.Index:
    """An exact index from batches of (item indices [n], vectors [n, dim]); one batch is in memory at a time."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
    for item_index, vectors in batches:
        index.add_with_ids(np.ascontiguousarray(vectors, np.float32), item_index.astype(np.int64))
    return index


def save_index(index: faiss.Index, path: Path) -> None:
    """To a local file."""
    faiss.write_index(index, str(path))


def load_index(url: str) -> faiss.Index:
    """From a file anywhere that Arrow reads."""
    filesystem, path = resolve(url)
    with filesystem.open_input_stream(path) as stream:
        return faiss.deserialize_index(np.frombuffer(stream.read(), dtype=np.uint8))


def search(
    index: faiss.Index, vectors: npt.NDArray[np.float32], k: int, excluded: list[Ints] | None = None
) -> tuple[npt.NDArray[np.float32], Ints]:
    """Scores [n, k] and item indices [n, k] of the nearest items, best first, without those that each row excludes.

    Places that cannot be filled hold NOTHING. Asks for as many more as the row excludes, so the answer is exact for an
    exact index.
    """
    scores = np.full((len(vectors), k), -np.inf, np.float32)
    items = np.full((len(vectors), k), NOTHING, np.int64)
    counts = np.array([len(row) for row in excluded]) if excluded is not None else np.zeros(len(vectors), np.int64)
    # Rows that exclude about as much are searched together: one heavy user does not make everybody's search deep.
    depth = k + np.where(counts > 0, 2 ** np.ceil(np.log2(np.maximum(counts, 16))), 0).astype(np.int64)
    for asked in np.unique(depth):
        rows = np.flatnonzero(depth == asked)
        found_scores, found = index.search(np.ascontiguousarray(vectors[rows]), int(min(asked, index.ntotal)))
        for row, row_scores, row_items in zip(rows, found_scores, found):
            keep = row_items >= 0
            if excluded is not None and counts[row]:
                keep &= ~np.isin(row_items, excluded[row])
            row_items, row_scores = row_items[keep][:k], row_scores[keep][:k]
            items[row, : len(row_items)], scores[row, : len(row_items)] = row_items, row_scores
    return scores, items

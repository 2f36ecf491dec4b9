"""Vectors of a few items of a night, read in batches, and their nearest neighbours by cosine."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.common.runner import Context
from jobs.release.item_embeddings import vector_batches
from model.serving.index_choice import exact_search
from model.training.checkpoint import read_description

Floats = npt.NDArray[np.float32]


def vectors_of(context: Context, items: Collection[int]) -> dict[int, Floats]:
    """The vectors of these items in `item_embeddings` of ds, as served. Items that are not live have none."""
    wanted, found = np.array(sorted(items), np.int64), dict[int, Floats]()
    for index, vectors in vector_batches(context):
        rows = np.flatnonzero(np.isin(index, wanted))
        found |= {int(index[row]): np.asarray(vectors[row], np.float32) for row in rows}
    return found


def towers_dim(context: Context) -> int:
    """How many components of the vectors of ds are those of the towers."""
    return int(read_description(context.warehouse.path("models", context.ds))["model"]["dim"])


def unit_vectors(vectors: dict[int, Floats], dim: int) -> dict[int, Floats]:
    """The first `dim` components of the vectors, those of the towers, with length 1."""
    return {item: unit(vector[None], dim)[0] for item, vector in vectors.items()}


def unit(vectors_nd: Any, dim: int) -> Floats:
    """[n, dim] the components of the towers, with length 1, without those of the item-item part and the prior."""
    vectors = np.asarray(vectors_nd[:, :dim], np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest_items(context: Context, items: list[int], neighbours: int) -> dict[int, list[tuple[int, float]]]:
    """For each of these items that is live, its nearest other items with their cosine, nearest first."""

    dim = towers_dim(context)

    def batches() -> Iterator[tuple[Any, Floats]]:
        for index, vectors in vector_batches(context):
            yield index, unit(vectors, dim)

    own = unit_vectors(vectors_of(context, items), dim)
    present = [item for item in items if item in own]
    if not present:
        return {}
    size = context.warehouse.require("item_embeddings", context.ds, "").rows
    ranked, _ = exact_search(batches(), np.stack([own[item] for item in present]), min(neighbours + 1, size))
    others = {
        item: [near for near in row if near not in (item, -1)][:neighbours]
        for item, row in zip(present, ranked.tolist())
    }
    known = unit_vectors(vectors_of(context, {near for row in others.values() for near in row}), dim)
    return {item: [(near, round(float(own[item] @ known[near]), 4)) for near in row] for item, row in others.items()}

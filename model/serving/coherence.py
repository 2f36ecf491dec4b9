"""Whether the parts of a release belong together, whatever its checksums say: index, items, model, vocabularies.

A checksum that was computed anew after a part was replaced matches, and the answers are wrong. What the parts themselves
show: their items, the length and metric of their vectors, and whether the index has the vectors of the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq

from model.io.urls import resolve
from model.network.two_tower import TwoTower
from model.serving.embed import batch_columns, embed_items
from model.serving.faiss_index import load_index, search, search_everywhere
from model.serving.item_ids import ItemIds
from model.serving.release import INDEX, ITEMS, MODEL, VOCABULARIES, Release
from model.serving.vocabulary import Vocabulary
from model.training.checkpoint import load_checkpoint
from pipelines.contract.schema import FeatureSchema

PROBES = 16  # items whose vectors are computed anew
# Of the inner product of a vector with itself, 1; indices that round their vectors lose more.
EXACT, ROUNDED = 1e-4, 0.1


def check_parts(release: Release, model: TwoTower, index: faiss.Index, ids: ItemIds) -> None:
    """Raises ReleaseError naming the parts that do not belong together. `ids`: of the release's items."""
    if fault := _fault_of_kind(model, index):
        raise release.error(f"{INDEX} and {MODEL}", fault)
    if fault := _fault_of_ids(model, index, ids):
        raise release.error(f"{INDEX} and {ITEMS}", fault)
    if fault := _fault_of_vectors(model, index, release.files(ITEMS)):
        raise release.error(f"{INDEX}, {ITEMS} and {MODEL}", fault)


def read_ids(release: Release) -> ItemIds:
    """The item ids of a release. Raises ReleaseError where an item is there twice."""
    try:
        return ItemIds.read(release.files(ITEMS))
    except ValueError as error:
        raise release.error(ITEMS, str(error)) from None


def check_release(release: Release) -> None:
    """`check_parts` of a release that is not in memory yet."""
    release.files(MODEL)
    model, index = load_checkpoint(f"{release.uri}/{MODEL}"), load_index(release.files(INDEX)[0])
    check_parts(release, model, index, read_ids(release))


def check_vocabularies(release: Release, schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]) -> None:
    """Raises ReleaseError for a vocabulary with an index that the model does not have."""
    features = [*schema.user, schema.item_id, *([schema.history] if schema.history else [])]
    for feature in features:
        name, size = str(getattr(feature, "vocabulary", "")), getattr(feature, "size", 0)
        if name in vocabularies and vocabularies[name].largest >= size:
            fault = f"{name} has indices up to {vocabularies[name].largest}, the model has {size}"
            raise release.error(f"{VOCABULARIES} and {MODEL}", fault)


def _fault_of_kind(model: TwoTower, index: faiss.Index) -> str | None:
    if not isinstance(index, faiss.IndexIDMap):
        return "the index does not say which item a vector is of"
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return "the index does not compare by inner product"
    if index.d != model.config.dim:
        return f"the index has vectors of length {index.d}, the model of {model.config.dim}"
    return None


def _fault_of_ids(model: TwoTower, index: Any, ids: ItemIds) -> str | None:
    found = faiss.vector_to_array(index.id_map)
    unknown = found[~ids.contains(found)]
    if len(unknown):
        return f"{len(unknown):,} of {len(found):,} vectors are of items without a row, for instance item_index {unknown[0]}"
    if len(found) != len(ids) or len(np.unique(found)) != len(ids):
        return (
            f"the index has {len(found):,} vectors of {len(np.unique(found)):,} items, and there are {len(ids):,} items"
        )
    if len(found) and int(found.max()) >= model.schema.item_id.size:
        return f"item_index goes up to {int(found.max())}, the model has {model.schema.item_id.size} indices"
    return None


def _fault_of_vectors(model: TwoTower, index: faiss.Index, urls: Sequence[str]) -> str | None:
    """Compute the vectors of some items and search for them: each must be there, or another one that is equal to it."""
    vectors = _some_vectors(model, urls)
    if not len(vectors):
        return None
    missing = vectors[_differs(index, search(index, vectors, 1)[0])]
    # An approximate index may overlook a vector that it has: only then look through all of it.
    wrong = int(_differs(index, search_everywhere(index, missing, 1)[0]).sum()) if len(missing) else 0
    if wrong:
        return f"the index does not have the vectors that the model gives to {wrong} of {len(vectors)} items"
    return None


def _differs(index: faiss.Index, scores_n1: np.ndarray) -> np.ndarray:
    """Whether the best inner product of each vector is not that of the vector with itself, [n] bool."""
    return np.abs(scores_n1[:, 0] - 1) > _tolerance(index)


def _some_vectors(model: TwoTower, urls: Sequence[str]) -> np.ndarray:
    """[n, d] of the first items of each file, PROBES at most in all."""
    parts = []
    for url in urls:
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            batch = next(pq.ParquetFile(file).iter_batches(PROBES, columns=model.schema.item_columns), None)
        if batch is not None and batch.num_rows:
            few = batch.slice(0, max(1, PROBES // len(urls)))
            parts.append(embed_items(model, batch_columns(few, model.schema.item_columns)))
        if sum(map(len, parts)) >= PROBES:
            break
    return np.concatenate(parts) if parts else np.zeros((0, model.config.dim), np.float32)


def _tolerance(index: Any) -> float:
    inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexIVFPQ):
        return float("inf")  # A product quantiser keeps too little of a vector to tell it from another.
    return ROUNDED if isinstance(inner, faiss.IndexIVFScalarQuantizer) else EXACT

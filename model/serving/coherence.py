"""Checks that the parts of a release belong together: index, items, model and vocabularies.

Checksums do not show this: if a part was replaced and its checksum recomputed, they match and the answers are wrong. The
checks compare the content of the parts: their items, the length and metric of their vectors, and some vectors of the index
with those that the model computes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import torch

from model.io.urls import read_columns, resolve
from model.network.two_tower import TwoTower
from model.serving.embed import batch_columns, embed_items
from model.serving.faiss_index import load_index, scores_of_items, search_exhaustively
from model.serving.item_ids import ItemIds
from model.serving.release import INDEX, ITEMS, MODEL, PRIOR, VOCABULARIES, Release
from model.serving.vocabulary import Vocabulary
from model.training.checkpoint import load_checkpoint
from pipelines.contract.schema import FeatureSchema

PROBES = 16  # Items whose vectors are recomputed.
# Tolerances on the inner product of a unit vector with itself, which is 1. Indices that round vectors need a larger one.
EXACT, ROUNDED = 1e-4, 0.1


def check_parts(release: Release, model: TwoTower, index: faiss.Index, ids: ItemIds) -> None:
    """Check that model, index and items belong together. `ids`: item ids of the release.

    Raises ReleaseError that names the parts that do not.
    """
    if fault := _fault_of_kind(model, index):
        raise release.error(f"{INDEX} and {MODEL}", fault)
    if fault := _fault_of_ids(model, index, ids):
        raise release.error(f"{INDEX} and {ITEMS}", fault)
    if fault := _fault_of_vectors(model, index, release.files(ITEMS)):
        raise release.error(f"{INDEX}, {ITEMS} and {MODEL}", fault)
    if fault := _fault_of_item_item(model, index, release.files(ITEMS)):
        raise release.error(f"{INDEX}, {ITEMS} and {MODEL}", fault)
    if fault := _fault_of_prior(model, index, release.manifest.get(PRIOR)):
        raise release.error(f"{INDEX}, {MODEL} and {PRIOR} in manifest.json", fault)


def read_ids(release: Release) -> ItemIds:
    """Read the item ids of a release, with the type that they have in the items table.

    Raises ReleaseError if two rows have the same item_index, or if an id that must be an integer is not.
    """
    try:
        return ItemIds.read(release.files(ITEMS), integers=release.has_integer_ids)
    except ValueError as error:
        raise release.error(ITEMS, str(error)) from None


def check_release(release: Release) -> None:
    """Load a release and run `check_parts` on it."""
    release.files(MODEL)
    model, index = load_checkpoint(f"{release.uri}/{MODEL}"), load_index(release.files(INDEX)[0])
    check_parts(release, model, index, read_ids(release))


def check_vocabularies(release: Release, schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]) -> None:
    """Raises ReleaseError if a vocabulary has an index beyond the size of the model's table."""
    features: list[Any] = [*schema.of_user_tower, schema.item_id]
    features += schema.history.indexed if schema.history else []
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
    if index.d != model.dim:
        return f"the index has vectors of length {index.d}, the model of {model.dim}"
    return None


def _fault_of_ids(model: TwoTower, index: Any, ids: ItemIds) -> str | None:
    items = faiss.vector_to_array(index.id_map)
    unknown = items[~ids.contains(items)]
    if len(unknown):
        return f"{len(unknown):,} of {len(items):,} vectors are of items without a row, for instance item_index {unknown[0]}"
    if len(items) != len(ids) or len(np.unique(items)) != len(ids):
        return f"the index has {len(items):,} vectors of {len(np.unique(items)):,} items, the release has {len(ids):,} items"
    if len(items) and int(items.max()) >= model.schema.item_id.size:
        return f"item_index goes up to {int(items.max())}, the model has {model.schema.item_id.size} indices"
    return None


def _fault_of_vectors(model: TwoTower, index: faiss.Index, urls: Sequence[str]) -> str | None:
    """Compare what the towers give for some items with the index."""
    items, vectors = _some_vectors(model, urls)
    vectors[:, model.config.dim :] = 0  # Only the towers' part, which has length 1.
    differences = np.abs(scores_of_items(index, vectors, items) - 1)
    if wrong := int((~(differences <= _tolerance(index))).sum()):
        return f"the index does not have the vectors that the model gives to {wrong} of {len(vectors)} items"
    return None


def _fault_of_item_item(model: TwoTower, index: faiss.Index, urls: Sequence[str]) -> str | None:
    """Compare the components of the item-item part of some items, those with the longest, with the index."""
    if model.item_item is None:
        return None
    rows = torch.from_numpy(read_columns(urls, ["item_index"])["item_index"].astype(np.int64))
    rows = rows[model.item_item.place_V[rows] > 0]  # All others have zeros.
    if not len(rows):
        return None
    part_Nr = model.item_item.items(rows)
    lengths_n, longest_n = part_Nr.norm(dim=1).topk(min(PROBES, len(rows)))
    probes = np.zeros((len(longest_n), index.d), np.float32)
    of_part = probes[:, model.config.dim :][:, : model.item_item.rank]
    of_part[:] = torch.nn.functional.normalize(part_Nr[longest_n]).numpy()
    differences = np.abs(scores_of_items(index, probes, rows[longest_n].numpy()) - lengths_n.numpy())
    # Relative to the longest, because the weight of the part may be small beside the towers. The median, because an index
    # that rounds cuts off a component that is larger than those of its training sample.
    if lengths_n[0] > 0 and not np.median(differences) <= _tolerance(index) * float(lengths_n[0]):
        return "the index does not have the item-item part that the model gives to its items"
    return None


def _fault_of_prior(model: TwoTower, index: Any, prior: Mapping[str, Any] | None) -> str | None:
    """Compare the recency prior of the model and of the index with that of the manifest."""
    scale = prior["scale"] if prior else None
    if model.prior_scale != scale:
        return f"user vectors have the component {model.prior_scale} for the recency prior, the manifest says {scale}"
    if prior is None or not index.ntotal:
        return None
    only_prior = np.zeros((1, index.d), np.float32)
    only_prior[0, -1] = scale
    largest = float(search_exhaustively(index, only_prior, 1)[0][0, 0])
    if abs(largest - prior["largest"]) > _tolerance(index):
        return f"the largest bonus of an item is {largest:.4f} in the index, {prior['largest']:.4f} in the manifest"
    return None


def _some_vectors(model: TwoTower, urls: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(item indices [n], vectors [n, d]) of the first items of each file, at most PROBES in total."""
    columns = sorted({"item_index", *model.schema.item_columns})
    items, vectors = [np.zeros(0, np.int64)], [np.zeros((0, model.dim), np.float32)]
    for url in urls:
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            batch = next(pq.ParquetFile(file).iter_batches(PROBES, columns=columns), None)
        if batch is not None and batch.num_rows:
            few = batch.slice(0, max(1, PROBES // len(urls)))
            items.append(few.column("item_index").to_numpy())
            vectors.append(embed_items(model, batch_columns(few, model.schema.item_columns)))
        if sum(map(len, items)) >= PROBES:
            break
    return np.concatenate(items), np.concatenate(vectors)


def _tolerance(index: Any) -> float:
    inner = faiss.downcast_index(index.index)
    if isinstance(inner, faiss.IndexIVFPQ):
        return float("inf")  # Product quantisation is too coarse to compare single vectors.
    return ROUNDED if isinstance(inner, faiss.IndexIVFScalarQuantizer) else EXACT

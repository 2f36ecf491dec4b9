"""Releases that were changed after publication, or whose parts do not belong together, are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.config import ModelConfig
from model.network.item_item import ItemItemTables
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items
from model.serving.faiss_index import build_index, load_index, save_index
from model.serving.release import ReleaseError, digest_of, open_release
from model.serving.retriever import Retriever
from model.training.checkpoint import ITEM_ITEM, load_checkpoint, write_item_item
from tests.model import toy_night
from tests.model.serving.toy_release import item_item_tables, update_checksums


@pytest.mark.parametrize(
    "name",
    [
        "index.faiss",
        "model/model.safetensors",
        "model/model.json",
        "items/part-0.parquet",
        "vocabularies/part-0.parquet",
    ],
)
@pytest.mark.parametrize("release", ["pooled"], indirect=True)
def test_a_changed_or_missing_file_is_refused(release: Path, name: str) -> None:
    Retriever(str(release))
    raw = bytearray((release / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (release / name).write_bytes(raw)
    remedy = r"jobs\.publish_items --ds 2024-03-01 --force.*jobs\.releases rollback"
    with pytest.raises(
        ReleaseError, match=rf"release 2024-03-01-toy, file {name}: is not what was published.*{remedy}"
    ):
        Retriever(str(release))
    assert list(open_release(str(release)).faults()) == [name]
    (release / name).unlink()
    with pytest.raises(ReleaseError, match=rf"release 2024-03-01-toy, file {name}: is missing"):
        Retriever(str(release))


def replace_index(folder: Path, **options: Any) -> None:
    """Replace the index by one of another model; options: another dim, metric or factory, items shifted by some indices."""
    schema, rows = toy_night.schema(), toy_night.item_rows()
    torch.manual_seed(4)
    vectors = embed_items(TwoTower(schema, ModelConfig(dim=options.get("dim", 8), hidden=[16])).eval(), rows)
    kind = options.get("kind", "IDMap,Flat")
    index = faiss.index_factory(vectors.shape[1], kind, options.get("metric", faiss.METRIC_INNER_PRODUCT))
    items = rows["item_index"].astype(np.int64) + options.get("shift", 0)
    if kind.startswith("IDMap"):
        index.add_with_ids(vectors, items)
    else:
        index.add(vectors)
    save_index(index, folder / "index.faiss")


def turn_items(folder: Path) -> None:
    """Give the vector of each item to the next one."""
    index: Any = load_index(str(folder / "index.faiss"))
    items, inner = faiss.vector_to_array(index.id_map), faiss.downcast_index(index.index)
    vectors = inner.reconstruct_n(0, inner.ntotal)
    save_index(build_index(lambda: [(np.roll(items, 1), vectors)], index.d), folder / "index.faiss")


def take_items(folder: Path, take: list[int]) -> None:
    """Keep these rows of the items table."""
    path = folder / "items" / "part-0.parquet"
    pq.write_table(pq.read_table(path).take(take), path)


ALL = list(range(toy_night.ITEMS - 1))
INCOHERENT: dict[str, tuple[Callable[[Path], None], str]] = {
    "index of another night": (replace_index, "the index does not have the vectors that the model gives to 16 of 16"),
    "index of another metric": (
        lambda f: replace_index(f, metric=faiss.METRIC_L2),
        "does not compare by inner product",
    ),
    "index of another length": (lambda f: replace_index(f, dim=16), "vectors of length 16, the model of 8"),
    "vectors of other items": (
        turn_items,
        "the index does not have the vectors that the model gives to 16 of 16",
    ),
    "index of other items": (
        lambda f: replace_index(f, shift=1),
        "1 of 39 vectors are of items without a row.* item_index 41",
    ),
    "index without item indices": (lambda f: replace_index(f, kind="Flat"), "does not say which item a vector is of"),
    "a missing item row": (
        lambda f: take_items(f, ALL[:-1]),
        "1 of 39 vectors are of items without a row.* item_index 40",
    ),
    "a duplicate item row": (lambda f: take_items(f, [*ALL, 3]), "of 40 rows some have the same item_index"),
}


@pytest.mark.parametrize("release", ["plain"], indirect=True)
@pytest.mark.parametrize("case", INCOHERENT)
def test_parts_that_do_not_belong_together_are_refused_even_with_matching_checksums(release: Path, case: str) -> None:
    change, message = INCOHERENT[case]
    change(release)
    update_checksums(release)
    with pytest.raises(
        ReleaseError, match=rf"release 2024-03-01-toy, .*{message}.*jobs\.publish_items --ds 2024-03-01 --force"
    ):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["plain"], indirect=True)
def test_a_vocabulary_of_a_later_night_is_refused(release: Path) -> None:
    path = release / "vocabularies" / "part-0.parquet"
    table = pq.read_table(path)
    later = pa.table({"feature": ["user.age"], "value": ["a6"], "index": pa.array([6], pa.int32())})
    pq.write_table(pa.concat_tables([table, later]), path)
    update_checksums(release)
    with pytest.raises(ReleaseError, match=r"vocabularies and model: user.age has indices up to 6, the model has 6"):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["plain"], indirect=True)
def test_a_changed_manifest_is_refused(release: Path) -> None:
    """The manifest has a digest of itself, so that new checksums cannot hide a changed file."""
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["digest"] = digest_of(manifest)
    (release / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    Retriever(str(release))
    (release / "manifest.json").write_text(json.dumps(manifest | {"ds": "2024-03-02"}))
    with pytest.raises(
        ReleaseError, match=r"release 2024-03-01-toy, manifest.json: was changed after it was published"
    ):
        Retriever(str(release))
    assert list(open_release(str(release)).faults()) == ["manifest.json"]


def other_fit(tables: ItemItemTables) -> ItemItemTables:
    return item_item_tables(seed=4)


def other_items(tables: ItemItemTables) -> ItemItemTables:
    """The same rows, for other items: the largest scores are the same."""
    place_V = tables.place_V
    return tables._replace(place_V=torch.where(place_V > 0, place_V.max() + 1 - place_V, 0))


def set_weight(folder: Path, weight: float) -> TwoTower:
    """Set the weight of the item-item part in the description of the model. Returns the model."""
    path = folder / "model" / "model.json"
    description = json.loads(path.read_text())
    description["model"]["item_item"]["weight"] = weight
    path.write_text(json.dumps(description))
    return load_checkpoint(str(folder / "model"))


@pytest.mark.parametrize("factory", ["Flat", "IVF2,Flat", "IVF2,SQ8", "HNSW8"])
@pytest.mark.parametrize("weight", [0.01, 0.5])
@pytest.mark.parametrize("change", [other_fit, other_items])
@pytest.mark.parametrize("release", ["item_item"], indirect=True)
def test_an_item_item_part_of_another_night_is_refused(
    release: Path, factory: str, weight: float, change: Callable[[ItemItemTables], ItemItemTables]
) -> None:
    """However little it adds to the score, and however the index rounds."""
    model, rows = set_weight(release, weight), toy_night.item_rows()
    vectors = embed_items(model, rows)
    save_index(
        build_index(lambda: [(rows["item_index"].astype(np.int64), vectors)], model.dim, factory),
        release / "index.faiss",
    )
    update_checksums(release)
    Retriever(str(release))
    write_item_item(str(release / "model"), change(item_item_tables(seed=3)))
    update_checksums(release)
    with pytest.raises(ReleaseError, match="the index does not have the item-item part that the model gives to its"):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["item_item"], indirect=True)
def test_another_weight_than_that_of_the_index_is_refused(release: Path) -> None:
    set_weight(release, 0.6)
    update_checksums(release)
    with pytest.raises(ReleaseError, match="the index does not have the item-item part that the model gives to its"):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["item_item"], indirect=True)
def test_a_release_that_lost_its_item_item_part_is_refused(release: Path) -> None:
    (release / "model" / ITEM_ITEM).unlink()
    with pytest.raises(ReleaseError, match=f"file model/{ITEM_ITEM}: is missing"):
        Retriever(str(release))
    manifest = json.loads((release / "manifest.json").read_text())
    del manifest["files"][f"model/{ITEM_ITEM}"]
    (release / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match="the index has vectors of length 12, the model of 8"):
        Retriever(str(release))

"""Items that nobody has had as a positive yet: found by their content, not condemned by having been negatives."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.data.catalogue import Catalogue
from model.io.arrow import ColumnError
from model.serving.embed import embed_items, embed_users
from model.training.checkpoint import load_checkpoint
from model.training.spec import TrainingSpec
from model.training.trainer import train
from pipelines.contract.indices import DEFAULT
from tests.model import toy_night

# The last block of the toy is its items of index 5, 9, …; its last but one is published, and never was a positive.
UNSEEN = 37
ROWS = {"column": "item_row", "size": toy_night.ITEMS + 2, "hashed": False}


def spec_of(folder: Path, own_rows: bool) -> TrainingSpec:
    """Blocks are a category here; item UNSEEN enters the batches as a negative alone."""
    item = [
        dict(toy_night.SCHEMA["item"][0], rows=ROWS) if own_rows else toy_night.SCHEMA["item"][0],
        toy_night.SCHEMA["item"][1],
    ]
    training = {"learning_rate": 5e-3, "embedding_learning_rate": 2e-2}
    spec = toy_night.make_spec(
        folder, [400] * 3, features=toy_night.schema(item=item), loss={"temperature": 0.2}, training=training, epochs=4,
        model={"id_dropout": 0.3, "hidden": []},
    )  # fmt: skip
    rows = toy_night.item_rows()
    index = rows["item_index"]
    rows |= {"item_category": ((index - 2) % toy_night.BLOCKS + 2).astype(np.int32)}
    rows |= {"item_row": np.where(index == UNSEEN, DEFAULT, index).astype(np.int32)}
    pq.write_table(toy_night.table(rows), spec.item_features[0].removeprefix("file://"))
    for file in spec.train:
        path = file.url.removeprefix("file://")
        table = pq.read_table(path)
        items = table.column("item_index").to_numpy()
        twin = np.where(items == UNSEEN, UNSEEN - toy_night.BLOCKS, items).astype(np.int32)
        pq.write_table(table.set_column(table.schema.get_field_index("item_index"), "item_index", [twin]), path)
    return spec


def places(spec: TrainingSpec) -> float:
    """Mean rank of UNSEEN, 0 the best, for users of its block."""
    model, rows = load_checkpoint(spec.output), toy_night.sample_rows(400, seed=9)
    items = toy_night.item_rows() | {name: pq.read_table(spec.item_features[0].removeprefix("file://")).column(name).to_numpy()
                               for name in ("item_category", "item_row")}  # fmt: skip
    vectors = embed_items(model, items)
    catalogue = Catalogue(model.schema, items)
    fans = (rows["user_index"] - 2) % toy_night.BLOCKS == (UNSEEN - 2) % toy_night.BLOCKS
    scores = embed_users(model, {name: values[fans] for name, values in rows.items()}, catalogue) @ vectors.T
    place = int(np.flatnonzero(items["item_index"] == UNSEEN)[0])
    return float((scores > scores[:, [place]]).sum(1).mean())


def test_an_unseen_item_is_ranked_by_its_content(tmp_path: Path) -> None:
    """With a row of its own it falls behind every item of its block and many others; on the default row it is among them."""
    found = {}
    for own_rows in (False, True):
        spec = spec_of(tmp_path / str(own_rows), own_rows)
        train(spec)
        found[own_rows] = places(spec)
    block = toy_night.ITEMS // toy_night.BLOCKS
    assert found[True] < block, found
    assert found[False] > found[True] + 2, found


def test_a_first_positive_goes_on_from_the_default_row(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, own_rows=True)
    train(spec)
    table = load_checkpoint(spec.output).tables["item_id"].weight.detach().numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(table[UNSEEN], table[DEFAULT])
    assert np.abs(table[UNSEEN + 1] - table[DEFAULT]).max() > 1e-3


def test_a_row_beyond_the_table_is_refused(tmp_path: Path) -> None:
    schema = spec_of(tmp_path, own_rows=True).features
    rows = toy_night.item_rows() | {"item_row": toy_night.item_rows()["item_index"] + 10}
    with pytest.raises(ColumnError, match="'item_row' holds indices from 12 to"):
        Catalogue(schema, rows)

"""Items without positives are ranked by their content, although training samples them as negatives."""

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

# An item of the last block (indices 5, 9, …). It is in the catalogue but never a positive.
UNSEEN = 37
ROWS = {"column": "item_row", "size": toy_night.ITEMS + 2, "hashed": False}


def spec_of(folder: Path, default_row: bool) -> TrainingSpec:
    """A spec in which the category of an item is its block, and UNSEEN occurs only as a negative.

    `default_row`: UNSEEN uses the default row of the embedding table instead of its own row.
    """
    item = [
        dict(toy_night.SCHEMA["item"][0], rows=ROWS) if default_row else toy_night.SCHEMA["item"][0],
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


def mean_rank(spec: TrainingSpec) -> float:
    """Mean rank of UNSEEN for users of its block. 0 is best."""
    model, rows = load_checkpoint(spec.output), toy_night.sample_rows(400, seed=9)
    items = toy_night.item_rows() | {name: pq.read_table(spec.item_features[0].removeprefix("file://")).column(name).to_numpy()
                               for name in ("item_category", "item_row")}  # fmt: skip
    vectors = embed_items(model, items)
    catalogue = Catalogue(model.schema, items)
    of_block = (rows["user_index"] - 2) % toy_night.BLOCKS == (UNSEEN - 2) % toy_night.BLOCKS
    scores = embed_users(model, {name: values[of_block] for name, values in rows.items()}, catalogue) @ vectors.T
    place = int(np.flatnonzero(items["item_index"] == UNSEEN)[0])
    return float((scores > scores[:, [place]]).sum(1).mean())


@pytest.mark.trains
def test_an_unseen_item_ranks_among_its_block(tmp_path: Path) -> None:
    """With its own table row it ranks behind all items of its block and others; with the default row it ranks among them."""
    ranks = {}
    for default_row in (False, True):
        spec = spec_of(tmp_path / str(default_row), default_row)
        train(spec)
        ranks[default_row] = mean_rank(spec)
    block = toy_night.ITEMS // toy_night.BLOCKS
    assert ranks[True] < block, ranks
    assert ranks[False] > ranks[True] + 2, ranks


@pytest.mark.trains
def test_the_table_row_of_an_unseen_item_equals_the_default_row(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, default_row=True)
    train(spec)
    table = load_checkpoint(spec.output).tables["item_id"].weight.detach().numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(table[UNSEEN], table[DEFAULT])
    assert np.abs(table[UNSEEN + 1] - table[DEFAULT]).max() > 1e-3


def test_a_row_beyond_the_table_is_refused(tmp_path: Path) -> None:
    schema = spec_of(tmp_path, default_row=True).features
    rows = toy_night.item_rows() | {"item_row": toy_night.item_rows()["item_index"] + 10}
    with pytest.raises(ColumnError, match="'item_row' holds indices from 12 to"):
        Catalogue(schema, rows)

"""Hashed item ids: each item keeps its index; items of one bucket share a row of the embedding table."""

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.data.catalogue import Catalogue
from model.io.arrow import ColumnError
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from pipelines.contract.schema import FeatureSchema
from tests.model import toy_night

BUCKETS = 5
HASHED = {"column": "item_row", "size": BUCKETS + 2, "hashed": True}


def hashed_schema() -> FeatureSchema:
    """The schema of the toy night with hashed item ids and no other item features."""
    return toy_night.schema(item=[{**toy_night.SCHEMA["item"][0], "rows": HASHED}])


def item_rows() -> dict[str, np.ndarray]:
    index = toy_night.item_rows()["item_index"]
    return {"item_index": index, "item_row": (2 + index % BUCKETS).astype(np.int32)}


def model(**config: object) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(hashed_schema(), ModelConfig.model_validate({"dim": 8, "hidden": [16], **config})).eval()


def test_items_of_one_bucket_share_a_row_and_a_vector() -> None:
    towers = model()
    assert towers.tables["item_id"].weight.shape[0] == BUCKETS + 2  # type: ignore[union-attr, index]
    assert towers.schema.item_columns == ["item_index", "item_row"]
    vectors = embed_items(towers, item_rows())
    bucket = item_rows()["item_row"]
    for number in range(2, BUCKETS + 2):
        assert np.ptp(vectors[bucket == number], axis=0).max() < 1e-6
    assert len(np.unique(vectors.round(4), axis=0)) == BUCKETS
    gathered = towers.item_vectors(Catalogue(towers.schema, item_rows()).gather(torch.tensor([4, 9])))
    torch.testing.assert_close(gathered[0], gathered[1])


@pytest.mark.parametrize("share", [True, False])
def test_history_pooling_uses_buckets(share: bool) -> None:
    towers, catalogue, rows = (
        model(share_history=share),
        Catalogue(hashed_schema(), item_rows()),
        toy_night.sample_rows(6),
    )
    vectors = embed_users(towers, rows, catalogue)
    history = rows["history"]
    last = toy_night.ITEMS + 1  # An item that has left the catalogue: its bucket is the default one.
    moved = np.where((history > 1) & (history + BUCKETS < last), history + BUCKETS, history)
    assert (moved != history).any()
    np.testing.assert_allclose(embed_users(towers, {**rows, "history": moved}, catalogue), vectors, atol=1e-6)
    other = np.where((history > 1) & (history + 1 < last), history + 1, history)
    assert np.abs(embed_users(towers, {**rows, "history": other}, catalogue) - vectors).max() > 1e-3
    with pytest.raises(KeyError, match="history_item_row"):
        embed_users(towers, rows)


def test_padding_stays_padding_and_an_item_without_a_row_gets_the_default_bucket() -> None:
    catalogue = Catalogue(hashed_schema(), item_rows())
    columns = catalogue.history_columns(torch.tensor([[0, 2, toy_night.ITEMS + 1]]), [hashed_schema().item_id])
    assert columns["history_item_row"].tolist() == [[0, 2 + 2 % BUCKETS, 1]]
    with pytest.raises(ColumnError, match=r"'item_row' holds indices from 2 to 9, the schema has 7"):
        Catalogue(hashed_schema(), item_rows() | {"item_row": 2 + np.arange(toy_night.ITEMS - 1) % 8})

"""Features of kind vector: a projection with dropout in training, whose input is not changed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.data.catalogue import Catalogue
from model.io.tensor_file import TensorFile
from model.network.embeddings import Projection
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from model.training.checkpoint import PARAMETERS, WarmStartError, load_checkpoint, save_checkpoint, warm_start
from model.training.spec import TrainingResult
from pipelines.contract.schema import FeatureSchema, VectorFeature
from tests.model import toy_night

CONFIG = ModelConfig(dim=16, hidden=[8], small_embedding_dim=6)


def model_of(schema: FeatureSchema, seed: int = 1) -> TwoTower:
    torch.manual_seed(seed)
    return TwoTower(schema, CONFIG)


def test_the_projection_has_the_width_of_the_feature_or_of_small_embeddings() -> None:
    towers = model_of(toy_night.vector_schema())
    lengths = {field.name: field.length for field in (*towers.user_fields(), *towers.item_fields())}
    assert (lengths["taste"], lengths["look"]) == (5, 6)
    items = toy_night.item_rows() | {"item_look": toy_night.vectors("item", toy_night.ITEMS - 1)}
    inputs = towers.item_inputs(Catalogue(toy_night.vector_schema(), items).gather(torch.tensor([2, 3])))
    assert [values.shape[1] for values in inputs] == [field.length for field in towers.item_fields()]


def test_dropout_changes_the_projection_in_training_only() -> None:
    feature = VectorFeature(kind="vector", name="x", column="x", length=3, width=1000, dropout=0.5)
    projection, vectors = Projection(feature, CONFIG), torch.ones(4, 3)
    dropped = (projection(vectors) == 0).float().mean()
    assert 0.4 < dropped < 0.6
    projection.eval()
    assert torch.equal(projection(vectors), projection.linear(vectors))


def test_the_vector_of_a_user_and_of_an_item_changes_their_own_vectors_only() -> None:
    schema = toy_night.vector_schema()
    model = model_of(schema).eval()
    users = toy_night.sample_rows(7) | {"user_taste": toy_night.vectors("user", 7)}
    items = toy_night.item_rows() | {"item_look": toy_night.vectors("item", toy_night.ITEMS - 1)}
    for embed, rows, column in ((embed_users, users, "user_taste"), (embed_items, items, "item_look")):
        before = embed(model, rows)
        changed = {**rows, column: np.where(np.arange(len(rows[column]))[:, None] == 2, 5.0, rows[column])}
        differs = np.abs(embed(model, changed) - before).max(1) > 1e-4
        assert differs.tolist() == [place == 2 for place in range(len(differs))]


def test_huge_numbers_of_a_vector_give_finite_vectors() -> None:
    model = model_of(toy_night.vector_schema()).eval()
    users = toy_night.sample_rows(3) | {"user_taste": np.full((3, 3), 1e19, np.float32)}
    assert np.isfinite(embed_users(model, users)).all()


def test_a_checkpoint_keeps_the_projection_and_refuses_another_length(tmp_path: Path) -> None:
    folder, schema = str(tmp_path / "model"), toy_night.vector_schema()
    model = model_of(schema)
    save_checkpoint(folder, model, {}, TrainingResult.model_construct())
    users = toy_night.sample_rows(5) | {"user_taste": toy_night.vectors("user", 5)}
    np.testing.assert_array_equal(embed_users(load_checkpoint(folder), users), embed_users(model.eval(), users))
    with TensorFile(f"{folder}/{PARAMETERS}") as file:
        assert file.shape("projections.user_taste.linear.weight") == (5, 3)
    warm_start(model_of(schema, 2), folder)
    longer = toy_night.VECTORS["user"] | {"length": 9}
    other = toy_night.schema(user=[*toy_night.SCHEMA["user"], longer], item=schema.model_dump()["item"])
    with pytest.raises(WarmStartError, match="user feature taste had length 3, width 5, has length 9, width 5"):
        warm_start(model_of(other), folder)


def test_a_model_without_vectors_is_the_same_as_before() -> None:
    """No draw of the generator, no parameter: seeds of earlier models give the same models."""
    model = model_of(toy_night.schema())
    names = [name for name, _ in model.named_parameters()]
    assert not any("projection" in name for name in names)

"""Features of the request: read by the user tower only, replaced by their defaults in some rows of training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.data.petastorm_reader import sample_columns
from model.network.embeddings import drop_context
from model.network.two_tower import TwoTower
from model.serving.embed import embed_users
from model.serving.export import export_towers
from model.training.checkpoint import WarmStartError, save_checkpoint, warm_start
from model.training.spec import TrainingResult
from pipelines.contract.schema import FeatureSchema
from tests.model import toy_night

CONFIG = ModelConfig(dim=16, hidden=[8])
SCHEMA = toy_night.schema(context=toy_night.CONTEXT)
DEFAULTS = {"device": 1, "words": 0, "words_weights": 0, "load": 7, "query": 0, "hour": 1}


def model_of(schema: FeatureSchema, config: ModelConfig = CONFIG) -> TwoTower:
    torch.manual_seed(1)
    return TwoTower(schema, config)


def test_all_context_of_a_row_becomes_default_together() -> None:
    batch = {name: torch.from_numpy(values) for name, values in toy_night.context_rows(2000).items()}
    dropped = drop_context(SCHEMA.context, batch, 0.25)
    changed_B = torch.stack([(dropped[n] != batch[n]).reshape(2000, -1).any(1) for n in batch])
    assert (changed_B == changed_B[0]).all()
    assert 0.2 < changed_B[0].float().mean() < 0.3
    for name, default in DEFAULTS.items():
        assert (dropped[f"context_{name}"][changed_B[0]] == default).all()


def test_training_reads_defaults_in_some_rows_and_serving_in_none() -> None:
    model = model_of(SCHEMA, ModelConfig(dim=16, hidden=[8], id_dropout=0, context_dropout=0.5))
    rows = toy_night.sample_rows(400) | toy_night.context_rows(400)
    batch = {name: torch.from_numpy(rows[name]) for name in SCHEMA.user_columns}
    batch = {name: values.long() if values.dtype == torch.int32 else values for name, values in batch.items()}
    hour = [feature.name for feature in SCHEMA.of_user_tower].index("hour")
    default = model.tables["context_hour"].weight[1]
    assert 120 < (model.user_inputs(batch)[hour] == default).all(1).sum() < 280
    model.eval()
    assert not (model.user_inputs(batch)[hour] == default).all(1).any()


def test_the_context_changes_the_vector_of_the_user() -> None:
    model = model_of(SCHEMA).eval()
    rows = toy_night.sample_rows(6) | toy_night.context_rows(6)
    before = embed_users(model, rows)
    for name in ("device", "words", "load", "query", "hour"):
        column = f"context_{name}"
        after = embed_users(model, {**rows, column: np.roll(rows[column] + 0, 1, axis=0)})
        assert np.abs(after - before).max() > 1e-4, name
    assert {"context_device", "context_words_weights"} <= set(sample_columns(SCHEMA))


def test_a_model_may_leave_context_out() -> None:
    schema = SCHEMA.without(["device", "query", "load"])
    assert [feature.name for feature in schema.context] == ["words", "hour"]
    model = model_of(schema).eval()
    assert embed_users(model, toy_night.sample_rows(3) | toy_night.context_rows(3)).shape == (3, 16)
    with pytest.raises(ValueError, match="no feature wind can be left out, only age, category, device"):
        SCHEMA.without(["wind"])


def test_an_exported_user_tower_has_inputs_for_the_context(tmp_path: Path) -> None:
    signature = export_towers(model_of(SCHEMA).eval(), tmp_path)
    inputs = signature["user"]["inputs"]
    assert inputs["context_hour"] == {"dtype": "int64", "shape": ["rows"], "below": 26}
    assert inputs["context_query"] == {"dtype": "float32", "shape": ["rows", 3]}
    assert inputs["context_words_weights"] == {"dtype": "float32", "shape": ["rows", 2]}
    assert not any(name.startswith("context") for name in signature["item"]["inputs"])


def test_a_checkpoint_without_the_context_is_refused_by_name(tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    save_checkpoint(folder, model_of(toy_night.schema()), {}, TrainingResult.model_construct())
    warm_start(model_of(toy_night.schema(), ModelConfig(dim=16, hidden=[8], context_dropout=0.4)), folder)
    with pytest.raises(WarmStartError, match="context feature device was added"):
        warm_start(model_of(SCHEMA), folder)

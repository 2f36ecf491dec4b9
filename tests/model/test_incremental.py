"""An update within the day: what it learns, what it leaves alone, and what travels to those who serve."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import PARAMETERS, load_checkpoint, read_description
from model.data import SharedSamples
from model.launch import launch
from model.spec import TrainingSpec
from model.tensor_file import TensorFile
from model.training import train
from tests.model import toy


def parameters_of(checkpoint: str) -> dict[str, torch.Tensor]:
    with TensorFile(f"{checkpoint}/{PARAMETERS}") as file:
        return {name: file.read(name) for name in file.names}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> TrainingSpec:
    spec = toy.make_spec(
        tmp_path_factory.mktemp("night"),
        [100, 100],
        model={"tower": "senet", "history_pooling": "attention"},
        loss={"learned_temperature": True, "frequencies": "streaming"},
    )
    train(spec)
    return spec


def update_of(night: TrainingSpec, folder: Path, **changes: object) -> TrainingSpec:
    files = toy.write_samples(folder / "today", [40, 40], seed=3)
    new = {
        "train": files,
        "valid": [],
        "warm_start": night.output,
        "output": str(folder / "update"),
        "incremental": True,
    }
    return night.model_copy(update=new | changes)


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
def test_only_rows_that_were_met_change(night: TrainingSpec, tmp_path: Path, optimizer: str) -> None:
    """Everything that is no table of ids stays, bit for bit."""
    training = night.training.model_copy(update={"optimizer": optimizer})
    spec = update_of(night, tmp_path, training=training)
    train(spec)
    before, after = parameters_of(night.output), parameters_of(spec.output)
    assert before.keys() == after.keys()
    tables = {
        name for name in before if "tables.user_id" in name or "tables.item_id" in name or "tables.history" in name
    }
    assert len(tables) in (2, 3)
    for name in before.keys() - tables:
        assert torch.equal(before[name], after[name]), name
    users = next(name for name in tables if "user_id" in name)
    met = np.unique(toy.sample_rows(80, seed=3)["user_index"])
    changed = (before[users] != after[users]).any(1).nonzero().squeeze(1).numpy()
    assert set(changed) == set(met)
    told = [read_description(checkpoint)["result"]["temperature"] for checkpoint in (night.output, spec.output)]
    assert told[0] == told[1] != night.loss.temperature, "learned at night, kept by the update"


def test_it_learns_what_it_was_given(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path, epochs=4)
    epochs = train(spec).epochs
    assert epochs[-1].loss < epochs[0].loss


def test_rows_come_in_the_order_of_time(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path)
    columns = ["user_index", "item_index"]
    samples = SharedSamples(spec.train, columns, spec.training, spec.seed, 0, 1, 1, shuffle=False)
    with samples.epoch(0) as batches:
        found = torch.cat([batch["item_index"] for batch in batches]).numpy()
    np.testing.assert_array_equal(found, toy.sample_rows(80, seed=3)["item_index"])
    train(spec)
    backwards = update_of(night, tmp_path / "backwards")
    train(backwards.model_copy(update={"train": backwards.train[::-1]}))
    one, other = parameters_of(spec.output), parameters_of(backwards.output)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_an_item_of_today_begins_as_the_default_one(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path, features=toy.grown_items(2))
    train(spec)
    before, after = (
        load_checkpoint(night.output).tables["item_id"].weight,
        load_checkpoint(spec.output).tables["item_id"].weight,
    )
    assert len(after) == len(before) + 2
    assert torch.equal(after[-1], before[1])  # Nobody has met it yet.


def test_two_processes_update_tables_in_shares(night: TrainingSpec, tmp_path: Path) -> None:
    """Nothing that is not in shares is trained then: no gradient is left for the ranks to average."""
    training = night.training.model_copy(update={"processes": 2, "embedding_rows_sharded": 2})
    spec = update_of(night, tmp_path, training=training)
    launch(spec)
    before, after = parameters_of(night.output), parameters_of(spec.output)
    tables = {name for name in before if "tables.user_id" in name or "tables.item_id" in name}
    for name in before.keys() - tables:
        assert torch.equal(before[name], after[name]), name
    met = np.unique(toy.sample_rows(80, seed=3)["user_index"])
    users = next(name for name in tables if "user_id" in name)
    assert set((before[users] != after[users]).any(1).nonzero().squeeze(1).tolist()) == set(met.tolist())

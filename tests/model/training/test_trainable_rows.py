"""An update within the day: what it learns, what it leaves alone, and what travels to those who serve."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.data.petastorm_reader import SampleFile, SharedSampleReader
from model.io.tensor_file import TensorFile
from model.serving.embed import embed_items
from model.training.checkpoint import PARAMETERS, load_checkpoint, read_description
from model.training.launch import launch
from model.training.spec import TrainingSpec
from model.training.trainer import train
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema
from tests.model import toy_night


def parameters_of(checkpoint: str) -> dict[str, torch.Tensor]:
    with TensorFile(f"{checkpoint}/{PARAMETERS}") as file:
        return {name: file.read(name) for name in file.names}


UNSEEN = (
    toy_night.ITEMS
)  # The last item with a row of item_features: no event has it, and batches have it as a negative.


def schema_of(more: int = 0) -> FeatureSchema:
    """Items read the default row until their first positive."""
    described = toy_night.grown_items(more).model_dump()
    size = described["item"][0]["size"]
    described["item"][0]["rows"] = {"column": "item_row", "size": size, "hashed": False}
    return FeatureSchema.model_validate(described)


def write_item_rows(spec: TrainingSpec) -> None:
    rows = toy_night.item_rows()
    rows["item_row"] = np.where(rows["item_index"] == UNSEEN, DEFAULT, rows["item_index"]).astype(np.int32)
    pq.write_table(toy_night.table(rows), spec.item_features[0].removeprefix("file://"))


def without_unseen(files: list[SampleFile]) -> list[SampleFile]:
    """The files, with another item of its block wherever UNSEEN is a positive or in a history."""
    for file in files:
        path = file.url.removeprefix("file://")
        table = pq.read_table(path)
        for name in ("item_index", "history"):
            column = table.column(name).combine_chunks()
            values = column.flatten() if name == "history" else column
            values = pa.array(
                np.where(values.to_numpy() == UNSEEN, UNSEEN - toy_night.BLOCKS, values.to_numpy()), pa.int32()
            )
            column = pa.ListArray.from_arrays(column.offsets, values) if name == "history" else values
            table = table.set_column(table.schema.get_field_index(name), name, [column])
        pq.write_table(table, path)
    return files


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> TrainingSpec:
    spec = toy_night.make_spec(
        tmp_path_factory.mktemp("night"),
        [100, 100],
        model={"tower": "senet", "history_pooling": "attention"},
        loss={"learned_temperature": True, "frequencies": "streaming"},
        features=schema_of(),
    )
    write_item_rows(spec)
    without_unseen([*spec.train, *spec.valid])
    train(spec)
    return spec


def update_of(night: TrainingSpec, folder: Path, **changes: object) -> TrainingSpec:
    files = without_unseen(toy_night.write_samples(folder / "today", [40, 40], seed=3))
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
    for name in tables:
        assert torch.equal(before[name][: DEFAULT + 1], after[name][: DEFAULT + 1]), name
    for name in before.keys() - tables:
        assert torch.equal(before[name], after[name]), name
    users = next(name for name in tables if "user_id" in name)
    met = np.unique(toy_night.sample_rows(80, seed=3)["user_index"])
    changed = (before[users] != after[users]).any(1).nonzero().squeeze(1).numpy()
    assert set(changed) == set(met)
    told = [read_description(checkpoint)["result"]["temperature"] for checkpoint in (night.output, spec.output)]
    assert told[0] == told[1] != night.loss.temperature, "learned at night, kept by the update"


def test_unseen_items_stay_through_a_chain_of_updates(night: TrainingSpec, tmp_path: Path) -> None:
    """They read the default row, which an update meets in negatives only: their vectors do not move, the others' do."""
    rows = toy_night.item_rows()
    rows["item_row"] = np.where(rows["item_index"] == UNSEEN, DEFAULT, rows["item_index"]).astype(np.int32)
    place = int(np.flatnonzero(rows["item_index"] == UNSEEN)[0])
    before, spec = embed_items(load_checkpoint(night.output), rows), night
    for number in range(8):
        files = without_unseen(toy_night.write_samples(tmp_path / f"samples-{number}", [40], seed=number))
        output = str(tmp_path / f"update-{number}")
        spec = update_of(night, tmp_path, train=files, warm_start=spec.output, output=output)
        train(spec)
        after = embed_items(load_checkpoint(spec.output), rows)
        np.testing.assert_array_equal(after[place], before[place])
    assert (np.abs(np.delete(after - before, place, 0)).max(1) > 1e-3).all()
    tables = {name: (values, parameters_of(night.output)[name]) for name, values in parameters_of(spec.output).items()}
    for now, then in (pair for name, pair in tables.items() if name.startswith("tables.")):
        assert torch.equal(now[: DEFAULT + 1], then[: DEFAULT + 1])


def test_it_learns_what_it_was_given(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path, epochs=4)
    epochs = train(spec).epochs
    assert epochs[-1].loss < epochs[0].loss


def test_rows_come_in_the_order_of_time(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path)
    columns = ["user_index", "item_index"]
    samples = SharedSampleReader(spec.train, columns, spec.training, spec.seed, 0, 1, 1, shuffle=False)
    with samples.epoch(0) as batches:
        found = torch.cat([batch["item_index"] for batch in batches]).numpy()
    written = toy_night.sample_rows(80, seed=3)["item_index"]
    np.testing.assert_array_equal(found, np.where(written == UNSEEN, UNSEEN - toy_night.BLOCKS, written))
    train(spec)
    backwards = update_of(night, tmp_path / "backwards")
    train(backwards.model_copy(update={"train": backwards.train[::-1]}))
    one, other = parameters_of(spec.output), parameters_of(backwards.output)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_an_item_of_today_begins_as_the_default_one(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path, features=schema_of(2))
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
    for name in tables:
        assert torch.equal(before[name][: DEFAULT + 1], after[name][: DEFAULT + 1]), name
    met = np.unique(toy_night.sample_rows(80, seed=3)["user_index"])
    users = next(name for name in tables if "user_id" in name)
    assert set((before[users] != after[users]).any(1).nonzero().squeeze(1).tolist()) == set(met.tolist())

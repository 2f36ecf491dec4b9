"""An incremental update within the day: which rows it trains, and that everything else keeps its values."""

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


# The last item with a row in item_features. It occurs in no event, and in batches only as a negative.
UNSEEN = toy_night.ITEMS


def schema_of(more: int = 0) -> FeatureSchema:
    """A schema in which items read the default row until their first positive."""
    described = toy_night.schema_with_new_items(more).model_dump()
    size = described["item"][0]["size"]
    described["item"][0]["rows"] = {"column": "item_row", "size": size, "hashed": False}
    return FeatureSchema.model_validate(described)


def write_item_rows(spec: TrainingSpec) -> None:
    rows = toy_night.item_rows()
    rows["item_row"] = np.where(rows["item_index"] == UNSEEN, DEFAULT, rows["item_index"]).astype(np.int32)
    pq.write_table(toy_night.table(rows), spec.item_features[0].removeprefix("file://"))


def without_unseen(files: list[SampleFile]) -> list[SampleFile]:
    """Replace UNSEEN in positives and histories of the files by another item of its block."""
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
def test_only_rows_of_the_events_change(night: TrainingSpec, tmp_path: Path, optimizer: str) -> None:
    """All parameters except the tables of ids keep their values, bit for bit."""
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
    users_in_events = np.unique(toy_night.sample_rows(80, seed=3)["user_index"])
    changed = (before[users] != after[users]).any(1).nonzero().squeeze(1).numpy()
    assert set(changed) == set(users_in_events)
    temperatures = [read_description(checkpoint)["result"]["temperature"] for checkpoint in (night.output, spec.output)]
    assert temperatures[0] == temperatures[1] != night.loss.temperature, "learned at night, not changed by the update"


def test_an_update_of_a_sequence_tower_changes_only_the_tables_of_ids(night: TrainingSpec, tmp_path: Path) -> None:
    model = night.model.model_copy(
        update={
            "tower": "sequence",
            "history_pooling": "mean",
            "settings": {"width": 16},
            "history_features": ["category"],
        }
    )
    first = night.model_copy(update={"model": model, "output": str(tmp_path / "first")})
    train(first)
    spec = update_of(first, tmp_path)
    train(spec)
    before, after = parameters_of(first.output), parameters_of(spec.output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"tables.user_id.weight", "tables.item_id.weight"}
    assert any(name.startswith("encoder.") for name in before)


def test_vectors_of_unseen_items_do_not_change_in_a_chain_of_updates(night: TrainingSpec, tmp_path: Path) -> None:
    """They read the default row, which an update sees only in negatives. The vectors of other items do change."""
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


def test_an_update_learns_from_its_events(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path, epochs=4)
    epochs = train(spec).epochs
    assert epochs[-1].loss < epochs[0].loss


def test_rows_are_read_in_the_order_of_the_files(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path)
    columns = ["user_index", "item_index"]
    samples = SharedSampleReader(spec.train, columns, spec.training, spec.seed, 0, 1, 1, shuffle=False)
    with samples.epoch(0) as batches:
        items = torch.cat([batch["item_index"] for batch in batches]).numpy()
    written = toy_night.sample_rows(80, seed=3)["item_index"]
    np.testing.assert_array_equal(items, np.where(written == UNSEEN, UNSEEN - toy_night.BLOCKS, written))
    train(spec)
    backwards = update_of(night, tmp_path / "backwards")
    train(backwards.model_copy(update={"train": backwards.train[::-1]}))
    one, other = parameters_of(spec.output), parameters_of(backwards.output)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_new_item_starts_from_the_default_row(night: TrainingSpec, tmp_path: Path) -> None:
    spec = update_of(night, tmp_path, features=schema_of(2))
    train(spec)
    before, after = (
        load_checkpoint(night.output).tables["item_id"].weight,
        load_checkpoint(spec.output).tables["item_id"].weight,
    )
    assert len(after) == len(before) + 2
    assert torch.equal(after[-1], before[1])  # It has no events yet.


def test_two_processes_update_sharded_tables(night: TrainingSpec, tmp_path: Path) -> None:
    """Only sharded tables are trained then, so the ranks have no gradients to average."""
    training = night.training.model_copy(update={"processes": 2, "embedding_rows_sharded": 2})
    spec = update_of(night, tmp_path, training=training)
    launch(spec)
    before, after = parameters_of(night.output), parameters_of(spec.output)
    tables = {name for name in before if "tables.user_id" in name or "tables.item_id" in name}
    for name in before.keys() - tables:
        assert torch.equal(before[name], after[name]), name
    for name in tables:
        assert torch.equal(before[name][: DEFAULT + 1], after[name][: DEFAULT + 1]), name
    users_in_events = np.unique(toy_night.sample_rows(80, seed=3)["user_index"])
    users = next(name for name in tables if "user_id" in name)
    assert set((before[users] != after[users]).any(1).nonzero().squeeze(1).tolist()) == set(users_in_events.tolist())

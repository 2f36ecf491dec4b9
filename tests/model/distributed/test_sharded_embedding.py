"""Sharded tables train like replicated ones and write the same checkpoints."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.distributed import sharded_embedding
from model.training.build import build_step
from model.training.checkpoint import load_checkpoint, read_description, read_state
from model.training.launch import ROOT
from model.training.spec import TrainingSpec
from model.training.trainer import train
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema
from tests.model import toy_night

PROCESSES = 3
UNSEEN = 37  # An item without its own table row: it uses the default row.


def specs_of(folder: Path) -> dict[str, TrainingSpec]:
    """The specs to train: both optimisers, two lookups of one table, and a rank without rows in some steps."""
    item = [
        {**toy_night.SCHEMA["item"][0], "rows": {"column": "item_row", "size": toy_night.ITEMS + 2, "hashed": False}}
    ]
    base = toy_night.make_spec(
        folder, [2, 45, 45], features=toy_night.schema(item=item + toy_night.SCHEMA["item"][1:]), epochs=1,
        model={"id_dropout": 0.2, "history_features": ["category"]},
        loss={"learned_temperature": True, "self_supervision": {"mask": "complementary", "items": 24}},
        training={"batch_size": 18, "embedding_rows_sparse": 20, "timeout_seconds": 60, "checkpoint_steps": 3},
    )  # fmt: skip
    index = toy_night.item_rows()["item_index"]
    rows = toy_night.item_rows() | {"item_row": np.where(index == UNSEEN, DEFAULT, index).astype(np.int32)}
    pq.write_table(toy_night.table(rows), base.item_features[0].removeprefix("file://"))
    clipped = {"optimizer": "adagrad", "gradient_clip": 0.1, "embedding_weight_decay": 1.0}
    separate_history = base.model.model_copy(update={"share_history": False})
    specs = {
        "adamw": base,
        "clipped": base.model_copy(
            update={"training": base.training.model_copy(update=clipped), "model": separate_history}
        ),
        "sequence": base.model_copy(
            update={"model": base.model.model_copy(update={"tower": "sequence", "settings": {"width": 16, "dropout": 0.0}})}
        ),
        "warm": base.model_copy(update={"warm_start": str(folder / "before"), "features": grown(base, 5)}),
    }  # fmt: skip
    train(base.model_copy(update={"output": str(folder / "before")}))  # In one process.
    return specs


def grown(spec: TrainingSpec, more: int) -> FeatureSchema:
    described = spec.features.model_dump()
    ids = described["item"][0]
    ids["size"] += more
    ids["rows"]["size"] += more
    described["history"]["size"] += more
    return spec.features.model_validate(described)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainingSpec, TrainingSpec]]:
    """(replicated, sharded) of each spec. One group of processes trains all of them, after a check of single lookups."""
    folder = tmp_path_factory.mktemp("sharding")
    pairs, files = {}, []
    for name, spec in specs_of(folder).items():
        variants = []
        for rows in (None, 20):
            output = str(folder / f"{name}-{rows}")
            training = spec.training.model_copy(update={"embedding_rows_sharded": rows, "processes": PROCESSES})
            changes = {"training": training, "output": output, "resume": f"{output}-progress"}
            variants.append(spec.model_copy(update=changes))
            files.append(Path(f"{output}.json"))
            files[-1].write_text(variants[-1].model_dump_json())
        pairs[name] = (variants[0], variants[1])
    files.append(folder / "again.json")
    again = pairs["adamw"][1].model_copy(update={"output": f"{pairs['adamw'][1].output}-again"})
    files[-1].write_text(again.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "-m", "tests.model.distributed.sharding_process", *map(str, files)],
        check=True,
        env=environment,
        timeout=300,
    )
    return pairs


@pytest.mark.parametrize("name", ["adamw", "clipped", "sequence", "warm"])
@pytest.mark.slow
def test_sharded_tables_train_like_replicated_tables(
    trained: dict[str, tuple[TrainingSpec, TrainingSpec]], name: str
) -> None:
    """Losses, norms, parameters and optimiser state agree up to the order of sums: tolerance 1e-5."""
    results, states = [], []
    for spec in trained[name]:
        results.append(read_description(spec.output)["result"])
        states.append(load_checkpoint(spec.output).state_dict())
    replicated, sharded = results
    assert sharded["parameters"] == replicated["parameters"]
    for figure in ("loss", "self_loss", "gradient_norm", "embedding_norm"):
        expected = [point[figure] for point in replicated["metrics"]]
        assert [point[figure] for point in sharded["metrics"]] == pytest.approx(expected, rel=1e-5)
    for a, b in zip(replicated["epochs"], sharded["epochs"], strict=True):
        assert b["valid_loss"] == pytest.approx(a["valid_loss"], rel=1e-5)
    if name == "clipped":
        assert min(point["gradient_norm"] for point in sharded["metrics"]) > 0.1, "every step is scaled down"
    states = [states[0] | read_state(trained[name][0].output), states[1] | read_state(trained[name][1].output)]
    assert states[0].keys() == states[1].keys()
    for key, expected in states[0].items():
        torch.testing.assert_close(states[1][key], expected, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
def test_a_checkpoint_contains_whole_tables(trained: dict[str, tuple[TrainingSpec, TrainingSpec]]) -> None:
    """One process can read it. The padding row is zero, and an item without its own row equals the default row."""
    spec = trained["warm"][1]
    table = load_checkpoint(spec.output).tables["item_id"].weight
    assert table.shape == (toy_night.ITEMS + 2 + 5, spec.model.embedding_dim)
    assert (table[0] == 0).all()
    assert torch.equal(table[UNSEEN], table[DEFAULT])
    again = build_step(spec.model_copy(update={"warm_start": spec.output})).towers.tables["item_id"]
    assert torch.equal(again.weight, table)


@pytest.mark.slow
def test_new_rows_start_as_the_default_row(trained: dict[str, tuple[TrainingSpec, TrainingSpec]]) -> None:
    """No sample contains the new items, so training does not change their rows. It changes the other rows."""
    spec = trained["warm"][1]
    before = load_checkpoint(str(spec.warm_start)).tables["item_id"].weight
    after = load_checkpoint(spec.output).tables["item_id"].weight
    assert (after[len(before) :] == before[DEFAULT]).all()
    assert not torch.equal(after[: len(before)], before)
    moments = read_state(spec.output)["optimizer.towers.tables.item_id.weight/exp_avg_sq"]
    assert (moments[DEFAULT] != 0).any()
    assert (moments[len(before) :] == 0).all(), "a new row has no moments of the default row"


@pytest.mark.slow
def test_a_sharded_run_resumes_from_its_progress_checkpoint(
    trained: dict[str, tuple[TrainingSpec, TrainingSpec]],
) -> None:
    """A second run resumes from the last checkpoint of the first and ends with the same state, up to the order of sums."""
    spec = trained["adamw"][1]
    assert [path.name for path in Path(str(spec.resume)).iterdir()] == ["step=6"]
    assert read_description(spec.output)["result"]["steps"] == 8
    for read in (read_state, lambda folder: load_checkpoint(folder).state_dict()):
        one, other = read(spec.output), read(f"{spec.output}-again")
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5, msg=name)


def test_one_process_does_not_shard(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50], training={"embedding_rows_sharded": 1})
    assert not sharded_embedding.sharded_tables(build_step(spec))

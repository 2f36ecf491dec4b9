"""Weight decay of item ids: only rows with a gradient shrink, in all kinds of tables, and rare items most."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from model.data.popularity import read_log_popularity
from model.distributed.replicated_embedding import ReplicatedEmbedding, exchange_gradients
from model.distributed.sharded_embedding import ShardedEmbedding, fill
from model.training.build import build_step
from model.training.row_decay import ItemDecay, shrink_rows
from model.training.trainer import TrainingLoop
from tests.model import toy_night

ROWS, DIM = 9, 4


def table_of(kind: str) -> nn.Module:
    values = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    values[0] = 0
    if kind == "sharded":
        sharded = ShardedEmbedding(ROWS, DIM)
        fill(sharded.share, [values])
        return sharded
    cls = ReplicatedEmbedding if kind.startswith("replicated") else nn.Embedding
    return cls.from_pretrained(values, freeze=False, padding_idx=0, sparse=kind.endswith("sparse"))


@pytest.mark.parametrize("kind", ["dense", "sparse", "replicated dense", "replicated sparse", "sharded"])
def test_only_rows_with_a_gradient_decay(kind: str) -> None:
    """Row 3 is in the batch twice and decays once. Row 5 is in the batch with a gradient of 0."""
    torch.sparse.check_sparse_tensor_invariants.disable()  # The default, but torch warns unless it is set.
    table = table_of(kind)
    values: Any = table.share if isinstance(table, ShardedEmbedding) else table.weight
    before = values.detach().clone()
    vectors = table(torch.tensor([0, 3, 7, 3, 5]))
    (vectors * torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0])[:, None]).sum().backward()
    if isinstance(table, ReplicatedEmbedding):
        exchange_gradients([table])
    shrink_rows(table, torch.arange(ROWS) / 2, 0.25)
    factors = torch.ones(ROWS, 1)
    factors[[3, 7], 0] = torch.tensor([1 - 3 / 8, 1 - 7 / 8])
    torch.testing.assert_close(values.detach(), before * factors, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
@pytest.mark.parametrize("sparse_rows", [20, 1000])
def test_a_step_decays_rows_of_items_at_their_rate(tmp_path: Path, optimizer: str, sparse_rows: int) -> None:
    """The first step with decay differs from the one without by rate x decay x value / (1 + n), in the rows of its items.

    The linear schedule has 3 steps, so the second step has two thirds of the rate. Other tables do not decay.
    """
    moved = {}
    for decay in (0.0, 0.5):
        training = {
            "optimizer": optimizer, "embedding_rows_sparse": sparse_rows, "embedding_weight_decay": decay,
            "embedding_learning_rate": 0.02, "schedule": "linear", "batch_size": 8,
        }  # fmt: skip
        spec = toy_night.make_spec(tmp_path, [24], training=training)
        loop = TrainingLoop(build_step(spec), spec)
        loop.recorder.step = 1
        samples = loop.samples(1)
        before = {name: value.detach().clone() for name, value in loop.step.named_parameters()}
        with samples.epoch(0) as batches:
            batch = next(batches)
        loop._step(batch, samples.capacity, 0.0)
        moved[decay] = {name: value.detach() for name, value in loop.step.named_parameters()}
    items = "towers.tables.item_id.weight"
    trained = (moved[0.0][items] != before[items]).any(1)
    assert 3 < trained.sum() < len(trained)
    n = read_log_popularity(spec.features, spec.item_stats).exp()[:, None]
    expected = 0.02 * 2 / 3 * 0.5 * before[items] / (1 + n)
    difference = moved[0.0][items] - moved[0.5][items]
    torch.testing.assert_close(difference[trained], expected[trained], rtol=1e-3, atol=1e-6)
    for name in before:
        if name != items:
            assert moved[0.0][name].equal(moved[0.5][name]), name
    assert moved[0.5][items][~trained].equal(before[items][~trained])


def test_rows_of_rare_items_decay_more_and_shared_rows_add_their_items_up(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [24], training={"embedding_weight_decay": 1.0})
    step = build_step(spec)
    n = read_log_popularity(spec.features, spec.item_stats).exp()
    weights = ItemDecay(step, spec).weight_T
    assert weights[n.argmin()] == weights.max()
    assert weights[n.argmax()] == weights.min()
    torch.testing.assert_close(weights, 1 / (1 + n))
    plain = spec.model_copy(update={"loss": spec.loss.model_copy(update={"lift": False})})
    step = build_step(plain)
    torch.testing.assert_close(ItemDecay(step, plain).weight_T, weights)
    without = ItemDecay(step, plain.model_copy(update={"item_stats": []})).weight_T
    assert set(without.tolist()) == {0.5}


def test_a_decay_of_more_than_the_whole_row_empties_it() -> None:
    table = nn.Embedding(ROWS, DIM)
    table(torch.tensor([4])).sum().backward()
    shrink_rows(table, torch.full((ROWS,), 3.0), 0.5)
    assert (table.weight[4] == 0).all()
    assert (table.weight[5] != 0).all()


def test_items_that_share_a_row_of_hashed_ids_add_up(tmp_path: Path) -> None:
    ids = {**toy_night.SCHEMA["item"][0], "rows": {"column": "item_row", "size": 6, "hashed": True}}
    spec = toy_night.make_spec(tmp_path, [24], features=toy_night.schema(item=[ids, *toy_night.SCHEMA["item"][1:]]))
    index = toy_night.item_rows()["item_index"]
    rows = toy_night.item_rows() | {"item_row": (2 + index % 4).astype(np.int32)}
    pq.write_table(toy_night.table(rows), spec.item_features[0].removeprefix("file://"))
    n = read_log_popularity(spec.features, spec.item_stats).exp()
    weights = ItemDecay(build_step(spec), spec).weight_T
    assert len(weights) == 6
    for row in range(4):
        of_row = torch.tensor(index[index % 4 == row])
        torch.testing.assert_close(weights[2 + row], 1 / (1 + n[of_row].sum()))

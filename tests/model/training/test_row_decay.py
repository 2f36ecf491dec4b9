"""Weight decay of id tables: only rows with a gradient shrink, in all kinds of tables."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.distributed.replicated_embedding import ReplicatedEmbedding, exchange_gradients
from model.distributed.sharded_embedding import ShardedEmbedding, fill
from model.training.build import build_step
from model.training.row_decay import decay_rows
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
    decay_rows([table], 0.25)
    factors = torch.ones(ROWS, 1)
    factors[[3, 7]] = 0.75
    torch.testing.assert_close(values.detach(), before * factors, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
@pytest.mark.parametrize("sparse_rows", [20, 1000])
def test_a_step_decays_id_tables_at_their_rate(tmp_path: Path, optimizer: str, sparse_rows: int) -> None:
    """The first step with decay differs from the one without by rate x decay x value, in the rows of the batch.

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
    users = "towers.tables.user_id.weight"
    rows = batch["user_index"].unique()
    rows = rows[(moved[0.0][users] != before[users]).any(1)[rows]]
    assert len(rows) > 3
    expected = 0.02 * 2 / 3 * 0.5 * before[users]
    torch.testing.assert_close(moved[0.0][users][rows] - moved[0.5][users][rows], expected[rows], rtol=1e-3, atol=1e-6)
    for name in before:
        if "user_id" not in name and "item_id" not in name:
            assert moved[0.0][name].equal(moved[0.5][name]), name
    others = torch.ones(len(before[users]), dtype=torch.bool)
    others[batch["user_index"].unique()] = False
    others[1] = False  # Id dropout trains the default row.
    assert moved[0.5][users][others].equal(before[users][others])

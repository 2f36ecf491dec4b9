"""Weight decay of item ids: only rows with a gradient shrink, in all kinds of tables, and rare items most."""

from pathlib import Path
from typing import Any

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
    share_T = torch.arange(ROWS) / 32
    shrink_rows(table, share_T)
    factors = torch.ones(ROWS, 1)
    factors[[3, 7], 0] -= share_T[[3, 7]]
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
    without = ItemDecay(step, spec.model_copy(update={"item_stats": []})).weight_T
    assert set(without.tolist()) == {0.5}

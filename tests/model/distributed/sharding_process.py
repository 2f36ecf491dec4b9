"""Trains with sharded and with replicated embedding tables, under torchrun.

python -m tests.model.distributed.sharding_process SPEC.json ...
"""

import os
import sys
from pathlib import Path

import pyarrow  # noqa: F401
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.distributed import sharded_embedding
from model.distributed.collectives import gather_ragged, rank, sum_over_ranks, world_size
from model.distributed.replicated_embedding import ReplicatedEmbedding, exchange_gradients
from model.distributed.sharded_embedding import ShardedEmbedding, fill, pieces_of, sharded_tables, whole_rows
from model.training.spec import TrainingSpec
from model.training.trainer import build_step, train


def main(*spec_files: str) -> None:
    dist.init_process_group("gloo")
    sharded_embedding.PIECE = 7  # So that the toy's tables are of several pieces, the last one short.
    for rows in (2, 7, 10, 23):
        lookups_and_gradients_are_those_of_an_embedding(rows)
    for file in spec_files:
        spec = TrainingSpec.model_validate_json(Path(file).read_text())
        shared = [table.num_embeddings for table in sharded_tables(build_step(spec)).values()]
        assert bool(shared) == bool(spec.training.embedding_rows_sharded), f"{file}: {shared}"
        assert all(rows >= 20 for rows in shared)
        train(spec)
    dist.destroy_process_group()


def lookups_and_gradients_are_those_of_an_embedding(rows: int) -> None:
    values = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))
    values[0] = 0
    plain = nn.Embedding.from_pretrained(values.clone(), freeze=False, padding_idx=0)
    sharded = ShardedEmbedding(rows, 3)
    fill(sharded.share, (values[part] for part in pieces_of(rows)))
    whole_ones = [
        ReplicatedEmbedding.from_pretrained(values.clone(), freeze=False, padding_idx=0, sparse=sparse)
        for sparse in (False, True)
    ]
    pieces = list(whole_rows(sharded.share, rows))
    if rank() == 0:
        torch.testing.assert_close(torch.cat(pieces), values, rtol=0, atol=0)

    rng = torch.Generator().manual_seed(rank())
    one_row = torch.full((4, 2), rows - 1)
    many = torch.randint(rows, (5, 3), generator=rng)
    for batch in (many, one_row, many[:0] if rank() == 0 else many, many[:0], torch.zeros(3, dtype=torch.int64)):
        lookup_twice(plain, sharded, whole_ones, batch, rng)


def lookup_twice(
    plain: nn.Embedding,
    sharded: ShardedEmbedding,
    whole_ones: list[ReplicatedEmbedding],
    batch: Tensor,
    rng: torch.Generator,
) -> None:
    """Gradients are of these two lookups alone, whatever came before."""
    for parameter in (plain.weight, sharded.share, *(table.weight for table in whole_ones)):
        parameter.grad = None
    for indices in (batch, batch.flip(0)):
        weights = torch.randn(*batch.shape, 3, generator=rng)
        expected, found = plain(indices), sharded(indices)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        (expected * weights).sum().backward()
        (found * weights * world_size()).sum().backward()
        for table in whole_ones:
            found = table(indices)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            (found * weights * world_size()).sum().backward()
    exchange_gradients(whole_ones)
    assert plain.weight.grad is not None
    assert sharded.share.grad is not None
    expected = sum_over_ranks(plain.weight.grad)
    torch.testing.assert_close(sharded.share.grad.to_dense(), expected[rank() :: world_size()], rtol=1e-5, atol=1e-6)
    for table in whole_ones:
        if table.weight.grad is None:
            assert not expected.any(), "no rank has met a row"
            continue
        gradient = table.weight.grad.to_dense()
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
        everyone = gather_ragged(gradient.reshape(-1), [gradient.numel()] * world_size())
        assert all(torch.equal(everyone[0], of_rank) for of_rank in everyone), "ranks would drift apart"


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # As model.launch does, and for its reason.

"""What several processes do with sharded tables: `python -m tests.model.shares SPEC.json ...`, under torchrun."""

import os
import sys
from pathlib import Path

import pyarrow  # noqa: F401
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model import sharding
from model.collectives import rank, sum_over_ranks, world_size
from model.sharding import ShardedEmbedding, fill, pieces_of, sharded_tables, whole
from model.spec import TrainingSpec
from model.training import build_step, train


def main(*spec_files: str) -> None:
    dist.init_process_group("gloo")
    sharding.PIECE = 7  # So that the toy's tables are of several pieces, the last one short.
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
    pieces = list(whole(sharded.share, rows))
    if rank() == 0:
        torch.testing.assert_close(torch.cat(pieces), values, rtol=0, atol=0)

    draw = torch.Generator().manual_seed(rank())
    one_row = torch.full((4, 2), rows - 1)
    many = torch.randint(rows, (5, 3), generator=draw)
    for batch in (many, one_row, many[:0] if rank() == 0 else many, many[:0], torch.zeros(3, dtype=torch.int64)):
        lookup_twice(plain, sharded, batch, draw)


def lookup_twice(plain: nn.Embedding, sharded: ShardedEmbedding, batch: Tensor, draw: torch.Generator) -> None:
    plain.weight.grad = sharded.share.grad = None
    for indices in (batch, batch.flip(0)):
        weights = torch.randn(*batch.shape, 3, generator=draw)
        expected, found = plain(indices), sharded(indices)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        (expected * weights).sum().backward()
        (found * weights * world_size()).sum().backward()
    assert plain.weight.grad is not None
    assert sharded.share.grad is not None
    expected = sum_over_ranks(plain.weight.grad)[rank() :: world_size()]
    torch.testing.assert_close(sharded.share.grad.to_dense(), expected, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # As model.launch does, and for its reason.

"""Compares lookups of sharded and replicated tables with nn.Embedding, then trains the given specs. Run by torchrun:

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
from model.training.build import build_step
from model.training.spec import TrainingSpec
from model.training.trainer import train


def main(*spec_files: str) -> None:
    dist.init_process_group("gloo")
    sharded_embedding.PIECE = 7  # Small pieces: the tables have several, and the last one is shorter.
    for rows in (2, 7, 10, 23):
        check_lookups_and_gradients(rows)
    for file in spec_files:
        spec = TrainingSpec.model_validate_json(Path(file).read_text())
        rows_of_tables = [table.num_embeddings for table in sharded_tables(build_step(spec)).values()]
        assert bool(rows_of_tables) == bool(spec.training.embedding_rows_sharded), f"{file}: {rows_of_tables}"
        assert all(rows >= 20 for rows in rows_of_tables)
        train(spec)
    dist.destroy_process_group()


def check_lookups_and_gradients(rows: int) -> None:
    values = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))
    values[0] = 0
    plain = nn.Embedding.from_pretrained(values.clone(), freeze=False, padding_idx=0)
    sharded = ShardedEmbedding(rows, 3)
    fill(sharded.share, (values[part] for part in pieces_of(rows)))
    replicated = [
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
        check_two_lookups(plain, sharded, replicated, batch, rng)


def check_two_lookups(
    plain: nn.Embedding,
    sharded: ShardedEmbedding,
    replicated: list[ReplicatedEmbedding],
    batch: Tensor,
    rng: torch.Generator,
) -> None:
    """Gradients are the sums over these two lookups. Earlier lookups do not count."""
    for parameter in (plain.weight, sharded.share, *(table.weight for table in replicated)):
        parameter.grad = None
    for indices in (batch, batch.flip(0)):
        weights = torch.randn(*batch.shape, 3, generator=rng)
        expected, actual = plain(indices), sharded(indices)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        (expected * weights).sum().backward()
        (actual * weights * world_size()).sum().backward()
        for table in replicated:
            actual = table(indices)
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
            (actual * weights * world_size()).sum().backward()
    exchange_gradients(replicated)
    assert plain.weight.grad is not None
    assert sharded.share.grad is not None
    expected = sum_over_ranks(plain.weight.grad)
    torch.testing.assert_close(sharded.share.grad.to_dense(), expected[rank() :: world_size()], rtol=1e-5, atol=1e-6)
    for table in replicated:
        if table.weight.grad is None:
            assert not expected.any(), "no rank has looked up a row"
            continue
        gradient = table.weight.grad.to_dense()
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
        everyone = gather_ragged(gradient.reshape(-1), [gradient.numel()] * world_size())
        assert all(torch.equal(everyone[0], of_rank) for of_rank in everyone), (
            "gradients must be bitwise equal on all ranks"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # See model/training/launch.py for the reason.

"""Embedding tables too large for one process: each holds a share of the rows, and looks up the others' by message.

Rank r of R holds rows r, r + R, r + 2R, … Indices are given in the order of first sight, so the old, popular items have the
low ones: blocks of rows would leave most of the work to the first ranks, stripes share it out.

Shapes: N indices of a lookup, D distinct ones, S rows of a share, e embedding length.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.distributed.collectives import exchange, exchange_counts, rank, world_size
from model.io.tensor_file import StreamedTensor, TensorFile
from pipelines.contract.indices import DEFAULT, PADDING

PIECE = 2**20  # Rows of a whole table that are held at once while it is drawn, read or written.


class ShardedEmbedding(nn.Module):
    """An nn.Embedding with a padding row and sparse gradients, of which this rank holds its share.

    All ranks look up at the same time, if nothing at all; the same goes for the way back. `share` is no parameter of the
    module: DDP would spread one over all ranks, and state_dict would take it for the whole.
    """

    def __init__(self, rows: int, dim: int) -> None:
        """All zeros, to be filled."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, dim
        self.share = torch.zeros(rows_held(rows, rank()), dim).requires_grad_()

    def forward(self, indices: Tensor) -> Tensor:
        """[*shape, e] of indices of any shape; the gradient of a row is the mean over ranks of what theirs add up to."""
        distinct_D, places = torch.unique(indices, return_inverse=True)
        vectors_De: Tensor = _ShardedLookup.apply(self.share, distinct_D)
        return nn.functional.embedding(places, vectors_De)


class _ShardedLookup(torch.autograd.Function):
    """Rows of all shares. The gradient goes to the owners and is divided by their number, as DDP does with every other."""

    @staticmethod
    def forward(ctx: Any, share_Se: Tensor, distinct_D: Tensor) -> Tensor:
        owners_D = distinct_D % world_size()
        ctx.order_D = torch.argsort(owners_D, stable=True)
        ctx.request_counts = torch.bincount(owners_D, minlength=world_size()).tolist()
        ctx.served_counts = exchange_counts(ctx.request_counts)
        ctx.served_rows = exchange(distinct_D[ctx.order_D], ctx.request_counts, ctx.served_counts)
        ctx.shape = share_Se.shape
        vectors_De = share_Se.new_empty(len(distinct_D), share_Se.shape[1])
        vectors_De[ctx.order_D] = exchange(
            share_Se[ctx.served_rows // world_size()], ctx.served_counts, ctx.request_counts
        )
        return vectors_De

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        received = exchange(gradients[0][ctx.order_D], ctx.request_counts, ctx.served_counts) / world_size()
        real = ctx.served_rows != PADDING
        rows = ctx.served_rows[real] // world_size()
        return torch.sparse_coo_tensor(rows[None], received[real], ctx.shape), None


def sharded_tables(model: nn.Module) -> dict[str, ShardedEmbedding]:
    """Those of a model by what their parameter would be called if it were one; in the same order on every rank."""
    return {f"{name}.weight": table for name, table in model.named_modules() if isinstance(table, ShardedEmbedding)}


def shares_of(model: nn.Module) -> list[Tensor]:
    """What this rank holds of the sharded tables, to be trained beside the parameters."""
    return [table.share for table in sharded_tables(model).values()]


def parameter_count(model: nn.Module) -> int:
    """How many numbers a model has, the other ranks' shares included."""
    tables = sum(table.num_embeddings * table.embedding_dim for table in sharded_tables(model).values())
    return tables + sum(parameter.numel() for parameter in model.parameters())


def rows_held(rows: int, owner: int) -> int:
    """How many of a table's first `rows` rows a rank holds."""
    return (rows - owner + world_size() - 1) // world_size()


def local_rows(table: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What this rank holds of any table, and where in it those of some rows are that it holds."""
    if isinstance(table, ShardedEmbedding):
        return table.share, rows[rows % world_size() == rank()] // world_size()
    weight: Tensor = table.weight  # type: ignore[assignment]
    return weight, rows


def pieces_of(rows: int) -> Iterator[slice]:
    """A table's rows in pieces."""
    return (slice(start, min(rows, start + PIECE)) for start in range(0, rows, PIECE))


@torch.no_grad()
def fill(share_Se: Tensor, pieces: Iterable[Tensor]) -> None:
    """Keep this rank's rows of a whole that comes as consecutive rows, [any, e] each, from the first on."""
    start = 0
    for piece in pieces:
        stop = start + len(piece)
        share_Se[rows_held(start, rank()) : rows_held(stop, rank())] = piece[
            (rank() - start) % world_size() :: world_size()
        ]
        start = stop


@torch.no_grad()
def whole_rows(share_Se: Tensor, rows: int) -> Iterator[Tensor]:
    """On rank 0 the whole in the order of its rows, a piece at a time; on the others empty pieces.

    Every rank goes through all of it.
    """
    for part in pieces_of(rows):
        counts = [rows_held(part.stop, owner) - rows_held(part.start, owner) for owner in range(world_size())]
        mine = share_Se[rows_held(part.start, rank()) : rows_held(part.stop, rank())]
        to_first = [len(mine)] + [0] * (world_size() - 1)
        received = exchange(mine, to_first, counts if rank() == 0 else [0] * world_size())
        piece = torch.empty_like(received)
        if rank() == 0:
            for owner, rows_of_owner in enumerate(received.split(counts)):
                piece[(owner - part.start) % world_size() :: world_size()] = rows_of_owner
        yield piece


def whole_tensor(value: Tensor, table: ShardedEmbedding | None) -> Tensor | StreamedTensor:
    """What goes into a file for a tensor that every rank has, or, with its `table`, for one of the form of a share."""
    if table is None or not value.dim():
        return value.detach()
    rows = table.num_embeddings
    return StreamedTensor((rows, table.embedding_dim), whole_rows(value, rows))


def whole_state(model: nn.Module) -> dict[str, Tensor | StreamedTensor]:
    """The state_dict of the model without shares."""
    tables = {name: whole_tensor(table.share, table) for name, table in sharded_tables(model).items()}
    return {**model.state_dict(), **tables}


@torch.no_grad()
def read_into(
    target: Tensor, file: TensorFile, name: str, table: ShardedEmbedding | None, new_rows: Literal["default", "zero"]
) -> None:
    """Copy a tensor of a file into `target`, which is a share of it where its `table` is given.

    `new_rows`: the content of rows that the file lacks, a copy of the default row or zeros.
    """
    if table is not None:
        fill(target, _grown(file, name, table.num_embeddings, new_rows))
    elif not target.dim():
        target.copy_(file.read(name))
    else:
        for part, piece in zip(target.split(PIECE), _grown(file, name, len(target), new_rows)):
            part.copy_(piece)


def restore(model: nn.Module, file: TensorFile, prefix: str = "") -> None:
    """Read into a model what `whole_state` wrote of it, under a prefix.

    New rows of a table begin as the default row, which stood for them until now.
    """
    for name, value in model.state_dict().items():
        read_into(value, file, f"{prefix}{name}", None, "default")
    for name, table in sharded_tables(model).items():
        read_into(table.share, file, f"{prefix}{name}", table, "default")


def _grown(file: TensorFile, name: str, rows: int, new_rows: Literal["default", "zero"]) -> Iterator[Tensor]:
    """The first `rows` rows of a tensor of a file, in the pieces of `pieces_of`; rows that it lacks as `new_rows` says."""
    old = file.shape(name)[0]
    for part in pieces_of(rows):
        known = file.read(name, slice(min(old, part.start), min(old, part.stop)))
        missing = part.stop - part.start - len(known)
        if missing:
            row = file.read(name, slice(DEFAULT, DEFAULT + 1))
            row = torch.zeros_like(row) if new_rows == "zero" else row
            known = torch.cat([known, row.expand(missing, *row.shape[1:])])
        yield known

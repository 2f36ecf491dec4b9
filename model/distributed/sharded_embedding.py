"""Embedding tables that are too large for one process. Each rank holds a share of the rows and requests others by message.

Rank r of R holds rows r, r + R, r + 2R, … Indices are assigned in the order of first occurrence, so popular, old items have
low indices. With contiguous blocks the first ranks would do most of the work; striping balances it.

Shapes: N indices of a lookup, D distinct indices, S rows of a share, e embedding length.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.distributed.collectives import exchange, exchange_counts, rank, world_size
from model.io.tensor_file import StreamedTensor, TensorFile
from pipelines.contract.indices import DEFAULT, PADDING

PIECE = 2**20  # Rows of a table that are in memory at once while it is initialised, read or written.


class ShardedEmbedding(nn.Module):
    """Like nn.Embedding with a padding row and sparse gradients. This rank holds only its share of the rows.

    Lookups are collective: all ranks call forward() together, even for no rows; the same holds for backward(). `share` is not
    a parameter of the module: DDP would synchronise it over all ranks, and state_dict would save it as the whole table.
    """

    def __init__(self, rows: int, dim: int) -> None:
        """Creates a table of zeros. Use `fill` to set the rows."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, dim
        self.share = torch.zeros(rows_held(rows, rank()), dim).requires_grad_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ShardedEmbedding":
        """Also moves the share when torch moves the parameters of the module to another device."""
        self.share = fn(self.share.detach()).requires_grad_(self.share.requires_grad)
        return super()._apply(fn, recurse)

    def forward(self, indices: Tensor) -> Tensor:
        """[*shape, e] for indices of any shape. The gradient of a row is the mean over ranks of their summed gradients."""
        distinct_D, places = torch.unique(indices, return_inverse=True)
        vectors_De: Tensor = _ShardedLookup.apply(self.share, distinct_D)
        return nn.functional.embedding(places, vectors_De)


class _ShardedLookup(torch.autograd.Function):
    """Looks up rows in all shares. Sends gradients to the owners, divided by the number of ranks, as DDP does."""

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
    """Sharded tables of a model, by the name that their parameter would have. The same order on every rank."""
    return {f"{name}.weight": table for name, table in model.named_modules() if isinstance(table, ShardedEmbedding)}


def shares_of(model: nn.Module) -> list[Tensor]:
    """This rank's shares of the sharded tables. They are trained together with the parameters."""
    return [table.share for table in sharded_tables(model).values()]


def parameter_count(model: nn.Module) -> int:
    """Number of values in a model, with the shares of other ranks."""
    tables = sum(table.num_embeddings * table.embedding_dim for table in sharded_tables(model).values())
    return tables + sum(parameter.numel() for parameter in model.parameters())


def rows_held(rows: int, owner: int) -> int:
    """How many of the first `rows` rows of a table a rank holds."""
    return (rows - owner + world_size() - 1) // world_size()


def local_rows(table: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's tensor of any table, and the positions in it of those of `rows` that this rank holds."""
    if isinstance(table, ShardedEmbedding):
        return table.share, rows[rows % world_size() == rank()] // world_size()
    weight: Tensor = table.weight  # type: ignore[assignment]
    return weight, rows


def pieces_of(rows: int) -> Iterator[slice]:
    """Slices of PIECE rows that cover a table."""
    return (slice(start, min(rows, start + PIECE)) for start in range(0, rows, PIECE))


@torch.no_grad()
def fill(share_Se: Tensor, pieces: Iterable[Tensor]) -> None:
    """Copy this rank's rows from a whole table, given as consecutive pieces [any, e] that start with row 0."""
    start = 0
    for piece in pieces:
        stop = start + len(piece)
        share_Se[rows_held(start, rank()) : rows_held(stop, rank())] = piece[
            (rank() - start) % world_size() :: world_size()
        ]
        start = stop


@torch.no_grad()
def whole_rows(share_Se: Tensor, rows: int) -> Iterator[Tensor]:
    """The whole table in pieces, on rank 0. Other ranks get empty pieces.

    Collective: every rank must iterate over all pieces.
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
    """The tensor to save: `value` itself, or the whole table if `value` is shaped like a share of `table`."""
    if table is None or not value.dim():
        return value.detach()
    rows = table.num_embeddings
    return StreamedTensor((rows, table.embedding_dim), whole_rows(value, rows))


def whole_state(model: nn.Module) -> dict[str, Tensor | StreamedTensor]:
    """The state_dict of the model, with whole tables instead of shares."""
    tables = {name: whole_tensor(table.share, table) for name, table in sharded_tables(model).items()}
    return {**model.state_dict(), **tables}


@torch.no_grad()
def read_into(
    target: Tensor, file: TensorFile, name: str, table: ShardedEmbedding | None, new_rows: Literal["default", "zero"]
) -> None:
    """Copy a tensor from a file to `target`. With a `table`, `target` is this rank's share of the tensor.

    `new_rows`: values of rows that the file lacks: a copy of the default row, or zeros.
    """
    if table is not None:
        fill(target, _grown(file, name, table.num_embeddings, new_rows))
    elif not target.dim():
        target.copy_(file.read(name))
    else:
        for part, piece in zip(target.split(PIECE), _grown(file, name, len(target), new_rows)):
            part.copy_(piece)


def restore(model: nn.Module, file: TensorFile, prefix: str = "") -> None:
    """Load the state that `whole_state` saved, with names under `prefix`.

    New rows of a table start as a copy of the default row, which represented them until now.
    """
    for name, value in model.state_dict().items():
        read_into(value, file, f"{prefix}{name}", None, "default")
    for name, table in sharded_tables(model).items():
        read_into(table.share, file, f"{prefix}{name}", table, "default")


def _grown(file: TensorFile, name: str, rows: int, new_rows: Literal["default", "zero"]) -> Iterator[Tensor]:
    """The first `rows` rows of a tensor in a file, in the pieces of `pieces_of`. `new_rows`: values of missing rows."""
    old = file.shape(name)[0]
    for part in pieces_of(rows):
        piece = file.read(name, slice(min(old, part.start), min(old, part.stop)))
        missing = part.stop - part.start - len(piece)
        if missing:
            row = file.read(name, slice(DEFAULT, DEFAULT + 1))
            row = torch.zeros_like(row) if new_rows == "zero" else row
            piece = torch.cat([piece, row.expand(missing, *row.shape[1:])])
        yield piece

"""Embedding tables that each of several processes holds whole: their gradients travel by the rows that a batch has met.

DDP would sum a gradient of the size of the table in every step, however few of its rows have one.

Shapes: R ranks, T tables, M rows met (of one table, or of all one after another), D distinct indices of a lookup, e
embedding length.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.distributed.collectives import broadcast_, gather_ragged, gather_rows, world_size
from pipelines.contract.indices import PADDING


class ReplicatedEmbedding(nn.Embedding):
    """An nn.Embedding with a padding row, whose gradient is there when `exchange_gradients` has followed backward()."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """As of nn.Embedding."""
        super().__init__(*args, **settings)
        self.lookups: list[
            tuple[Tensor, Tensor]
        ] = []  # Rows and their gradients, of each lookup since the last exchange.
        self._gradient: Tensor | None = None
        self._written: list[Tensor] = []

    def forward(self, indices: Tensor) -> Tensor:
        """[*shape, e] of indices of any shape."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(indices)
        distinct_D, places = torch.unique(indices, return_inverse=True)
        vectors_De: Tensor = _ReplicatedLookup.apply(self.weight, distinct_D, self)
        return nn.functional.embedding(places, vectors_De)

    def set_gradient(self, rows: list[Tensor], values: list[Tensor]) -> None:
        """Give the weight the sum of these rows [M] with values [M, e], in their order; a row may come more than once."""
        if self.sparse:
            self.weight.grad = torch.sparse_coo_tensor(torch.cat(rows)[None], torch.cat(values), self.weight.shape)
            return
        # One tensor for all steps: a new one would have to be zeroed whole.
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.weight)
        for last in self._written:
            self._gradient[last] = 0
        for of_rank, values_of_rank in zip(rows, values):
            self._gradient.index_add_(0, of_rank, values_of_rank)
        self._written, self.weight.grad = rows, self._gradient


class _ReplicatedLookup(torch.autograd.Function):
    """Rows of a table; what backward() says of them is noted there."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, distinct_D: Tensor, table: ReplicatedEmbedding) -> Tensor:
        ctx.distinct_D, ctx.table = distinct_D, table
        return weight[distinct_D]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        first = int((ctx.distinct_D[:1] == PADDING).sum())  # They are sorted, and the padding row is not trained.
        ctx.table.lookups.append((ctx.distinct_D[first:], gradients[0][first:]))
        return None, None, None


def replicated_tables(module: nn.Module) -> dict[str, ReplicatedEmbedding]:
    """Those of a module by the names of their parameters; in the same order on every rank."""
    return {f"{name}.weight": table for name, table in module.named_modules() if isinstance(table, ReplicatedEmbedding)}


def exchange_gradients(tables: Sequence[ReplicatedEmbedding]) -> None:
    """Give every table the mean over ranks of what backward() said there, to the same bits on all of them.

    All ranks call this at the same time. A table that no rank has met keeps what gradient it has.
    """
    if not tables:
        return
    counts_RT = gather_rows(torch.tensor([[sum(len(rows) for rows, _ in table.lookups) for table in tables]]), 1)
    lengths_T = torch.tensor([table.embedding_dim for table in tables])
    nothing = torch.empty(0)
    rows = torch.cat([nothing.long(), *(rows for table in tables for rows, _ in table.lookups)])
    values = (
        torch.cat([nothing, *(values.reshape(-1) for table in tables for _, values in table.lookups)]) / world_size()
    )
    rows_RT = _by_table(rows, counts_RT)
    values_RT = _by_table(values, counts_RT * lengths_T)
    for number, table in enumerate(tables):
        table.lookups = []
        if counts_RT[:, number].any():
            of_ranks = [of_tables[number].reshape(-1, table.embedding_dim) for of_tables in values_RT]
            table.set_gradient([of_tables[number] for of_tables in rows_RT], of_ranks)


def _by_table(numbers: Tensor, counts_RT: Tensor) -> list[tuple[Tensor, ...]]:
    """What each rank has for each table, of numbers that every rank has one table after another."""
    gathered = gather_ragged(numbers, counts_RT.sum(1).tolist())
    return [of_rank.split(counts) for of_rank, counts in zip(gathered, counts_RT.tolist())]


def distribute(module: nn.Module) -> nn.Module:
    """The module in DDP, which averages the gradients of everything but such tables; all ranks begin with rank 0's."""
    tables = replicated_tables(module)
    for table in tables.values():
        broadcast_(table.weight.detach())
    if not any(value.requires_grad and name not in tables for name, value in module.named_parameters()):
        return module  # An update may train tables alone: then DDP has nothing to do, and says so by an error.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(tables))
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)

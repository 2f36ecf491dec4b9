"""Embedding tables that every process holds completely. Processes exchange only the gradients of rows that a batch looks up.

DDP would sum a gradient of the size of the table in every step, even if only a few rows have a gradient.

Shapes: R ranks, T tables, M rows looked up (of one table, or of all tables concatenated), D distinct indices of a lookup, e
embedding length.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.distributed.collectives import broadcast_, gather_ragged, gather_rows, world_size
from pipelines.contract.indices import PADDING


class ReplicatedEmbedding(nn.Embedding):
    """Like nn.Embedding with a padding row. After backward(), `exchange_gradients` sets the gradient of its weight."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Takes the arguments of nn.Embedding."""
        super().__init__(*args, **settings)
        # Rows and their gradients, for each lookup since the last exchange.
        self.lookups: list[tuple[Tensor, Tensor]] = []
        self._gradient: Tensor | None = None
        self._written: list[Tensor] = []

    def forward(self, indices: Tensor) -> Tensor:
        """[*shape, e] for indices of any shape."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(indices)
        distinct_D, places = torch.unique(indices, return_inverse=True)
        vectors_De: Tensor = _ReplicatedLookup.apply(self.weight, distinct_D, self)
        return nn.functional.embedding(places, vectors_De)

    def set_gradient(self, rows: list[Tensor], values: list[Tensor]) -> None:
        """Set the gradient to the sum of rows [M] with values [M, e], added in order. A row may occur more than once."""
        if self.sparse:
            self.weight.grad = torch.sparse_coo_tensor(torch.cat(rows)[None], torch.cat(values), self.weight.shape)
            return
        # Reuse one tensor for all steps: a new one would have to be zeroed completely.
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.weight)
        for last in self._written:
            self._gradient[last] = 0
        for of_rank, values_of_rank in zip(rows, values):
            self._gradient.index_add_(0, of_rank, values_of_rank)
        self._written, self.weight.grad = rows, self._gradient


class _ReplicatedLookup(torch.autograd.Function):
    """Looks up rows of a table. backward() appends rows and gradients to `table.lookups`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, distinct_D: Tensor, table: ReplicatedEmbedding) -> Tensor:
        ctx.distinct_D, ctx.table = distinct_D, table
        return weight[distinct_D]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        first = int(
            (ctx.distinct_D[:1] == PADDING).sum()
        )  # Indices are sorted. Skip the padding row: it is not trained.
        ctx.table.lookups.append((ctx.distinct_D[first:], gradients[0][first:]))
        return None, None, None


def replicated_tables(module: nn.Module) -> dict[str, ReplicatedEmbedding]:
    """Replicated tables of a module, by the names of their parameters. The same order on every rank."""
    return {f"{name}.weight": table for name, table in module.named_modules() if isinstance(table, ReplicatedEmbedding)}


def exchange_gradients(tables: Sequence[ReplicatedEmbedding]) -> None:
    """Set the gradient of every table to the mean over ranks. The result is bitwise equal on all ranks.

    Collective: all ranks call this together. A table that no rank has looked up keeps its gradient.
    """
    if not tables:
        return
    counts_RT = gather_rows(torch.tensor([[sum(len(rows) for rows, _ in table.lookups) for table in tables]]), 1)
    lengths_T = torch.tensor([table.embedding_dim for table in tables])
    nothing = tables[0].weight.new_empty(0)
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
    """Gather numbers of all ranks and split them by table. Each rank's numbers are ordered by table."""
    gathered = gather_ragged(numbers, counts_RT.sum(1).tolist())
    return [of_rank.split(counts) for of_rank, counts in zip(gathered, counts_RT.tolist())]


def distribute(module: nn.Module) -> nn.Module:
    """Wrap a module in DDP, without its replicated tables. Copies the weights of rank 0 to all ranks."""
    tables = replicated_tables(module)
    for table in tables.values():
        broadcast_(table.weight.detach())
    if not any(value.requires_grad and name not in tables for name, value in module.named_parameters()):
        return module  # DDP raises an error if it has no parameters, e.g. if an update trains only tables.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(tables))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for broadcast_buffers.
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)

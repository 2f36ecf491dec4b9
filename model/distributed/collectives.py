"""Collective operations. In a single process each one returns its input, so callers need no special case.

Shapes: R ranks, N rows per rank, d columns.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renames all_gather_into_tensor and warns about the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def rank() -> int:
    """The rank of this process; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks. No gradient."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def broadcast_int(value: int) -> int:
    """The value of rank 0, on every rank."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.broadcast(tensor, src=0)
    return int(tensor)


def broadcast_(values: Tensor) -> None:
    """Overwrite a tensor with that of rank 0, in place."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def largest_over_ranks(value: int) -> int:
    """The largest of the values of all ranks."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather_rows(rows_ND: Tensor, capacity: int | None) -> Tensor:
    """[R * capacity, D]: integer rows of all ranks in rank order, padded with 0 to `capacity` per rank. No gradient.

    `capacity`: the same on all ranks; None: the largest number of rows of a rank, which the ranks agree on first.
    """
    if world_size() == 1:
        return rows_ND
    capacity = largest_over_ranks(len(rows_ND)) if capacity is None else capacity
    padded = rows_ND.new_zeros((capacity, rows_ND.shape[1]))
    padded[: len(rows_ND)] = rows_ND
    gathered = padded.new_empty((world_size() * capacity, rows_ND.shape[1]))
    _all_gather(gathered, padded)
    return gathered


def gather_ragged(values: Tensor, counts: list[int]) -> list[Tensor]:
    """Numbers [N] of each rank, in rank order. `counts`: the N of each rank. No gradient."""
    if world_size() == 1:
        return [values]
    padded = values.new_empty(max(counts))
    padded[: len(values)] = values
    gathered = padded.new_empty(world_size() * len(padded))
    _all_gather(gathered, padded)
    return [of_rank[:count] for of_rank, count in zip(gathered.reshape(world_size(), len(padded)), counts)]


def exchange_counts(counts: list[int]) -> list[int]:
    """How many rows each rank sends to this rank, given how many rows this rank sends to each. All ranks call this."""
    if world_size() == 1:
        return counts
    received = torch.empty(world_size(), dtype=torch.int64)
    dist.all_to_all_single(received, torch.tensor(counts))
    return received.tolist()


def exchange(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
    """Send rows to all ranks: the first `send[0]` rows to rank 0, and so on. Returns the received rows in rank order.

    `receive`: how many rows each rank sends to this one. Rows may be vectors of one length, or numbers. No gradient.
    """
    if world_size() == 1:
        return rows
    received = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(received, rows.contiguous(), receive, send)
    return received


class _GatherVectors(torch.autograd.Function):
    """all_gather with a gradient: the owner of a vector gets the sum of its gradients on all ranks."""

    @staticmethod
    def forward(ctx: Any, vectors_Nd: Tensor) -> Tensor:
        gathered = vectors_Nd.new_empty((world_size() * len(vectors_Nd), vectors_Nd.shape[1]))
        _all_gather(gathered, vectors_Nd.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each rank receives gradients only for its own vectors. This takes half the traffic of an all-reduce.
        counts = [len(gradients[0]) // world_size()] * world_size()
        received = exchange(gradients[0], counts, counts)
        return received.reshape(world_size(), counts[0], received.shape[1]).sum(0)


def gather_vectors(vectors_Nd: Tensor) -> Tensor:
    """[R * N, d]: vectors of all ranks in rank order. N must be equal on all ranks. Gradients flow back to the owners."""
    return vectors_Nd if world_size() == 1 else _GatherVectors.apply(vectors_Nd)

"""The few things ranks say to each other. Each is the identity in a process of its own, so no caller asks.

Shapes: R ranks, N rows a rank, d columns.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 calls it all_gather_single, and warns of the name that there is before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def rank() -> int:
    """This process's number, 0 on its own."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradient."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def broadcast_int(value: int) -> int:
    """What rank 0 says, on every rank."""
    if world_size() == 1:
        return value
    told = torch.tensor(value)
    dist.broadcast(told, src=0)
    return int(told)


def broadcast_(values: Tensor) -> None:
    """Overwrite a tensor by that of rank 0."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def gather_rows(rows_ND: Tensor, capacity: int) -> Tensor:
    """[R * capacity, D]: integer rows of all ranks, each padded with 0 to `capacity`, in rank order. No gradient."""
    if world_size() == 1:
        return rows_ND
    padded = rows_ND.new_zeros((capacity, rows_ND.shape[1]))
    padded[: len(rows_ND)] = rows_ND
    gathered = padded.new_empty((world_size() * capacity, rows_ND.shape[1]))
    _all_gather(gathered, padded)
    return gathered


def gather_ragged(values: Tensor, counts: list[int]) -> list[Tensor]:
    """Numbers [N] of all ranks, in rank order; `counts`: how many each has. No gradient."""
    if world_size() == 1:
        return [values]
    padded = values.new_empty(max(counts))
    padded[: len(values)] = values
    gathered = padded.new_empty(world_size() * len(padded))
    _all_gather(gathered, padded)
    return [of_rank[:count] for of_rank, count in zip(gathered.reshape(world_size(), len(padded)), counts)]


def exchange_counts(counts: list[int]) -> list[int]:
    """How many rows every rank has for this one, from how many this one has for each."""
    if world_size() == 1:
        return counts
    told = torch.empty(world_size(), dtype=torch.int64)
    dist.all_to_all_single(told, torch.tensor(counts))
    return told.tolist()


def exchange(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
    """Rows of all ranks for this one, in rank order: the first `send[0]` of `rows` go to rank 0, and so on. No gradient.

    `receive`: how many come from each. Rows are of one length, or numbers.
    """
    if world_size() == 1:
        return rows
    received = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(received, rows.contiguous(), receive, send)
    return received


class _GatherVectors(torch.autograd.Function):
    """all_gather whose gradient is the sum of what every rank's loss says of a vector, handed to its owner."""

    @staticmethod
    def forward(ctx: Any, vectors_Nd: Tensor) -> Tensor:
        gathered = vectors_Nd.new_empty((world_size() * len(vectors_Nd), vectors_Nd.shape[1]))
        _all_gather(gathered, vectors_Nd.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each rank is told of its own vectors, and of no other's: half of an all-reduce.
        counts = [len(gradients[0]) // world_size()] * world_size()
        told = exchange(gradients[0], counts, counts)
        return told.reshape(world_size(), counts[0], told.shape[1]).sum(0)


def gather_vectors(vectors_Nd: Tensor) -> Tensor:
    """[R * N, d]: vectors of all ranks in rank order, N the same on each, with gradients through the gather."""
    return vectors_Nd if world_size() == 1 else _GatherVectors.apply(vectors_Nd)

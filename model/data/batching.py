"""Cuts row groups into batches: the row groups of each rank, the number of steps and the order of rows.

Does no I/O. Rank and world size are arguments.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.seeds import numpy_generator

Arrays = dict[str, np.ndarray]


class TooFewRowGroupsError(ValueError):
    """There are more ranks than row groups, so some ranks would have no rows (exit 2)."""

    exit_code = 2


@dataclass(frozen=True)
class EpochPlan:
    """The plan of an epoch, the same on all ranks. An epoch reads each row once; all ranks take the same number of steps.

    `positives`: positives of all rows. It differs from the number of rows only if rows are packed.
    """

    steps: int
    rank_rows: tuple[int, ...]
    positives: int

    @property
    def capacity(self) -> int:
        """The largest number of rows of any rank in one step."""
        return math.ceil(max(self.rank_rows) / self.steps)

    def batch_sizes(self, rank: int) -> list[int]:
        """Rows of a rank in each step. They differ by at most one and add up to the rank's rows."""
        rows = self.rank_rows[rank]
        return [rows * (step + 1) // self.steps - rows * step // self.steps for step in range(self.steps)]


def plan_epoch(group_rows: Sequence[int], world_size: int, batch_size: int, positives: int | None = None) -> EpochPlan:
    """Plan an epoch over row groups of `group_rows` rows. A step has `batch_size` positives over all ranks.

    `positives`: the number of positives in packed rows; a step then has about `batch_size` positives, because rows are not
    split. None: each row has one positive.
    Row group g belongs to rank g % world_size, as in Petastorm. Raises TooFewRowGroupsError.
    """
    if len(group_rows) < world_size:
        raise TooFewRowGroupsError(
            f"{world_size} processes cannot share {len(group_rows)} row groups: set training.processes to "
            f"{len(group_rows)} or fewer, or write the samples in more row groups"
        )
    rank_rows = tuple(sum(group_rows[rank::world_size]) for rank in range(world_size))
    positives = sum(rank_rows) if positives is None else positives
    local_batch = max(1, rows_of_positives(batch_size, sum(rank_rows), positives) // world_size)
    return EpochPlan(math.ceil(max(rank_rows) / local_batch), rank_rows, positives)


def rows_of_positives(count: int, rows: int, positives: int) -> int:
    """About how many rows have `count` positives, if `rows` rows have `positives`. At least 1."""
    return max(1, round(count * rows / positives)) if positives else count


def shuffle_shards(count: int, rank: int, world_size: int, *seed: int) -> list[int]:
    """An order of `count` row groups that shuffles this rank's groups among the positions of this rank.

    A reader that takes every world_size-th group, starting from `rank`, therefore reads the same rows in each epoch, in a
    new order.
    """
    order = list(range(count))
    mine = order[rank::world_size]
    order[rank::world_size] = numpy_generator("groups", *seed).permutation(mine).tolist()
    return order


def batches(
    groups: Iterable[Arrays],
    sizes: Sequence[int],
    window: int,
    rng: np.random.Generator | None,
    convert: Callable[[Arrays], Arrays] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Batches of the given sizes. Row groups are shuffled together in windows of at least `window` rows.

    rng: shuffles rows; None keeps their order. convert: applied to the columns of each batch, for instance to unpack rows.
    Raises ValueError if the groups have fewer or more rows than the sizes.
    """
    groups = iter(groups)
    waiting = _Window({}, np.zeros(0, np.int64))
    for step, size in enumerate(sizes):
        if waiting.rows < size or not waiting.columns:
            waiting = _refill(waiting, groups, max(window, size), rng)
        if waiting.rows < size:
            raise ValueError(
                f"the data ran out in step {step + 1} of {len(sizes)}: {waiting.rows} rows left, {size} needed"
            )
        columns = waiting.take(size)
        yield {name: to_tensor(values) for name, values in (convert(columns) if convert else columns).items()}
    if waiting.rows + sum(1 for _ in groups):
        raise ValueError(f"the files have more rows than their manifest says: rows remain after {len(sizes)} steps")


@dataclass
class _Window:
    """Columns of the rows in a window, and the order in which the remaining rows leave it.

    Rows are gathered per batch, so that they are still in the CPU cache when they are widened. Gathering uses numpy: a
    thread that has run torch keeps its own OpenMP threads, which compete with those of the training. That makes steps a
    third slower while the reader is busy.
    """

    columns: Arrays
    order: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.order)

    def take(self, rows: int) -> Arrays:
        """Remove the next `rows` rows from the window and return their columns."""
        mine, self.order = self.order[:rows], self.order[rows:]
        return {name: values.take(mine, axis=0) for name, values in self.columns.items()}


def to_tensor(values: np.ndarray) -> Tensor:
    """Convert integers to int64 and other numbers to float32, the types that towers read."""
    return torch.from_numpy(values.astype(np.int64 if values.dtype.kind in "iub" else np.float32))


def _refill(rest: _Window, groups: Iterator[Arrays], window: int, rng: np.random.Generator | None) -> _Window:
    """A new window: the rest of the old one and whole row groups, up to `window` rows or the end of the data. Shuffled."""
    rows = rest.rows
    parts: list[Arrays] = [rest.take(rows)] if rows else []
    while rows < window and (group := next(groups, None)) is not None:
        parts.append(group)
        rows += len(next(iter(group.values())))
    order = rng.permutation(rows) if rng else np.arange(rows)
    names = parts[0] if parts else ()
    return _Window({name: np.concatenate([part[name] for part in parts]) for name in names}, order)

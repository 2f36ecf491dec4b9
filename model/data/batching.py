"""From row groups to batches: who reads what, how many steps everybody takes, and in which order rows come.

Nothing here knows of files or processes: rank and world size are arguments.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.seeds import numpy_generator

Arrays = dict[str, np.ndarray]


class TooFewRowGroupsError(ValueError):
    """More ranks than row groups: some would have nothing to read (exit 2)."""

    exit_code = 2


@dataclass(frozen=True)
class EpochPlan:
    """What all ranks agree on before the first step. An epoch is every row once, in the same number of steps each."""

    steps: int
    rank_rows: tuple[int, ...]

    @property
    def capacity(self) -> int:
        """The most rows that any rank has in one step."""
        return math.ceil(max(self.rank_rows) / self.steps)

    def batch_sizes(self, rank: int) -> list[int]:
        """Rows of each step of a rank: they differ by one at most and add up to the rank's rows."""
        rows = self.rank_rows[rank]
        return [rows * (step + 1) // self.steps - rows * step // self.steps for step in range(self.steps)]


def plan_epoch(group_rows: Sequence[int], world_size: int, batch_size: int) -> EpochPlan:
    """The plan for row groups of `group_rows` rows, `batch_size` rows a step over all ranks.

    Row group g belongs to rank g % world_size, which is Petastorm's rule. Raises TooFewRowGroupsError.
    """
    if len(group_rows) < world_size:
        raise TooFewRowGroupsError(
            f"{world_size} processes cannot share {len(group_rows)} row groups: set training.processes to "
            f"{len(group_rows)} or fewer, or write the samples in more row groups"
        )
    rank_rows = tuple(sum(group_rows[rank::world_size]) for rank in range(world_size))
    local_batch = max(1, batch_size // world_size)
    return EpochPlan(math.ceil(max(rank_rows) / local_batch), rank_rows)


def shuffle_shards(count: int, rank: int, world_size: int, *seed: int) -> list[int]:
    """An order of `count` row groups in which this rank's groups are shuffled among the rank's own places.

    So a reader that takes every world_size-th group from `rank` on reads the same rows in every epoch, in new order.
    """
    order = list(range(count))
    mine = order[rank::world_size]
    order[rank::world_size] = numpy_generator("groups", *seed).permutation(mine).tolist()
    return order


def batches(
    groups: Iterable[Arrays], sizes: Sequence[int], window: int, rng: np.random.Generator | None
) -> Iterator[dict[str, Tensor]]:
    """Batches of the given sizes, from row groups shuffled together in windows of at least `window` rows.

    draw: shuffles rows; None keeps their order.
    Raises ValueError where the groups hold fewer or more rows than the sizes.
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
        yield {name: to_tensor(values) for name, values in waiting.take(size).items()}
    if waiting.rows + sum(1 for _ in groups):
        raise ValueError(f"the files hold more rows than their manifest says: rows were left after {len(sizes)} steps")


@dataclass
class _Window:
    """Columns of rows as they came, and in which order those not taken yet go out.

    Rows are gathered a batch at a time: what is gathered is widened while it is still in the cache. By numpy: a thread in
    which torch has worked keeps OpenMP threads of its own, and beside them those of the training wait less patiently for
    each other: every step would take a third longer while there is something to read.
    """

    columns: Arrays
    order: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.order)

    def take(self, rows: int) -> Arrays:
        """The next `rows` rows of every column, which are then gone."""
        mine, self.order = self.order[:rows], self.order[rows:]
        return {name: values.take(mine, axis=0) for name, values in self.columns.items()}


def to_tensor(values: np.ndarray) -> Tensor:
    """Integers as int64, numbers as float32: what towers read."""
    return torch.from_numpy(values.astype(np.int64 if values.dtype.kind in "iub" else np.float32))


def _refill(rest: _Window, groups: Iterator[Arrays], window: int, rng: np.random.Generator | None) -> _Window:
    """The rest of a window with whole row groups up to `window` rows or the end, all shuffled."""
    rows = rest.rows
    parts: list[Arrays] = [rest.take(rows)] if rows else []
    while rows < window and (group := next(groups, None)) is not None:
        parts.append(group)
        rows += len(next(iter(group.values())))
    order = rng.permutation(rows) if rng else np.arange(rows)
    names = parts[0] if parts else ()
    return _Window({name: np.concatenate([part[name] for part in parts]) for name in names}, order)

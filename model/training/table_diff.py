"""What an update within the day has changed of a model: the rows of embedding tables, and nothing else."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from model.io.tensor_file import TensorFile
from model.training.checkpoint import PARAMETERS

ROWS = 1 << 16  # read at a time


class ChangedRows(NamedTuple):
    """Rows of a table that are new or hold other numbers than before."""

    table: str
    rows: np.ndarray  # [n] int64
    values: np.ndarray  # [n, e] float32


def changed_rows(before: str, after: str) -> Iterator[ChangedRows]:
    """Table by table, a piece at a time (no piece without a row). `before`, `after`: folders of checkpoints.

    Raises ValueError where anything else than rows has changed.
    """
    with TensorFile(f"{before}/{PARAMETERS}") as old, TensorFile(f"{after}/{PARAMETERS}") as new:
        if set(old.names) != set(new.names):
            raise ValueError(f"{before} and {after} are models of different kinds")
        for name in new.names:
            if not name.startswith("tables."):
                if not np.array_equal(old.read(name).numpy(), new.read(name).numpy()):
                    raise ValueError(f"{after}: {name} is no embedding table, and differs from {before}")
                continue
            there, rows = old.shape(name)[0], new.shape(name)[0]
            for start in range(0, rows, ROWS):
                stop = min(start + ROWS, rows)
                values = new.read(name, slice(start, stop)).numpy()
                known = max(0, min(stop, there) - start)
                differs = np.ones(stop - start, bool)
                if known:
                    earlier = old.read(name, slice(start, start + known)).numpy()
                    differs[:known] = (values[:known] != earlier).any(1)
                if differs.any():
                    yield ChangedRows(name, start + np.flatnonzero(differs), values[differs])

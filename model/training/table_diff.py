"""Rows of embedding tables that an incremental update within the day has changed."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from model.io.tensor_file import TensorFile
from model.training.checkpoint import PARAMETERS

ROWS = 1 << 16  # Rows to read at a time.


class ChangedRows(NamedTuple):
    """Rows of a table that are new or have changed."""

    table: str
    rows: np.ndarray  # [n] int64
    values: np.ndarray  # [n, e] float32


def changed_rows(before: str, after: str) -> Iterator[ChangedRows]:
    """Compare two checkpoint folders. Yields the changed rows, table by table, in pieces of at most ROWS; no empty pieces.

    Raises ValueError if anything but rows of embedding tables has changed.
    """
    with TensorFile(f"{before}/{PARAMETERS}") as old, TensorFile(f"{after}/{PARAMETERS}") as new:
        if set(old.names) != set(new.names):
            raise ValueError(f"{before} and {after} have different parameters")
        for name in new.names:
            if not name.startswith("tables."):
                if not np.array_equal(old.read(name).numpy(), new.read(name).numpy()):
                    raise ValueError(f"{after}: {name} is not an embedding table, and differs from {before}")
                continue
            old_rows, rows = old.shape(name)[0], new.shape(name)[0]
            for start in range(0, rows, ROWS):
                stop = min(start + ROWS, rows)
                values = new.read(name, slice(start, stop)).numpy()
                shared = max(0, min(stop, old_rows) - start)  # Rows of this piece that both tables have.
                differs = np.ones(stop - start, bool)
                if shared:
                    earlier = old.read(name, slice(start, start + shared)).numpy()
                    differs[:shared] = (values[:shared] != earlier).any(1)
                if differs.any():
                    yield ChangedRows(name, start + np.flatnonzero(differs), values[differs])

"""Item features as of a day: which row of the catalogue holds an item as a snapshot knew it.

Shapes: V earlier versions, S any shape of what is asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SNAPSHOT = "item_snapshot"  # Column of samples: the day of the row's items snapshot, as the number YYYYMMDD.
VALID_BEFORE = "valid_before"  # Column of item_versions: rows of earlier snapshots see this version; such a number too.
NEVER_REPLACED = 99_999_999  # valid_before of the last version of an item that the newest snapshot lacks.
_DAYS = 100_000_000  # More than any day, so that an item and a day make one number.


@dataclass(frozen=True)
class Versions:
    """Earlier versions of items, sorted by item and time.

    The catalogue's rows are sorted by item; an item's earlier versions come in order of time, its current one last. So
    version k (counted over all items from 0) of item i is row i + k, and an item that has one version, of a catalogue
    without others, is the row of its index. One binary search answers "which row is item i as of day d?".
    """

    keys_V: Tensor  # item * _DAYS + valid_before, ascending
    rows_V: Tensor  # The row of each earlier version, ascending.

    @classmethod
    def none(cls) -> "Versions":
        """Every item has its current version only."""
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def build(cls, items: np.ndarray, valid_before: np.ndarray) -> tuple["Versions", np.ndarray]:
        """The versions, and the order [V] that sorts the table that they come from."""
        keys = items.astype(np.int64) * _DAYS + valid_before.astype(np.int64)
        order = np.argsort(keys, kind="stable")
        return cls(
            torch.from_numpy(keys[order]), torch.from_numpy(items[order].astype(np.int64) + np.arange(len(order)))
        ), order

    def __len__(self) -> int:
        return len(self.keys_V)

    def rows(self, items_S: Tensor, snapshots_S: Tensor | None = None) -> Tensor:
        """[*S] rows of items as these snapshots (YYYYMMDD) know them; None: as they are now.

        `snapshots_S` may have any shape that broadcasts to that of the items.
        """
        if not len(self):
            return items_S
        days_S = NEVER_REPLACED if snapshots_S is None else snapshots_S
        return items_S + torch.searchsorted(self.keys_V, (items_S * _DAYS + days_S).contiguous(), right=True)

    def items(self, rows_S: Tensor) -> Tensor:
        """[*S] the item of each row."""
        if not len(self):
            return rows_S
        return rows_S - torch.searchsorted(self.rows_V, rows_S.contiguous())


@dataclass(frozen=True)
class StackedColumns(Mapping[str, np.ndarray]):
    """Columns of the current rows with those of the earlier versions, in their order, below."""

    current: Mapping[str, np.ndarray]
    earlier: Mapping[str, np.ndarray]
    order: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return np.concatenate([self.current[name], self.earlier[name][self.order]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)

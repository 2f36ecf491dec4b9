"""Item features as of a day: finds the row of the catalogue with the version of an item that a snapshot saw.

Shapes: V earlier versions, S any shape of requested items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.network.embeddings import Batch
from model.network.sequence_encoder import PACKED_ROW, PACKED_SEEN
from pipelines.contract.indices import PADDING

SNAPSHOT = "item_snapshot"  # Column of samples: the day of the row's items snapshot, as the number YYYYMMDD.
VALID_BEFORE = "valid_before"  # Column of item_versions, also YYYYMMDD: snapshots before this day see the version.
NEVER_REPLACED = 99_999_999  # valid_before of the last version of an item that the newest snapshot lacks.
_DAYS = 100_000_000  # Larger than any day: item * _DAYS + day is a unique key.


@dataclass(frozen=True)
class Versions:
    """Earlier versions of items, sorted by item and time.

    Rows of the catalogue are sorted by item. The earlier versions of an item come first, in order of time; its current
    version is last. So version k of item i is row i + k, where k counts the earlier versions of all items from 0. In a
    catalogue without earlier versions, the row of an item is its index. One binary search finds the row of item i as of
    day d.
    """

    keys_V: Tensor  # item * _DAYS + valid_before, ascending
    rows_V: Tensor  # Row of each earlier version, ascending

    @classmethod
    def none(cls) -> "Versions":
        """No earlier versions: all items have only their current version."""
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def build(cls, items: np.ndarray, valid_before: np.ndarray) -> tuple["Versions", np.ndarray]:
        """The versions, and the order [V] that sorts the rows of the given table."""
        keys = items.astype(np.int64) * _DAYS + valid_before.astype(np.int64)
        order = np.argsort(keys, kind="stable")
        return cls(
            torch.from_numpy(keys[order]), torch.from_numpy(items[order].astype(np.int64) + np.arange(len(order)))
        ), order

    def to(self, device: torch.device) -> "Versions":
        """The versions on a device."""
        return Versions(self.keys_V.to(device), self.rows_V.to(device))

    def __len__(self) -> int:
        return len(self.keys_V)

    def rows(self, items_S: Tensor, snapshots_S: Tensor | None = None) -> Tensor:
        """[*S] rows of items in the given snapshots (YYYYMMDD); None: current rows.

        `snapshots_S` may have any shape that broadcasts to the shape of the items.
        """
        if not len(self):
            return items_S
        days_S = NEVER_REPLACED if snapshots_S is None else snapshots_S
        return items_S + torch.searchsorted(self.keys_V, (items_S * _DAYS + days_S).contiguous(), right=True)

    def items(self, rows_S: Tensor) -> Tensor:
        """[*S] item of each row."""
        if not len(self):
            return rows_S
        return rows_S - torch.searchsorted(self.rows_V, rows_S.contiguous())


def parts_of(columns: Mapping[str, np.ndarray], name: str) -> Iterator[np.ndarray]:
    """A column in parts, in order, if the columns are read from files or stacked; else in one part."""
    parts = getattr(columns, "parts", None)
    return parts(name) if parts else iter([columns[name]])


@dataclass(frozen=True)
class StackedColumns(Mapping[str, np.ndarray]):
    """Columns of the current rows, followed by those of the earlier versions in their order."""

    current: Mapping[str, np.ndarray]
    earlier: Mapping[str, np.ndarray]
    order: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return np.concatenate([self.current[name], self.earlier[name][self.order]])

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """A column in parts, in order."""
        yield from parts_of(self.current, name)
        yield self.earlier[name][self.order]

    def __iter__(self) -> Iterator[str]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


def packed_snapshots(history_PL: Tensor, batch: Batch) -> Tensor:
    """[P, L]: for each item of the packed histories, the earliest snapshot of the positives that see it.

    A packed history is encoded once for all of its positives. With this snapshot no positive sees features from after it.
    """
    rows, length = history_PL.shape
    earliest_PS = batch[SNAPSHOT].new_full((rows, length + 1), NEVER_REPLACED)
    places_N = batch[PACKED_ROW] * (length + 1) + batch[PACKED_SEEN]
    earliest_PS.view(-1).scatter_reduce_(0, places_N, batch[SNAPSHOT], "amin")
    # A positive that sees s items sees each item before place s.
    from_PS = earliest_PS.flip(1).cummin(1).values.flip(1)
    item_PL = (
        torch.arange(length, device=history_PL.device) - (history_PL == PADDING).sum(1)[:, None]
    )  # Negative for padding.
    return from_PS.gather(1, item_PL.clamp(min=-1) + 1)

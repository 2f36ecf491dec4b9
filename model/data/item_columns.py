"""Columns of item features in memory, one or several values per index, for millions of items.

Values are stored in 32 bits. Columns with several values store values and offsets, and no padding.

Shapes: M indices, T values of all indices, V maximum number of values, N numbers of a vector, S any shape of requested
indices.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SingleValueColumn:
    """One number per index."""

    values_M: Tensor  # int32 or float32

    @classmethod
    def fill(cls, size: int, places: Tensor, values: np.ndarray, default: float) -> "SingleValueColumn":
        """A column with `values` at the indices `places` and the default at other indices."""
        filled = np.full(size, default, dtype=np.int32 if values.dtype.kind in "iub" else np.float32)
        filled[places.numpy()] = values
        return cls(torch.from_numpy(filled))

    def gather(self, indices_S: Tensor) -> Tensor:
        """[*S] int64 or float32."""
        return _widened(self.values_M[indices_S])


@dataclass(frozen=True)
class MultiValueColumn:
    """Up to `length` numbers per index, stored one after another."""

    values_T: Tensor  # int32 or float32
    first_M: Tensor  # [M + 1] int64: offset of the first value of each index; the last entry is T
    length: int  # V

    @classmethod
    def fill(
        cls, size: int, places: Tensor, values: np.ndarray, counts: np.ndarray, default: float
    ) -> "MultiValueColumn":
        """A column with the first `counts` [n] of `values` [n, V] at the indices `places` [n], one default value elsewhere."""
        lengths_M = torch.ones(size, dtype=torch.int64)
        lengths_M[places] = torch.from_numpy(counts.astype(np.int64))
        first_M = torch.cat([torch.zeros(1, dtype=torch.int64), lengths_M.cumsum(0)])
        kind = torch.int32 if values.dtype.kind in "iub" else torch.float32
        values_T = torch.full((int(first_M[-1]),), default, dtype=kind)
        steps = torch.arange(values.shape[1])
        filled = steps < lengths_M[places][:, None]
        values_T[(first_M[places][:, None] + steps)[filled]] = torch.from_numpy(values[filled.numpy()]).to(kind)
        return cls(values_T, first_M, values.shape[1])

    def gather(self, indices_S: Tensor) -> Tensor:
        """[*S, V] int64 or float32, padded with 0 after the values."""
        places_SV = self.first_M[indices_S][..., None] + torch.arange(self.length, device=self.first_M.device)
        values_SV = self.values_T[places_SV.clamp(max=max(len(self.values_T) - 1, 0))]
        return _widened(values_SV).masked_fill(places_SV >= self.first_M[indices_S + 1][..., None], 0)


@dataclass(frozen=True)
class VectorColumn:
    """A vector per index."""

    values_MN: Tensor  # float32

    @classmethod
    def fill(cls, zeros_MN: Tensor, places: Tensor, parts: Iterable[np.ndarray]) -> "VectorColumn":
        """A column with the vectors of all parts [n, N] at the indices `places`, written into `zeros_MN`."""
        start = 0
        for values in parts:
            zeros_MN.numpy()[places[start : start + len(values)].numpy()] = values
            start += len(values)
        return cls(zeros_MN)

    def gather(self, indices_S: Tensor) -> Tensor:
        """[*S, N] float32."""
        return self.values_MN[indices_S]


ItemColumn = SingleValueColumn | MultiValueColumn | VectorColumn


def to_device(column: ItemColumn, device: torch.device) -> ItemColumn:
    """The column on a device."""
    if isinstance(column, SingleValueColumn):
        return SingleValueColumn(column.values_M.to(device))
    if isinstance(column, VectorColumn):
        return VectorColumn(column.values_MN.to(device))
    return MultiValueColumn(column.values_T.to(device), column.first_M.to(device), column.length)


def bytes_of(columns: dict[str, ItemColumn]) -> int:
    """Memory of the columns, in bytes."""
    return sum(
        tensor.nbytes for column in columns.values() for tensor in vars(column).values() if torch.is_tensor(tensor)
    )


class MappedFiles:
    """A temporary folder of files that tensors are mapped from. It is deleted with this object."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nightjar-catalogue-")

    def move(self, name: str, column: ItemColumn) -> ItemColumn:
        """The same column, mapped from files. The operating system keeps only pages in memory that are in use."""
        if isinstance(column, SingleValueColumn):
            return SingleValueColumn(self._mapped(f"{name}.values", column.values_M))
        if isinstance(column, VectorColumn):
            values_MN = column.values_MN
            return VectorColumn(self._mapped(f"{name}.values", values_MN).view(values_MN.shape))
        values_T, first_M = (
            self._mapped(f"{name}.values", column.values_T),
            self._mapped(f"{name}.first", column.first_M),
        )
        return MultiValueColumn(values_T, first_M, column.length)

    def zeros(self, name: str, shape: tuple[int, int]) -> Tensor:
        """A float32 tensor of zeros that is mapped from a file, so that filling it needs no memory of the process."""
        path, size = Path(self._folder.name, f"{name}.values"), shape[0] * shape[1]
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)

    def _mapped(self, name: str, tensor: Tensor) -> Tensor:
        path = Path(self._folder.name, name)
        tensor.numpy().tofile(path)
        return torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)


def _widened(values: Tensor) -> Tensor:
    """Convert to the types that towers read: int64 or float32."""
    return values.long() if values.dtype == torch.int32 else values

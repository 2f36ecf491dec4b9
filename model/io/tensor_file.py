"""Reads and writes safetensors files in pieces, for tensors that are too large to copy or to hold in memory.

Format: length of the header (8 bytes, little endian); the header (JSON: dtype, shape and byte offsets of each tensor); the
bytes of the tensors, one tensor after another.
"""

import json
import math
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.io.urls import resolve

# The data types of the project's models.
TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int32: "I32", torch.int64: "I64"}


class StreamedTensor(NamedTuple):
    """A float32 tensor that is computed while it is written. `pieces` are its rows, in order."""

    shape: tuple[int, ...]
    pieces: Iterable[Tensor]


def encode(tensors: Mapping[str, Tensor | StreamedTensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a file with these tensors. Raises ValueError if the type of a tensor is not one of TYPES."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        kind = torch.float32 if isinstance(tensor, StreamedTensor) else tensor.dtype
        if kind not in TYPES:
            raise ValueError(
                f"tensor {name} has type {kind}; the types that can be written: {', '.join(map(str, TYPES))}"
            )
        start, end = end, end + kind.itemsize * math.prod(tensor.shape)
        header[name] = {"dtype": TYPES[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # Aligns the tensors to 8 bytes.
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        for piece in tensor.pieces if isinstance(tensor, StreamedTensor) else [tensor]:
            yield _bytes_of(piece.detach().cpu().contiguous())


def drain(tensors: Mapping[str, Tensor | StreamedTensor]) -> None:
    """Compute the pieces of streamed tensors on ranks that write nothing: all ranks compute each piece together."""
    for tensor in tensors.values():
        if isinstance(tensor, StreamedTensor):
            deque(tensor.pieces, maxlen=0)


class TensorFile:
    """A safetensors file, read by tensor or by rows of a tensor. Close it, or use it in a `with` block."""

    def __init__(self, url: str) -> None:
        filesystem, path = resolve(url)
        self._url, self._file = url, filesystem.open_input_file(path)
        length = struct.unpack("<Q", self._file.read(8))[0]
        self._header, self._start = json.loads(self._file.read(length)), 8 + length

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return [name for name in self._header if name != "__metadata__"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises KeyError if the file lacks it."""
        return tuple(self._header[name]["shape"])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read a tensor, or consecutive rows of it.

        Raises KeyError if the file lacks the tensor, and ValueError if its type is not one of TYPES or if the file is cut
        short.
        """
        kind = next((kind for kind, called in TYPES.items() if called == self._header[name]["dtype"]), None)
        if kind is None:
            raise ValueError(
                f"{self._url}: tensor {name} has type {self._header[name]['dtype']}; the types that can be read: "
                f"{', '.join(TYPES.values())}"
            )
        place, shape = self._start + self._header[name]["data_offsets"][0], self.shape(name)
        if rows is not None:
            place += kind.itemsize * rows.start * math.prod(shape[1:])
            shape = (rows.stop - rows.start, *shape[1:])
        tensor = torch.empty(shape, dtype=kind)
        if not tensor.numel():
            return tensor
        self._file.seek(place)
        if self._file.readinto(_bytes_of(tensor)) < tensor.nbytes:
            raise ValueError(f"{self._url} ends in the middle of tensor {name}: the file is incomplete")
        return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, as bytes."""
    return tensor.numpy().reshape(-1).view(np.uint8).data

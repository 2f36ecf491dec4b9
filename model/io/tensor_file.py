"""safetensors files a piece at a time, for tensors too large to be held twice or at all.

The format: the length of a header (8 bytes, little endian), the header (JSON: dtype, shape and place of each tensor), the
tensors' bytes one after another.
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

TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int32: "I32", torch.int64: "I64"}  # Those that models have.


class StreamedTensor(NamedTuple):
    """A float32 tensor that comes into being while it is written: consecutive rows of it."""

    shape: tuple[int, ...]
    pieces: Iterable[Tensor]


def encode(tensors: Mapping[str, Tensor | StreamedTensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a file. Raises ValueError for a tensor of a type that is none of TYPES."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        kind = torch.float32 if isinstance(tensor, StreamedTensor) else tensor.dtype
        if kind not in TYPES:
            raise ValueError(f"tensor {name} is of {kind}; what can be written is {', '.join(map(str, TYPES))}")
        start, end = end, end + kind.itemsize * math.prod(tensor.shape)
        header[name] = {"dtype": TYPES[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # So that numbers are aligned.
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        for piece in tensor.pieces if isinstance(tensor, StreamedTensor) else [tensor]:
            yield _bytes_of(piece.detach().contiguous())


def drain(tensors: Mapping[str, Tensor | StreamedTensor]) -> None:
    """What the other ranks do while rank 0 encodes tensors: rows come into being on all of them together."""
    for tensor in tensors.values():
        if isinstance(tensor, StreamedTensor):
            deque(tensor.pieces, maxlen=0)


class TensorFile:
    """A file to read from, tensor by tensor or rows of one; to be closed, or used in a `with` block."""

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
        """Of all tensors."""
        return [name for name in self._header if name != "__metadata__"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor. Raises KeyError for one that is not there."""
        return tuple(self._header[name]["shape"])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or consecutive rows of it.

        Raises KeyError for one that is not there, ValueError for another type than TYPES or a file that ends too soon.
        """
        kind = next((kind for kind, called in TYPES.items() if called == self._header[name]["dtype"]), None)
        if kind is None:
            raise ValueError(f"{self._url}: tensor {name} is of {self._header[name]['dtype']}, which no model has")
        place, shape = self._start + self._header[name]["data_offsets"][0], self.shape(name)
        if rows is not None:
            place += kind.itemsize * rows.start * math.prod(shape[1:])
            shape = (rows.stop - rows.start, *shape[1:])
        tensor = torch.empty(shape, dtype=kind)
        if not tensor.numel():
            return tensor
        self._file.seek(place)
        if self._file.readinto(_bytes_of(tensor)) < tensor.nbytes:
            raise ValueError(f"{self._url} ends in the middle of tensor {name}: it was not written to its end")
        return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.numpy().reshape(-1).view(np.uint8).data

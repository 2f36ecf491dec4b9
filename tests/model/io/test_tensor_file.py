"""Tensor files, written and read in pieces, follow the safetensors format."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.io.tensor_file import StreamedTensor, TensorFile, encode


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "table": torch.randn(23, 3),
        "scalar": torch.tensor(2.0),
        "nothing": torch.zeros(0, 4),
        "counts": torch.arange(5),
    }


def test_a_file_written_in_pieces_is_a_safetensors_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    streamed = {**tensors, "table": StreamedTensor((23, 3), tensors["table"].split(7))}
    path = tmp_path / "written"
    path.write_bytes(b"".join(bytes(piece) for piece in encode(streamed)))
    for loaded in (load_file(path), read_all(path)):
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_safetensors_file_can_be_read_by_tensor_and_by_rows(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "reference"
    save_file(tensors, path)
    loaded = read_all(path)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with TensorFile(str(path)) as file:
        assert torch.equal(file.read("table", slice(7, 14)), tensors["table"][7:14])


def test_an_unsupported_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor halves has type torch.bfloat16; the types"):
        next(encode({"halves": torch.ones(3, dtype=torch.bfloat16)}))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "cut"
    path.write_bytes(b"".join(bytes(piece) for piece in encode(tensors))[:-5])
    with TensorFile(str(path)) as file, pytest.raises(ValueError, match="ends in the middle of tensor counts"):
        file.read("counts")


def read_all(path: Path) -> dict[str, Tensor]:
    with TensorFile(str(path)) as file:
        return {name: file.read(name) for name in file.names}

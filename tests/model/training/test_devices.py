"""A step creates its tensors on the device of its batch.

Inside `torch.device("meta")`, a tensor that is created without a device has no memory, and mixing it with the tensors of the
batch fails. So these tests need no GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import TrainingConfig
from model.data.batching import to_tensor
from model.data.petastorm_reader import SampleReader, sample_columns
from model.distributed.sharded_embedding import ShardedEmbedding, fill
from model.training.build import build_step
from model.training.device import DeviceError, training_device
from model.training.launch import launch
from model.training.spec import EarlyStopping
from model.training.unseen_items import reset_unseen_items
from model.training.validation import validate
from tests.model import toy_night

LOSSES: list[dict[str, Any]] = [
    {"kind": "listwise", "correction": "classic", "learned_temperature": True},
    {"correction": "mns", "frequencies": "streaming", "streaming": {"slots": 1000}},
    {"correction": "revisited", "top_k": 3},
    {"correction": "none"},
    {"kind": "pointwise", "gbce_calibration": 0.5},
    {"kind": "hinge"},
    {"kind": "logistic"},
    *(
        {"self_supervision": {"mask": mask, "items": 16}}
        for mask in ("random", "dropout", "complementary", "correlated")
    ),
]
MODEL: dict[str, Any] = {
    "id_dropout": 0.2, "dropout": 0.2, "history_dropout": 0.2, "history_features": ["category", "tags"],
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("versions", [False, True])
def test_a_step_creates_no_tensor_on_another_device(tmp_path: Path, loss: dict[str, Any], versions: bool) -> None:
    spec = toy_night.make_spec(tmp_path, [60], MODEL, loss, {"batch_size": 60})
    spec = spec.model_copy(update={"item_relations": [[0.0, 0.2, 0.1], [0.2, 0.0, 0.3], [0.1, 0.3, 0.0]]})
    if versions:
        spec = toy_night.with_earlier_versions(spec, toy_night.earlier_versions())
    step = build_step(spec)
    reader = SampleReader(spec.train, sample_columns(spec.features, versions=versions), spec.training, spec.seed, 0, 1)
    with reader.epoch(0) as batches:
        batch = next(batches)
    with torch.device("meta"):
        for training in (True, False):
            output = step.train(training)(batch, 60)
        step.train()(batch, 60).loss.backward()
        step.eval().tower_weights(batch)
    assert output.loss.device.type == "cpu"
    assert all(value.grad.device.type == "cpu" for value in step.parameters() if value.grad is not None)


@pytest.mark.parametrize(
    "tower",
    [
        {"tower": "senet"},
        {"tower": "parallel", "dim": 18},
        {"history_pooling": "attention"},
        {"tower": "sequence", "settings": {"width": 16}},
    ],
    ids=str,
)
def test_towers_create_no_tensor_on_another_device(tmp_path: Path, tower: dict[str, Any]) -> None:
    spec = toy_night.make_spec(tmp_path, [60], {**MODEL, **tower}, None, {"batch_size": 60})
    step = build_step(spec)
    with SampleReader(spec.train, sample_columns(spec.features), spec.training, spec.seed, 0, 1).epoch(0) as batches:
        batch = next(batches)
    with torch.device("meta"):
        step.train()(batch, 60).loss.backward()


def test_context_and_ages_create_no_tensor_on_another_device(tmp_path: Path) -> None:
    history = {**toy_night.SCHEMA["history"], "ages_column": "history_ages"}
    model = {**MODEL, "tower": "sequence", "settings": {"width": 16, "time": "gaps"}, "context_dropout": 0.5}
    spec = toy_night.make_spec(
        tmp_path, [60], model, features=toy_night.schema(context=toy_night.CONTEXT, history=history)
    )
    step = build_step(spec)
    rows = toy_night.sample_rows(60) | toy_night.context_rows(60)
    batch = {name: to_tensor(values) for name, values in rows.items()}
    batch["history_ages"] = torch.randint(1, 10**6, batch["history"].shape).sort(1, descending=True).values
    with torch.device("meta"):
        step.train()(batch, 60).loss.backward()


def test_validation_creates_no_tensor_on_another_device(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [60], early_stopping=EarlyStopping(), resume=str(tmp_path / "progress"))
    step = build_step(spec).eval()
    expected = validate(step, spec)
    with torch.device("meta"):
        assert validate(step, spec) == expected
        reset_unseen_items(step)


def test_a_gpu_that_is_not_there_is_an_error_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = toy_night.make_spec(tmp_path, [60], training={"device": "cuda"})
    with pytest.raises(DeviceError, match=r"torch finds no GPU here.*training.device: cpu") as caught:
        launch(spec)
    assert caught.value.exit_code == 2
    assert training_device(TrainingConfig(device="auto")) == torch.device("cpu")


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert training_device(TrainingConfig(device="cpu")) == torch.device("cpu")
    assert training_device(TrainingConfig(device="auto")) == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device(TrainingConfig(device="cuda", processes=2)) == torch.device("cuda:1")
    assert training_device(TrainingConfig(device="auto", processes=2, launcher="spark")) == torch.device("cpu")
    with pytest.raises(DeviceError, match="3 processes on this machine need a GPU each, and torch finds 2"):
        training_device(TrainingConfig(device="cuda", processes=3))


def test_the_share_of_a_sharded_table_moves_with_its_module() -> None:
    table = ShardedEmbedding(5, 3)
    fill(table.share, [torch.ones(5, 3)])
    torch.nn.ModuleDict({"ids": table}).to(torch.float64)
    assert table.share.dtype == torch.float64
    assert table.share.requires_grad
    assert table.share.is_leaf

"""Training on a GPU gives the losses of the CPU. Run it with `make test-gpu`; it is skipped without a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.training.checkpoint import load_checkpoint
from model.training.launch import launch
from model.training.spec import EarlyStopping, TrainingResult, TrainingSpec
from tests.model import toy_night

pytestmark = [
    pytest.mark.trains,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]
NO_DROPOUT = {
    "id_dropout": 0.0,
    "new_user_share": 0.0,
    "history_features": ["category", "tags"],
}  # Draws differ by device.


def train_on(device: str, spec: TrainingSpec, **training: Any) -> TrainingResult:
    settings = spec.training.model_copy(update={"device": device, **training})
    return launch(spec.model_copy(update={"training": settings, "output": f"{spec.output}-{device}"}))


def assert_close(cpu: TrainingResult, gpu: TrainingResult, tolerance: float) -> None:
    assert (gpu.steps, gpu.rows, gpu.parameters) == (cpu.steps, cpu.rows, cpu.parameters)
    for a, b in zip(cpu.epochs, gpu.epochs, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=tolerance)
        assert b.valid_loss == pytest.approx(a.valid_loss, rel=tolerance)


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "listwise", "correction": "classic", "learned_temperature": True},
        {"correction": "revisited", "frequencies": "streaming", "streaming": {"slots": 1000}, "top_k": 3},
        {"kind": "pointwise", "gbce_calibration": 0.5, "self_supervision": {"mask": "complementary", "items": 16}},
    ],
    ids=str,
)
def test_a_night_on_a_gpu_has_the_losses_of_the_cpu(tmp_path: Path, loss: dict[str, Any], optimizer: str) -> None:
    """Dense and sparse tables, and a warm start from the checkpoint of the GPU."""
    training = {"optimizer": optimizer, "embedding_rows_sparse": 50, "embedding_weight_decay": 0.01}
    spec = toy_night.make_spec(tmp_path, [200, 200], NO_DROPOUT, loss, training, epochs=2)
    assert_close(train_on("cpu", spec), train_on("cuda", spec), 1e-3)
    warm = spec.model_copy(update={"warm_start": f"{spec.output}-cuda", "output": str(tmp_path / "warm")})
    assert_close(train_on("cpu", warm), train_on("cuda", warm), 1e-3)
    a, b = (load_checkpoint(f"{spec.output}-{device}").state_dict() for device in ("cpu", "cuda"))
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-2, atol=1e-3, msg=name)


def test_early_stopping_resumes_and_returns_to_its_best_epoch_on_a_gpu(tmp_path: Path) -> None:
    spec = toy_night.make_spec(
        tmp_path, [200], {"dropout": 0.2, "history_dropout": 0.2}, None, {"embedding_learning_rate": 0.1}, epochs=12,
        early_stopping=EarlyStopping(), resume=str(tmp_path / "progress"),
    )  # fmt: skip
    result = train_on("cuda", spec, checkpoint_steps=2, precision="bfloat16")
    assert result.best_epoch is not None
    load_checkpoint(f"{spec.output}-cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.processes
@pytest.mark.parametrize("sharded", [None, 20])
def test_two_gpus_train_like_one_process_on_the_cpu(tmp_path: Path, sharded: int | None) -> None:
    spec = toy_night.make_spec(tmp_path, [200, 200], NO_DROPOUT, None, {"optimizer": "adagrad"}, epochs=2)
    two = train_on("cuda", spec, processes=2, embedding_rows_sharded=sharded, timeout_seconds=60)
    assert_close(train_on("cpu", spec), two, 1e-3)

"""Training on several processes gives the results of one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import LossConfig
from model.training.checkpoint import load_checkpoint
from model.training.launch import ROOT, LaunchError, launch
from model.training.step import FIGURES, LOSSES
from tests.model import packed_night, toy_night
from tests.model.training import gradients_process

SEQUENCE: dict[str, Any] = {"tower": "sequence", "settings": {"width": 16, "dropout": 0.0}}


def run_gradients(specs: list[Any], folder: Path, processes: int) -> list[dict[str, Any]]:
    """Results of gradients_process for all specs, on this process or on several."""
    out, files = folder / f"gradients{processes}.pt", []
    for number, spec in enumerate(specs):
        files.append(folder / f"spec{number}.json")
        files[-1].write_text(spec.model_dump_json())
    if processes == 1:
        gradients_process.main(str(out), *map(str, files))
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command += ["-m", "tests.model.training.gradients_process", str(out), *map(str, files)]
        subprocess.run(command, check=True, env=environment, timeout=300)
    return torch.load(out, weights_only=True)


@pytest.mark.processes
def test_two_ranks_have_the_loss_and_gradients_of_one_rank(tmp_path: Path) -> None:
    """Loss to 1e-6 and gradients to 1e-5 of the largest: float32 sums have another order. Ranks differ by one row."""
    losses = [{"kind": kind, "correction": "none"} for kind in ("listwise", "pointwise", "hinge", "logistic")]
    losses += [{"correction": correction} for correction in ("classic", "mns", "revisited")]
    losses += [{"hard_rows": "all", "hard_weight": 0.5}, {"stage_weight": 0.0, "correction": "none"}]
    losses += [{"correction": correction, "frequencies": "streaming"} for correction in ("classic", "revisited")]
    losses += [{"self_supervision": {"mask": "complementary", "items": 24, "weight": 1.0}}]
    base = toy_night.make_spec(
        tmp_path, [21, 20, 20, 20], model={"id_dropout": 0.0, "new_user_share": 0.0, "history_features": ["category"]},
        training={"batch_size": 100},
    )  # fmt: skip
    sparse = base.training.model_copy(update={"embedding_rows_sparse": 20})
    specs = [
        base.model_copy(update={"loss": LossConfig(learned_temperature=True, **loss), "training": training})
        for training in (base.training, sparse)
        for loss in (losses if training is base.training else losses[-2:-1])
    ]
    only_ids = base.model.model_copy(update={"tower": "youtube_dnn", "embedding_dim": base.model.dim})
    specs.append(base.model_copy(update={"model": only_ids}))
    specs.append(base.model_copy(update={"model": base.model.model_copy(update=SEQUENCE)}))
    specs.append(toy_night.with_earlier_versions(base, toy_night.earlier_versions()))
    streaming = {"correction": "mns", "frequencies": "streaming"}
    specs += [
        packed_night.make_spec(
            tmp_path / "packed", [9, 8, 3, 8], {"id_dropout": 0.0, "new_user_share": 0.0, **model}, loss, {"batch_size": 200},
            item_versions=[toy_night.write_earlier_versions(tmp_path / "packed")],
        )
        for model, loss in (({}, {}), (SEQUENCE, streaming))
    ]  # fmt: skip
    pairs = zip(run_gradients(specs, tmp_path, 1), run_gradients(specs, tmp_path, 2), strict=True)
    distinct_losses = set()
    for spec, (one, two) in zip(specs, pairs, strict=True):
        torch.testing.assert_close(one["figures"], two["figures"], rtol=1e-6, atol=0, msg=str(spec.loss))
        figures = dict(zip(FIGURES, one["figures"].tolist(), strict=True))
        assert figures["rows"] == sum(file.positives or file.rows for file in spec.train)
        distinct_losses.add(sum(figures[part] for part in LOSSES))
        assert one["gradients"].keys() == two["gradients"].keys()
        needed = {"towers.tables.item_id.weight", "towers.tables.user/age.weight"}
        needed |= {"log_temperature"} if spec.loss.learned_temperature else set()
        assert needed <= one["gradients"].keys()
        largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
        for name, gradient in one["gradients"].items():
            message = f"{name} of {spec.loss}"
            torch.testing.assert_close(gradient, two["gradients"][name], rtol=1e-4, atol=1e-5 * largest, msg=message)
        assert one["frequency"].keys() == two["frequency"].keys()
        assert all(torch.equal(values, two["frequency"][name]) for name, values in one["frequency"].items())
    assert len(distinct_losses) == len(losses) + 5, "each loss, tower and feature set has its own value"


@pytest.mark.parametrize(
    ("night", "model"),
    [(toy_night, {}), (packed_night, {}), pytest.param(packed_night, SEQUENCE, marks=pytest.mark.slow)],
    ids=["rows", "packed rows", "sequence tower on packed rows"],
)
@pytest.mark.processes
def test_two_processes_train_like_one(
    night: Any, model: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = night.make_spec(
        tmp_path,
        [40, 40, 41],
        model={"id_dropout": 0.0, "new_user_share": 0.0, **model},
        training={"batch_size": 420, "optimizer": "adagrad", "embedding_weight_decay": 1.0},  # The whole epoch.
        epochs=3,
    )
    one = launch(spec)
    processes = spec.training.model_copy(update={"processes": 2, "threads": None, "timeout_seconds": 60})
    assert "step/s" not in capfd.readouterr().err
    changes = {"training": processes, "output": str(tmp_path / "two"), "progress": True}
    two = launch(spec.model_copy(update=changes))
    bar = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if "step/s" in line]
    assert f"{two.steps}/{two.steps}" in bar[-1], "only rank 0 shows a bar"
    assert (two.steps, two.rows, two.parameters) == (one.steps, one.rows, one.parameters)
    for a, b in zip(one.epochs, two.epochs, strict=True):
        # Not as close as one gradient: Adagrad divides by small numbers in its first steps.
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.valid_loss == pytest.approx(b.valid_loss, rel=1e-4)
    assert load_checkpoint(str(tmp_path / "two")).schema == spec.features


@pytest.mark.processes
def test_a_rank_may_have_no_rows_in_some_steps(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [2, 90], training={"processes": 2, "batch_size": 40, "timeout_seconds": 30})
    result = launch(spec)
    assert (result.steps, result.rows) == (5, 92)


@pytest.mark.processes
def test_the_error_of_a_failed_process_is_quoted(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [10], training={"processes": 2})
    with pytest.raises(LaunchError, match="2 processes cannot share 1 row groups"):
        launch(spec)
    assert not Path(spec.output).exists()

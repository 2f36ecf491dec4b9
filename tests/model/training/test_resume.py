"""A killed and restarted training run ends with the same result as an uninterrupted run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model.training.checkpoint import load_checkpoint, read_state
from model.training.launch import ROOT, launch
from model.training.resume import identity
from model.training.spec import StepMetrics, TrainingResult, TrainingSpec
from model.training.trainer import train
from tests.model import packed_night, toy_night

GROUPS = [70, 71, 69, 72]
TIMES = {"rows_per_second", "data_wait_share", "step_seconds", "seconds", "memory_mb"}
EVERYTHING: dict[str, Any] = {
    "learned_temperature": True,
    "correction": "mns",
    "frequencies": "streaming",
    "streaming": {"slots": 1000},
    "self_supervision": {"mask": "random", "items": 16},
    "hard_ramp": [0.1, 0.9],
}


SEQUENCE: dict[str, Any] = {"tower": "sequence", "settings": {"width": 16, "time": "gaps", "actions": True}}


def make_spec(folder: Path, night: Any = toy_night, **training: Any) -> TrainingSpec:
    """Seven steps per epoch, with everything that has state: dropout, estimator, self-supervision, both kinds of tables."""
    return night.make_spec(
        folder, GROUPS, {"id_dropout": 0.2, "dropout": 0.1, "history_dropout": 0.3}, EVERYTHING,
        {"batch_size": 42, "embedding_rows_sparse": 50, "schedule": "cosine", "checkpoint_steps": 5, **training},
        epochs=3, resume=str(folder / "progress"), output=str(folder / "checkpoint"),
    )  # fmt: skip


class KilledError(Exception):
    pass


def interrupt(spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Train in this process, and stop after `after` steps."""
    from model.training import trainer

    step = trainer.TrainingLoop._step

    def stop(self: Any, *arguments: Any) -> None:
        if self.recorder.step == after:
            raise KilledError
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.TrainingLoop, "_step", stop)
        with pytest.raises(KilledError):
            train(spec)
    assert not Path(spec.output).exists()


def figures(points: list[StepMetrics]) -> list[dict[str, float]]:
    return [point.model_dump(exclude=TIMES) for point in points]


def assert_same(one: TrainingResult, other: TrainingResult, folders: list[str]) -> None:
    """Assert equal results bit for bit, except for times and memory."""
    assert figures(other.metrics) == figures(one.metrics)
    assert [epoch.model_dump(exclude={"seconds"}) for epoch in other.epochs] == [
        epoch.model_dump(exclude={"seconds"}) for epoch in one.epochs
    ]
    excluded = {"metrics", "epochs", "seconds"}
    assert other.model_dump(exclude=excluded) == one.model_dump(exclude=excluded)
    for read in (read_state, lambda folder: load_checkpoint(folder).state_dict()):
        a, b = (read(folder) for folder in folders)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("after", "optimizer"),
    [(8, "adamw"), (13, "adagrad")]
    + [
        pytest.param(after, optimizer, marks=pytest.mark.slow)
        for after, optimizer in [
            (6, "adamw"),
            (6, "adagrad"),
            (8, "adagrad"),
            (13, "adamw"),
            (20, "adamw"),
            (20, "adagrad"),
        ]
    ],
)
@pytest.mark.trains
def test_a_resumed_run_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, after: int
) -> None:
    """Checkpoints: step 5 in the first epoch, 10 in the second, 20 just before the last step."""
    spec = make_spec(tmp_path, optimizer=optimizer)
    whole = train(spec.model_copy(update={"resume": None, "output": str(tmp_path / "whole")}))
    assert whole.steps == 21
    interrupt(spec, monkeypatch, after)
    checkpoints = [path.name for path in Path(str(spec.resume)).iterdir()]
    assert checkpoints == [f"step={after // 5 * 5}"]
    assert_same(whole, train(spec), [str(tmp_path / "whole"), spec.output])


@pytest.mark.parametrize(
    "model",
    [
        {"tower": "dssm"},
        pytest.param({"tower": "senet", "history_pooling": "decay"}, marks=pytest.mark.slow),
        pytest.param({"tower": "parallel", "history_pooling": "attention"}, marks=pytest.mark.slow),
        {"tower": "sequence"},
    ],
    ids=["dssm", "senet", "parallel", "sequence"],
)
@pytest.mark.trains
def test_the_same_run_has_the_same_bits_on_two_threads(tmp_path: Path, model: dict[str, Any]) -> None:
    """Above 32,768 numbers torch may add the gradients of one item from two threads in any order."""
    spec = toy_night.make_spec(
        tmp_path, [1024, 1024], {**model, "dim": 66, "id_dropout": 0.2}, EVERYTHING, {"batch_size": 1024, "threads": 2},
        epochs=4,
    )  # fmt: skip
    first, *others = [
        (launch(spec.model_copy(update={"output": str(tmp_path / name)})), str(tmp_path / name)) for name in "abc"
    ]
    for other in others:
        assert_same(first[0], other[0], [first[1], other[1]])


@pytest.mark.parametrize(
    ("night", "model"),
    [(toy_night, {}), pytest.param(packed_night, SEQUENCE, marks=pytest.mark.slow)],
    ids=["rows", "sequence tower on packed rows"],
)
@pytest.mark.processes
def test_a_run_resumes_after_sigkill(tmp_path: Path, night: Any, model: dict[str, Any]) -> None:
    spec = make_spec(tmp_path, night, batch_size=105 if night is packed_night else 42)
    spec = spec.model_copy(update={"epochs": 20, "model": spec.model.model_copy(update=model)})
    whole = train(spec.model_copy(update={"resume": None, "output": str(tmp_path / "whole")}))
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    lines = (
        "import sys, pyarrow",
        "from model.training.spec import TrainingSpec",
        "from model.training.trainer import train",
    )
    code = "; ".join((*lines, "train(TrainingSpec.model_validate_json(open(sys.argv[1]).read()))"))
    command = [sys.executable, "-c", code, str(tmp_path / "spec.json")]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    progress = Path(str(spec.resume))
    while child.poll() is None and not list(progress.glob("step=[0-9][0-9]*")):
        time.sleep(0.01)
    assert child.poll() is None, "the run has not ended yet"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert_same(whole, train(spec), [str(tmp_path / "whole"), spec.output])


@pytest.mark.trains
def test_a_resumed_run_on_packed_rows_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`batch_size` counts positives, of which a packed row has 2.5 on average."""
    spec = make_spec(tmp_path, packed_night, batch_size=105)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update=SEQUENCE)})
    whole = train(spec.model_copy(update={"resume": None, "output": str(tmp_path / "whole")}))
    assert (whole.steps, whole.rows) == (21, 3 * sum(file.positives or 0 for file in spec.train))
    interrupt(spec, monkeypatch, 8)
    assert_same(whole, train(spec), [str(tmp_path / "whole"), spec.output])


@pytest.mark.trains
def test_checkpoints_that_are_damaged_or_of_another_run_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec(tmp_path)
    interrupt(spec, monkeypatch, 8)
    caplog.set_level("INFO", "model")
    train(spec.model_copy(update={"seed": 8}))
    assert "is of a run with another config or other inputs" in caplog.text
    tensors = Path(str(spec.resume), "step=5", "tensors.safetensors")
    if not tensors.exists():  # The other run has replaced it.
        interrupt(spec.model_copy(update={"output": str(tmp_path / "again")}), monkeypatch, 8)
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    whole = train(spec.model_copy(update={"resume": None, "output": str(tmp_path / "whole")}))
    again = train(spec)
    assert "is damaged" in caplog.text
    assert_same(whole, again, [str(tmp_path / "whole"), spec.output])


@pytest.mark.parametrize("night", [toy_night, packed_night], ids=["rows", "packed rows"])
@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_processes_with_the_same_steps(
    night: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one process to two and to three.

    Losses to 1e-4: sums have another order, and Adagrad divides by small numbers.
    """
    for processes in (2, 3):
        spec = night.make_spec(
            tmp_path, GROUPS, {"id_dropout": 0.0, "new_user_share": 0.0}, None,
            {"batch_size": 105 if night is packed_night else 42, "optimizer": "adagrad", "checkpoint_steps": 5,
             "timeout_seconds": 60},
            epochs=1, resume=str(tmp_path / f"progress{processes}"),
        )  # fmt: skip
        whole = train(spec.model_copy(update={"resume": None, "output": str(tmp_path / "whole")}))
        interrupt(spec.model_copy(update={"output": str(tmp_path / f"none{processes}")}), monkeypatch, 6)
        more = spec.training.model_copy(update={"processes": processes})
        other = launch(spec.model_copy(update={"training": more, "output": str(tmp_path / f"out{processes}")}))
        assert (other.steps, other.rows) == (whole.steps, whole.rows)
        assert (whole.steps, whole.rows) == (7, sum(file.positives or file.rows for file in spec.train))
        assert [point.loss for point in other.metrics] == pytest.approx([p.loss for p in whole.metrics], rel=1e-4)
        a, b = (load_checkpoint(str(tmp_path / name)).state_dict() for name in ("whole", f"out{processes}"))
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_the_item_item_part_is_not_of_the_training(tmp_path: Path) -> None:
    """It is fitted beside it, so that a run resumes after its settings were changed."""
    spec = make_spec(tmp_path)
    without = spec.model_copy(update={"model": spec.model.model_copy(update={"item_item": None})})
    wider = spec.model_copy(update={"model": spec.model.model_copy(update={"dim": spec.model.dim * 2})})
    assert identity(spec) == identity(without) != identity(wider)

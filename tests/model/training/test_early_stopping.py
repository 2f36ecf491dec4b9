"""Early stopping keeps the state of the epoch with the lowest validation loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from model.training.checkpoint import load_checkpoint, read_state
from model.training.early_stopping import best_epoch, is_over
from model.training.launch import launch
from model.training.spec import EarlyStopping, EpochMetrics, TrainingResult, TrainingSpec
from model.training.trainer import train
from tests.model import toy_night
from tests.model.training.test_resume import EVERYTHING, assert_same, interrupt

VALID = [90, 70]
LOSS = EVERYTHING | {"hard_ramp": None, "temperature": 0.1}  # The ramp depends on the largest number of epochs.


def make_spec(folder: Path, **training: Any) -> TrainingSpec:
    """A night of 5 steps per epoch that overfits within a few epochs, with all kinds of state."""
    return toy_night.make_spec(
        folder, [70, 71, 69], {"id_dropout": 0.1, "dropout": 0.1, "history_dropout": 0.1}, LOSS,
        {"batch_size": 42, "embedding_rows_sparse": 50, "checkpoint_steps": 3, "embedding_learning_rate": 0.2, **training},
        epochs=16, resume=str(folder / "progress"), output=str(folder / "checkpoint"),
        valid=toy_night.write_samples(folder / "held_out", VALID, seed=1),
        early_stopping=EarlyStopping(patience=1),
    )  # fmt: skip


def fixed(spec: TrainingSpec, epochs: int) -> TrainingSpec:
    """The same training with a fixed number of epochs."""
    output = f"{spec.output}-{epochs}"
    return spec.model_copy(update={"early_stopping": None, "resume": None, "epochs": epochs, "output": output})


def assert_same_state(one: str, other: str) -> None:
    for read in (read_state, lambda folder: load_checkpoint(folder).state_dict()):
        a, b = read(one), read(other)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def valid_losses(result: TrainingResult) -> list[float]:
    values = [epoch.valid_loss for epoch in result.epochs]
    assert all(value is not None for value in values)
    return values  # type: ignore[return-value]


def epochs_of(*values: float) -> list[EpochMetrics]:
    return [
        EpochMetrics(epoch=n, loss=1.0, valid_loss=value, valid_recall_in_batch=0.5, seconds=1.0)
        for n, value in enumerate(values)
    ]


def test_it_stops_after_epochs_that_are_no_better() -> None:
    assert best_epoch(epochs_of(3.1, 2.3, 2.3, 2.4)) == 1, "of equal epochs the first"
    assert [is_over(epochs_of(3.1, 2.3, 2.3, 2.4), patience) for patience in (1, 2, 3)] == [True, True, False]
    assert not is_over(epochs_of(3.1, 2.3), 1)
    assert not is_over([], 1)


def test_it_needs_rows_to_measure_on_and_a_folder(tmp_path: Path) -> None:
    spec = make_spec(tmp_path).model_dump()
    for missing, message in (({"valid": []}, "rows in `valid`"), ({"resume": None}, "`resume`")):
        with pytest.raises(ValidationError, match=message):
            TrainingSpec.model_validate(spec | missing)


@pytest.mark.trains
def test_the_checkpoint_is_that_of_the_best_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bit for bit the parameters, optimisers and frequencies of a training with that number of epochs."""
    caplog.set_level("INFO", "nightjar.training")
    spec = make_spec(tmp_path)
    result = train(spec)
    best = result.best_epoch
    assert best is not None
    assert len(result.epochs) == best + 2 < 16
    losses = valid_losses(result)
    assert losses[best] == min(losses) < losses[0], "not the first epoch"
    shorter = train(fixed(spec, best + 1))
    assert_same_state(spec.output, fixed(spec, best + 1).output)
    assert result.temperature == shorter.temperature
    assert result.kept_epoch.loss == shorter.epochs[-1].loss
    assert result.kept_metrics.step == 5 * (best + 1) == shorter.metrics[-1].step
    assert (
        f"epoch {best + 1} of at most 16: loss {min(losses):.4f} on the held-out hours, the best so far" in caplog.text
    )
    assert f"training: keeps epoch {best + 1} of {best + 2}" in caplog.text
    states = [path.name for path in Path(str(spec.resume)).iterdir() if path.name.startswith("best-")]
    assert [name.rpartition("=")[2] for name in states] == [str(best)], "earlier states are deleted"


@pytest.mark.parametrize("checkpoint_steps", [3, 12])
@pytest.mark.trains
def test_a_resumed_run_keeps_the_same_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_steps: int
) -> None:
    """Killed in the epoch after the best one, and killed again. Checkpoints are denser and rarer than epochs."""
    spec = make_spec(tmp_path, checkpoint_steps=checkpoint_steps)
    whole = train(spec.model_copy(update={"resume": str(tmp_path / "other"), "output": str(tmp_path / "whole")}))
    steps = [epoch.step for epoch in whole.epochs]
    for after in (steps[0] + 1, steps[-2] + 1, steps[-1] - 1):
        interrupt(spec, monkeypatch, after)
    assert_same(whole, train(spec), [str(tmp_path / "whole"), spec.output])


def test_states_of_another_run_in_the_same_folder_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is killed after its best epoch, another one is started and killed, and the first one resumes."""
    spec = make_spec(tmp_path)
    whole = train(spec.model_copy(update={"resume": str(tmp_path / "other"), "output": str(tmp_path / "whole")}))
    interrupt(spec, monkeypatch, whole.epochs[-1].step - 1)
    interrupt(spec.model_copy(update={"seed": 8}), monkeypatch, 7)
    assert_same(whole, train(spec), [str(tmp_path / "whole"), spec.output])


@pytest.mark.processes
@pytest.mark.slow
def test_two_processes_keep_the_same_epoch(tmp_path: Path) -> None:
    """With sharded tables. The result is that of two processes with that number of epochs, up to the order of sums."""
    spec = make_spec(tmp_path, processes=2, embedding_rows_sharded=20, timeout_seconds=60)
    result = launch(spec)
    best = result.best_epoch
    assert best is not None
    assert len(result.epochs) == best + 2
    launch(fixed(spec, best + 1))
    for read in (read_state, lambda folder: load_checkpoint(folder).state_dict()):
        kept, shorter = read(spec.output), read(fixed(spec, best + 1).output)
        assert kept.keys() == shorter.keys()
        for name in kept:
            torch.testing.assert_close(kept[name], shorter[name], rtol=1e-4, atol=1e-5, msg=name)

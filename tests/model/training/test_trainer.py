"""Training runs: results, reproducibility, precision, and the learned temperature."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.network.two_tower import TwoTower
from model.serving.embed import embed_users
from model.training.build import build_step
from model.training.checkpoint import load_checkpoint
from model.training.launch import launch
from model.training.spec import EpochMetrics
from model.training.step import TEMPERATURES
from model.training.trainer import train
from tests.model import toy_night


def test_the_result_describes_the_run(tmp_path: Path) -> None:
    spec = toy_night.make_spec(
        tmp_path, [500] * 4, training={"learning_rate": 5e-3, "embedding_learning_rate": 2e-2}, epochs=4
    )
    result = launch(spec)
    assert result.rows == 4 * 2000
    assert result.steps == 4 * 32
    assert result.metrics[-1].loss < result.metrics[0].loss
    assert result.epochs[-1].valid_recall_in_batch is not None
    assert all(0 <= point.data_wait_share <= 1 for point in result.metrics)
    assert result.masked["shared"] > 0
    assert result.rows_without_negatives == 0


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
@pytest.mark.trains
def test_the_same_seed_gives_the_same_parameters_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    spec = toy_night.make_spec(
        tmp_path, [60, 61, 62], training={"optimizer": optimizer}, model={"id_dropout": 0.2}, epochs=2
    )
    states = []
    for seed in (7, 7, 8):
        torch.rand(3)  # The random state of the caller must not matter.
        train(spec.model_copy(update={"seed": seed}))
        states.append(load_checkpoint(spec.output).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_learned_temperature_stays_within_its_limits_and_can_leave_them(tmp_path: Path) -> None:
    for start, limit in ((5.0, TEMPERATURES[1]), (0.001, TEMPERATURES[0])):
        loss = {"learned_temperature": True, "temperature": start}
        spec = toy_night.make_spec(tmp_path, [400], loss=loss, training={"learning_rate": 0.02}, epochs=5)
        step = build_step(spec)
        assert float(torch.as_tensor(step.temperature).detach()) == pytest.approx(limit)
        temperature = train(spec).temperature
        assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
        assert temperature != pytest.approx(limit, rel=0.01), "it can move away from the limit"


@pytest.mark.parametrize(("kind", "correction"), [("listwise", "mns"), ("pointwise", "none"), ("hinge", "classic")])
@pytest.mark.trains
def test_bfloat16_reaches_about_the_same_loss(tmp_path: Path, kind: str, correction: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        loss = {"temperature": 0.05, "kind": kind, "correction": correction}
        spec = toy_night.make_spec(tmp_path, [300], loss=loss, training={"precision": precision}, epochs=2)
        result = train(spec)
        assert result.epochs[-1].loss < result.epochs[0].loss
        losses.append(result.epochs[-1].loss)
        vectors = embed_users(load_checkpoint(spec.output), toy_night.sample_rows(10))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.trains
def test_sparse_tables_are_trained(tmp_path: Path) -> None:
    for optimizer in ("adamw", "adagrad"):
        spec = toy_night.make_spec(
            tmp_path, [200, 200], training={"embedding_rows_sparse": 20, "optimizer": optimizer}, epochs=3
        )
        result = train(spec)
        assert result.epochs[-1].loss < result.epochs[0].loss


@pytest.mark.trains
def test_what_is_called_after_an_epoch_sees_the_towers_changes_nothing_and_may_end_training(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [200], model={"id_dropout": 0.2}, epochs=3)
    without = train(spec).without_timings()
    parameters = load_checkpoint(spec.output).state_dict()
    seen = []

    def embed(epochs: list[EpochMetrics], towers: TwoTower) -> None:
        torch.rand(3)
        seen.append((len(epochs), embed_users(towers, toy_night.sample_rows(5))))
        assert not towers.training

    assert launch(spec, embed).without_timings() == without
    assert [number for number, _ in seen] == [1, 2, 3]
    assert not np.array_equal(seen[0][1], seen[1][1])
    again = load_checkpoint(spec.output).state_dict()
    assert all(torch.equal(parameters[name], again[name]) for name in parameters)

    def stop(epochs: list[EpochMetrics], towers: TwoTower) -> None:
        raise InterruptedError

    other = spec.model_copy(update={"output": str(tmp_path / "other")})
    with pytest.raises(InterruptedError):
        launch(other, stop)
    assert not (tmp_path / "other").exists()

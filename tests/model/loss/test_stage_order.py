"""The order of the ranking stages as a loss: by hand, and in a training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.loss.stage_order import stage_order
from model.training.launch import launch
from pipelines.contract.negative_kinds import COARSE, FINE, MINED, NONE, POPULARITY
from tests.model import toy_night

SOFTPLUS = {gap: np.log1p(np.exp(gap)) for gap in (-1.0, 0.0, 1.0)}


def loss_of(cosines: list[list[float]], kinds: list[list[int]], items: list[list[int]], rows: int = 2) -> float:
    """Of users whose vector is [1], at temperature 0.5."""
    vectors_BKd = torch.tensor(cosines, dtype=torch.float64)[..., None]
    users_Bd = torch.ones(len(cosines), 1, dtype=torch.float64)
    return float(stage_order(users_Bd, vectors_BKd, torch.tensor(items), torch.tensor(kinds), 0.5, rows))


def test_the_mean_over_coarse_ones_by_hand() -> None:
    """Row 0: fine 0.5 and coarse 0.0 and 1.0. Row 1: two fine ones, and no pair."""
    kinds = [[FINE, COARSE, COARSE], [FINE, FINE, NONE]]
    expected = (SOFTPLUS[-1.0] + SOFTPLUS[1.0]) / 2
    assert loss_of([[0.5, 0.0, 1.0], [0.5, 0.0, 0.0]], kinds, [[4, 5, 6], [4, 5, 0]]) == pytest.approx(expected / 2)
    assert loss_of([[0.5, 0.0, 1.0]], kinds[:1], [[4, 5, 6]], rows=1) == pytest.approx(expected)


def test_the_sum_over_fine_ones_by_hand() -> None:
    """Fine 0.5 and 0.0, coarse 0.0: a row with more fine negatives weighs more."""
    found = loss_of([[0.5, 0.0, 0.0]], [[FINE, FINE, COARSE]], [[4, 5, 6]], rows=1)
    assert found == pytest.approx(SOFTPLUS[-1.0] + SOFTPLUS[0.0])


def test_masked_negatives_and_other_kinds_are_in_no_pair() -> None:
    cosines, items = [[0.5, 0.0, 1.0, 0.9]], [[4, 5, 0, 7]]
    for other in (MINED, POPULARITY):
        assert loss_of(cosines, [[FINE, COARSE, COARSE, other]], items, 1) == pytest.approx(SOFTPLUS[-1.0])
    assert loss_of(cosines, [[MINED, COARSE, COARSE, MINED]], items, 1) == 0.0


def test_gradients_raise_what_was_kept_and_lower_what_was_dropped() -> None:
    hard_BKd = torch.zeros(1, 3, 2).requires_grad_()
    users_Bd = torch.tensor([[1.0, 0.0]])
    stage_order(
        users_Bd, hard_BKd, torch.tensor([[4, 5, 0]]), torch.tensor([[FINE, COARSE, COARSE]]), 0.5, 1
    ).backward()
    assert hard_BKd.grad is not None
    # d softplus(0) / d s_c = 1/2, and s is the cosine divided by 0.5.
    assert hard_BKd.grad.tolist() == [[[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]


def test_training_learns_the_order_and_records_its_loss(tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 1e-6, 2.0):
        loss = {"stage_weight": weight, "hard_weight": 1e-3}
        metrics = launch(toy_night.make_spec(tmp_path / str(weight), [200, 200], loss=loss, epochs=6)).metrics
        found[weight] = metrics[-1].stage_loss
    assert found[0.0] == 0.0
    assert found[2.0] < 0.9 * found[1e-6], "the weight decides whether the order is learned"

"""Sampled softmax with skewed samplers converges to full softmax if it is corrected, and does not otherwise."""

import pytest
import torch

from benchmarks.consistency import FULL, Problem, divergence, learn, tilt

STEPS = 500


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.make(seed=3)


@pytest.fixture(scope="module")
def full(problem: Problem) -> torch.Tensor:
    return learn(problem, FULL, STEPS, seed=3)


@pytest.mark.parametrize(
    ("correction", "frequencies"),
    [("classic", "exact"), ("mns", "exact"), ("revisited", "exact"), ("mns", "streaming"), ("none", "exact")],
)
@pytest.mark.slow
def test_a_corrected_loss_converges_to_full_softmax(
    problem: Problem, full: torch.Tensor, correction: str, frequencies: str
) -> None:
    learned = learn(problem, correction, STEPS, seed=3, frequencies=frequencies)
    if correction == "none":
        assert divergence(problem, learned) > 4 * divergence(problem, full)
        assert tilt(problem, learned) < -0.8, "without correction, items that are sampled often get low scores"
    else:
        assert divergence(problem, learned) < 1.5 * divergence(problem, full)
        assert abs(tilt(problem, learned) - tilt(problem, full)) < 0.1

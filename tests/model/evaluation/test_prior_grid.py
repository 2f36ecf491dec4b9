"""The recency prior is chosen by the recall of held-out events, and only if its gain is certain."""

import numpy as np
import pytest

from model.evaluation import prior_grid
from model.evaluation.prior_grid import (
    GridPoint,
    Targets,
    choose,
    count_better,
    excluded_pairs,
    expected_point,
    grid_points,
)
from model.serving.recency_prior import bonus_of, with_bonus, with_scale

POINTS = grid_points([0.0, 0.5, 2.0], 14.0)


def test_the_grid_is_in_ascending_order_and_has_one_point_without_a_prior() -> None:
    assert grid_points([1, 0, 0.5], 7) == [GridPoint(0, None), GridPoint(0.5, 7), GridPoint(1, 7)]
    assert grid_points([0.5], 7) == [GridPoint(0.5, 7)]


@pytest.mark.parametrize("cells", [1, 70, 16_000_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_better_items_in_any_batches_are_those_of_all_scores(
    seed: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior_grid, "CELLS", cells)
    rng = np.random.default_rng(seed)
    users, items = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    index = rng.permutation(60)[:30].astype(np.int64)
    bonus = rng.random((3, 30))
    place = rng.integers(0, 30, 9)
    excluded = [rng.choice(60, 5, replace=False) for _ in range(9)]
    pairs = excluded_pairs(index[place], excluded)
    targets = Targets(users, index[place], items[place], bonus[:, place], pairs)
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    better = sum(count_better(targets, index[part], items[part], bonus[:, part]) for part in parts)
    for point in range(3):
        scores = users @ items.T + bonus[point]
        for event in range(9):
            others = ~np.isin(index, excluded[event]) & (index != index[place[event]])
            expected = int((scores[event, others] > scores[event, place[event]]).sum())
            assert better[point, event] == expected


def test_the_strongest_prior_with_a_certain_gain_is_chosen() -> None:
    rng = np.random.default_rng(0)
    owners = np.arange(400)
    rates = {0.0: 0.1, 0.5: 0.3, 2.0: 0.31}
    hits = np.stack([rng.random(400) < rates[point.beta] for point in POINTS])
    chosen, measured = choose(POINTS, hits, owners, 300, seed=1)
    assert chosen == GridPoint(0.5, 14)  # The gain of beta 2 over it is not certain.
    assert [point.beta for point in measured] == [point.beta for point in POINTS]
    compared = {point.beta: point.certain_gain for point in measured if point.certain_gain is not None}
    assert compared[0.5] > 0
    assert compared[2.0] <= 0
    assert measured[0].recall == hits[0].mean()


def test_ties_go_to_the_smallest_beta() -> None:
    hits = np.tile(np.arange(200) % 3 == 0, (len(POINTS), 1))
    assert choose(POINTS, hits, np.arange(200), 300, seed=1)[0] == GridPoint(0, None)
    without_zero = [point for point in POINTS if point.beta]
    assert choose(without_zero, hits[1:], np.arange(200), 300, seed=1)[0] == GridPoint(0.5, 14)


def test_a_model_of_lift_keeps_the_strength_1_unless_another_one_is_certainly_better() -> None:
    points = grid_points([0.0, 0.5, 1.0, 2.0], 14.0)
    assert expected_point(points, 1.0) == GridPoint(1.0, 14.0)
    assert expected_point(points, 0.0) == GridPoint(0.0, None)
    owners = np.arange(300)
    even = np.tile(owners < 100, (len(points), 1))
    assert choose(points, even, owners, 300, seed=1, expected_beta=1.0)[0] == GridPoint(1.0, 14.0)
    weaker = np.stack([owners < {0.0: 10, 0.5: 160, 1.0: 100, 2.0: 101}[point.beta] for point in points])
    chosen, measured = choose(points, weaker, owners, 300, seed=1, expected_beta=1.0)
    assert chosen.beta == 0.5
    assert [point.beta for point in measured] == [point.beta for point in points]


def test_a_gain_may_be_certain_only_for_a_large_beta() -> None:
    owners = np.arange(300)
    hits = np.stack([owners < {0.0: 60, 0.5: 61, 2.0: 100}[point.beta] for point in POINTS])
    assert choose(POINTS, hits, owners, 300, seed=1)[0].beta == 2.0


def test_folded_vectors_score_as_the_formula() -> None:
    """Inner products differ from the score by the factor tau and one constant, so rankings are the same."""
    rng = np.random.default_rng(3)
    users, items = (rng.normal(size=(n, 4)).astype(np.float32) for n in (5, 20))
    counts, beta, tau, unseen = rng.integers(0, 50, 20).astype(float), 1.5, 0.07, 0.5
    p_recent = (counts + unseen) / (counts + unseen).sum()
    score = users @ items.T / tau + beta * np.log(p_recent)
    bonus = bonus_of(counts, beta, tau, unseen)
    assert bonus[counts == 0] == pytest.approx(0)
    for scale in (1.0, 3.0):
        folded = with_scale(users, scale) @ with_bonus(items, bonus, scale).T
        constant = score - folded / tau
        assert np.ptp(constant) < 1e-4
        assert constant[0, 0] == pytest.approx(beta * np.log(unseen / (counts + unseen).sum()), abs=1e-4)
    assert with_scale(users, None) is users

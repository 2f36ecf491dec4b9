"""The listwise loss against a float64 oracle that lists every candidate, and what must hold whatever the numbers."""

from typing import Any

import numpy as np
import pytest
import torch

from model import correction
from model.candidates import COARSE, FINE, POPULARITY, UNIFORM, Candidates, Rows, collect_candidates
from model.catalogue import SamplingProbabilities
from model.losses import MASKED, exclude, listwise_losses, positive_ranks, weighted_mean

ROWS, K, LENGTH, ITEMS, DIM = 12, 5, 4, 20, 6
SEEDS = range(5)


def make(seed: int) -> dict[str, Any]:
    """A random batch in which everything happens: repeats, history hits, unknown users, padding."""
    draw = np.random.default_rng(seed)
    items = draw.integers(2, ITEMS, ROWS)
    history = draw.integers(0, ITEMS, (ROWS, LENGTH)) * (draw.random((ROWS, LENGTH)) < 0.7)
    kinds = draw.integers(0, 5, (ROWS, K))
    negatives = draw.integers(2, ITEMS, (ROWS, K)) * (kinds > 0)
    unit = draw.normal(size=(ITEMS + ROWS, DIM))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    q = draw.random((3, ITEMS)) * (np.arange(ITEMS) > 1)
    return {
        "users": draw.integers(1, 6, ROWS), "items": items, "history": history, "kinds": kinds, "negatives": negatives,
        "user_vectors": unit[ITEMS:], "item_vectors": unit[:ITEMS], "q": q / q.sum(1, keepdims=True),
        "weights": draw.random(ROWS) * 2,
    }  # fmt: skip


def rows_of(case: dict[str, Any]) -> Rows:
    return Rows(*(torch.from_numpy(case[name]) for name in ("users", "items", "negatives", "kinds")))


def losses(case: dict[str, Any], temperature: float, corrected: bool) -> tuple[torch.Tensor, Candidates]:
    rows = rows_of(case)
    candidates = collect_candidates(rows, rows, torch.from_numpy(case["history"]))
    vectors = torch.from_numpy(case["item_vectors"]).float()
    q = SamplingProbabilities(*torch.from_numpy(case["q"]).float())
    log_q_U = correction.classic(candidates, q) if corrected else None
    users_Bd = torch.from_numpy(case["user_vectors"]).float()
    result = listwise_losses(
        users_Bd, vectors[candidates.items_U], vectors[candidates.hard_BK], candidates, temperature, log_q_U
    )
    return result, candidates


def oracle(case: dict[str, Any], temperature: float, corrected: bool) -> np.ndarray:
    """Row by row, candidate by candidate, repeats and all."""
    easy = (case["kinds"] == UNIFORM) | (case["kinds"] == POPULARITY)
    pool = [*case["items"], *case["negatives"][easy]]
    expected = (
        ROWS * case["q"][0]
        + (case["kinds"] == UNIFORM).sum() * case["q"][1]
        + (case["kinds"] == POPULARITY).sum() * case["q"][2]
    )
    result = []
    for row in range(ROWS):
        user, positive = case["users"][row], case["items"][row]
        banned = {positive, *case["history"][row]}
        if user > 1:
            banned |= set(case["items"][case["users"] == user])

        def logit(item: int, correct: bool, row: int = row) -> float:
            score = case["user_vectors"][row] @ case["item_vectors"][item] / temperature
            return score - np.log(expected[item]) if correct else score

        terms = [logit(positive, corrected)]
        terms += [logit(item, corrected) for item in pool if item not in banned]
        hard = case["negatives"][row][(case["kinds"][row] == COARSE) | (case["kinds"][row] == FINE)]
        terms += [logit(item, False) for item in hard if item != positive and item not in case["history"][row]]
        result.append(np.logaddexp.reduce(terms) - terms[0])
    return np.array(result)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_equals_the_oracle(seed: int, corrected: bool, temperature: float) -> None:
    case = make(seed)
    found, _ = losses(case, temperature, corrected)
    np.testing.assert_allclose(found, oracle(case, temperature, corrected), rtol=2e-5, atol=2e-5)


def test_a_case_by_hand() -> None:
    """Two rows, scores 1 and 0, one uniform negative each, tau 1, all expected counts 2 x 1/4 + 2 x 1/4 = 1."""
    rows = Rows(torch.tensor([2, 3]), torch.tensor([2, 3]), torch.tensor([[4], [4]]), torch.tensor([[1], [1]]))
    candidates = collect_candidates(rows, rows, None)
    assert candidates.items_U.tolist() == [2, 3, 4]
    assert candidates.counts_U.tolist() == [1, 1, 2]
    quarter = torch.full((6,), 0.25)
    log_q_U = correction.classic(candidates, SamplingProbabilities(quarter, quarter, quarter))
    assert log_q_U.tolist() == [0, 0, 0]
    axes = torch.eye(3)
    found = listwise_losses(axes[:2], axes, torch.zeros(2, 1, 3), candidates, 1.0, log_q_U)
    # exp(1) for the positive, 1 for the other row's, 1 twice for item 4 that entered twice.
    np.testing.assert_allclose(found, np.log((np.e + 3) / np.e), rtol=1e-6)
    np.testing.assert_allclose(
        weighted_mean(found, torch.tensor([1.0, 3.0]), 2), 2 * np.log((np.e + 3) / np.e), rtol=1e-6
    )


def test_an_in_batch_expected_count_is_batch_size_times_q() -> None:
    rows = Rows(torch.tensor([2, 3]), torch.tensor([2, 3]), torch.zeros(2, 1).long(), torch.zeros(2, 1).long())
    candidates = collect_candidates(rows, rows, None)
    q = torch.tensor([0, 0, 0.75, 0.25])
    np.testing.assert_allclose(correction.expected_counts(candidates, SamplingProbabilities(q, q, q)), [1.5, 0.5])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_positive_is_never_masked(seed: int) -> None:
    case = make(seed)
    case["history"][:, 0] = case["items"]  # Even where a history holds it.
    _, candidates = losses(case, 0.07, True)
    kept = exclude(torch.zeros(ROWS, len(candidates.items_U)), candidates)
    assert (kept.gather(1, candidates.positive_B[:, None]) == 0).all()
    assert (candidates.items_U[candidates.positive_B] == torch.from_numpy(case["items"])).all()
    known = [set(row) - {case["items"][place], 0} for place, row in enumerate(case["history"])]
    for row, items in enumerate(known):
        places = [place for place, item in enumerate(candidates.items_U.tolist()) if item in items]
        assert (kept[row, places] == MASKED).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_negatives_and_rows_changes_nothing(seed: int) -> None:
    case, draw = make(seed), np.random.default_rng(100 + seed)
    found, _ = losses(case, 0.07, True)
    columns, order = draw.permutation(K), draw.permutation(ROWS)
    shuffled = {**case, "negatives": case["negatives"][:, columns], "kinds": case["kinds"][:, columns]}
    np.testing.assert_allclose(losses(shuffled, 0.07, True)[0], found, rtol=1e-5)
    for name in ("users", "items", "history", "kinds", "negatives", "user_vectors"):
        shuffled[name] = shuffled[name][order]
    np.testing.assert_allclose(losses(shuffled, 0.07, True)[0], found[torch.from_numpy(order)], rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_temperature_of_one_hundredth_stays_finite_with_finite_gradients(seed: int) -> None:
    case = make(seed)
    case["item_vectors"][case["items"]] = -case["user_vectors"]  # The worst: every positive opposite to its user.
    users_Bd = torch.from_numpy(case["user_vectors"]).float().requires_grad_()
    rows = rows_of(case)
    candidates = collect_candidates(rows, rows, torch.from_numpy(case["history"]))
    vectors = torch.from_numpy(case["item_vectors"]).float().requires_grad_()
    found = listwise_losses(users_Bd, vectors[candidates.items_U], vectors[candidates.hard_BK], candidates, 0.01, None)
    found.sum().backward()
    assert found.isfinite().all()
    assert users_Bd.grad is not None
    assert users_Bd.grad.isfinite().all()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_candidates_get_no_gradient(seed: int) -> None:
    case = make(seed)
    rows = rows_of(case)
    candidates = collect_candidates(rows, rows, torch.from_numpy(case["history"]))
    vectors = torch.from_numpy(case["item_vectors"]).float().requires_grad_()
    users_Bd = torch.from_numpy(case["user_vectors"]).float()
    for row in range(ROWS):
        vectors.grad = None
        listwise_losses(users_Bd, vectors[candidates.items_U], vectors[candidates.hard_BK], candidates, 0.07, None)[
            row
        ].backward()
        masked = candidates.items_U[candidates.excluded_places_E[candidates.excluded_rows_E == row]]
        own_hard = set(candidates.hard_BK[row].tolist())
        assert vectors.grad is not None
        for item in masked.tolist():
            assert item in own_hard or (vectors.grad[item] == 0).all()


def test_ranks_count_better_candidates_only() -> None:
    rows = Rows(torch.tensor([2, 3]), torch.tensor([2, 3]), torch.tensor([[4], [5]]), torch.tensor([[1], [1]]))
    candidates = collect_candidates(rows, rows, torch.tensor([[0, 5], [0, 0]]))
    items_Ud = torch.tensor([[0.5], [0.1], [0.9], [1.0]])
    # Row 0: item 4 is better, item 5 too but in its history. Row 1: all three are better.
    assert positive_ranks(torch.ones(2, 1), items_Ud, candidates).tolist() == [1, 3]


def test_a_positive_that_is_padding_is_refused() -> None:
    rows = Rows(torch.tensor([2]), torch.tensor([0]), torch.tensor([[4]]), torch.tensor([[1]]))
    with pytest.raises(ValueError, match="1 rows have item 0"):
        collect_candidates(rows, rows, None)

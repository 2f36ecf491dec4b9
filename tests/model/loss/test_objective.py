"""The objective of a step: gradients, blocks of rows, numerical range, and rows without negatives."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.loss import losses, objective
from model.loss.candidates import BatchRows, collect_candidates
from model.loss.logq import logit_offsets, other_draws
from model.loss.losses import Logits
from model.loss.objective import batch_loss, logits_of, row_losses, vectors_of
from pipelines.contract.negative_kinds import POPULARITY, UNIFORM
from tests.model.loss.random_batch import (
    CORRECTIONS,
    DIM,
    KINDS,
    ROWS,
    SEEDS,
    candidates_of,
    expected_of,
    losses_of,
    make,
)


@pytest.mark.parametrize(("kind", "correction"), [*itertools.product(KINDS, ("none", "mns")), ("listwise", "classic")])
def test_gradients_match_finite_differences(kind: Any, correction: Any) -> None:
    """Numerical check for users, items, hard negatives and temperature. Not for revisited, which stops a gradient.

    pointwise is checked with a factor on the positive's part (gBCE).
    """
    case = make(1)
    candidates = candidates_of(case)
    expected_U = None if correction == "none" else expected_of(case, candidates)
    calibration = 0.75 if kind == "pointwise" else 0.0
    config = LossConfig(kind=kind, correction=correction, margin=0.3, gbce_calibration=calibration)
    items_Md = torch.from_numpy(case["item_vectors"])
    inputs = [
        torch.from_numpy(case["user_vectors"]),
        items_Md[candidates.items_U],
        items_Md[candidates.hard_BK],
        torch.tensor(0.5, dtype=torch.float64),
    ]

    def row_losses_of(
        users: torch.Tensor, items: torch.Tensor, hard: torch.Tensor, temperature: torch.Tensor
    ) -> torch.Tensor:
        return row_losses(users, items, hard, candidates, expected_U, temperature, config, 40).losses_B

    assert torch.autograd.gradcheck(row_losses_of, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize(
    ("kind", "correction", "top_k"),
    [
        *((kind, correction, None) for kind, correction in itertools.product(KINDS, CORRECTIONS)),
        *(("listwise", correction, 3) for correction in CORRECTIONS[1:]),
    ],
)
@pytest.mark.parametrize("block", [1, 60, 10**6])
def test_losses_and_gradients_do_not_depend_on_the_block_size(
    kind: Any, correction: Any, top_k: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, row losses and gradients with one row per block, a few rows per block, and all rows in one block."""
    monkeypatch.setattr(objective, "BLOCK", block)
    case = make(3)
    candidates = candidates_of(case)
    expected_U = None if correction == "none" else expected_of(case, candidates)
    config = LossConfig(kind=kind, correction=correction, margin=0.3, top_k=top_k, top_k_temperature=0.2)
    weights_B, items_Md = torch.from_numpy(case["weights"]), torch.from_numpy(case["item_vectors"])

    def inputs() -> list[torch.Tensor]:
        vectors = [torch.from_numpy(case["user_vectors"]), items_Md[candidates.items_U], items_Md[candidates.hard_BK]]
        leaves = [*vectors, torch.tensor(0.5, dtype=torch.float64)]
        return [leaf.clone().requires_grad_() for leaf in leaves]

    whole, blocks = inputs(), inputs()
    expected = row_losses(*whole[:3], candidates, expected_U, whole[3], config)
    loss = losses.weighted_mean(expected.losses_B, weights_B, candidates.rows)
    (3 * loss).backward()
    actual = batch_loss(*blocks[:3], weights_B, candidates, expected_U, blocks[3], config)
    (3 * actual.loss).backward()
    torch.testing.assert_close(actual.loss, loss)
    torch.testing.assert_close(actual.losses_B, expected.losses_B.detach())
    assert actual.contrasted_B.equal(expected.contrasted_B)
    for one, other in zip(blocks, whole):
        torch.testing.assert_close(one.grad, other.grad)
    with torch.no_grad():
        again = batch_loss(*blocks[:3], weights_B, candidates, expected_U, blocks[3], config)
    assert again.loss.equal(actual.loss)
    assert again.losses_B.equal(actual.losses_B)


def test_the_weight_in_revisited_has_no_gradient() -> None:
    case = make(2)
    candidates = candidates_of(case)
    users_Bd = torch.from_numpy(case["user_vectors"]).requires_grad_()
    items_Md = torch.from_numpy(case["item_vectors"])
    expected_U = expected_of(case, candidates)
    offsets, draws = logit_offsets("revisited", candidates, expected_U), other_draws(candidates, expected_U)

    def logits() -> Logits:
        items_Ud, hard_BKd = items_Md[candidates.items_U], items_Md[candidates.hard_BK]
        return logits_of(vectors_of(users_Bd, items_Ud, hard_BKd, candidates, 0.3), candidates, offsets)

    row_logits = logits()
    n_B = draws.actual_B
    others_B = row_logits.shared_BU.exp().sum(1) * draws.expected_B + n_B * row_logits.hard_BK.exp().sum(1)
    log_ratio_B = others_B.log() - row_logits.positive_B
    weight_B = (1 / (1 + n_B * row_logits.positive_B.exp() / others_B)).detach()
    (expected,) = torch.autograd.grad((weight_B * log_ratio_B).sum(), users_Bd)
    (gradient,) = torch.autograd.grad(losses.listwise_revisited(logits(), draws).sum(), users_Bd)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_scale_of_expected_counts_matters_only_in_mns(seed: int) -> None:
    """Compares classic and mns on a batch without hard negatives, whose weights are absolute."""
    case = make(seed)
    case["kinds"] = np.where(case["kinds"] > POPULARITY, UNIFORM, case["kinds"])
    candidates = candidates_of(case)
    items_Md, users_Bd = torch.from_numpy(case["item_vectors"]), torch.from_numpy(case["user_vectors"])
    expected_U = expected_of(case, candidates)

    def scaled(correction: Any, scale: float) -> torch.Tensor:
        config = LossConfig(correction=correction)
        hard_BKd = items_Md[candidates.hard_BK]
        items_Ud = items_Md[candidates.items_U]
        return row_losses(users_Bd, items_Ud, hard_BKd, candidates, scale * expected_U, 0.07, config).losses_B

    torch.testing.assert_close(scaled("classic", 7.0), scaled("classic", 1.0), rtol=1e-9, atol=1e-12)
    assert (scaled("mns", 7.0) - scaled("mns", 1.0)).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, CORRECTIONS))
def test_a_row_without_negatives_has_zero_loss_and_gradient(kind: Any, correction: Any) -> None:
    """Three rows of one user whose positives and history cover all candidates, and a row of another user."""
    users, items = torch.tensor([7, 7, 7, 8]), torch.tensor([2, 3, 2, 4])
    rows = BatchRows(users, items, torch.zeros(4, 1).long(), torch.zeros(4, 1).long())
    history_BL = torch.tensor([[4], [4], [4], [0]])
    candidates = collect_candidates(rows, rows, history_BL)
    rng = torch.Generator().manual_seed(0)
    users_Bd, items_Ud = torch.randn(4, DIM, generator=rng), torch.randn(3, DIM, generator=rng)
    users_Bd.requires_grad_()
    expected_U = None if correction == "none" else torch.ones(3)
    config = LossConfig(kind=kind, correction=correction)
    losses_B, contrasted_B = row_losses(
        users_Bd, items_Ud, torch.zeros(4, 1, DIM), candidates, expected_U, 0.07, config
    )
    assert contrasted_B.tolist() == [False, False, False, True]
    assert losses_B[:3].tolist() == [0, 0, 0]
    assert losses_B[3] != 0
    losses_B.sum().backward()
    assert users_Bd.grad is not None
    assert (users_Bd.grad[:3] == 0).all()
    assert users_Bd.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, CORRECTIONS))
def test_nan_does_not_count_as_a_row_without_negatives(kind: Any, correction: Any) -> None:
    case = make(0)
    case["user_vectors"][4] = np.nan
    assert losses_of(case, LossConfig(kind=kind, correction=correction)).isnan().tolist() == [
        row == 4 for row in range(ROWS)
    ]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, CORRECTIONS))
def test_losses_and_gradients_are_finite_at_temperature_001(kind: Any, correction: Any, half: bool) -> None:
    """In float32, and from bfloat16 vectors under autocast. Positives are opposite to their users: the worst case."""
    for seed in SEEDS:
        case = make(seed)
        case["item_vectors"][case["items"]] = -case["user_vectors"]
        candidates = candidates_of(case)
        dtype = torch.bfloat16 if half else torch.float32
        users_Bd = torch.from_numpy(case["user_vectors"]).to(dtype).requires_grad_()
        items_Md = torch.from_numpy(case["item_vectors"]).to(dtype).requires_grad_()
        expected_U = None if correction == "none" else expected_of(case, candidates).float()
        config = LossConfig(kind=kind, correction=correction, temperature=0.01)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses_B, _ = row_losses(
                users_Bd,
                items_Md[candidates.items_U],
                items_Md[candidates.hard_BK],
                candidates,
                expected_U,
                0.01,
                config,
            )
        assert losses_B.dtype == torch.float32
        assert losses_B.isfinite().all()
        losses_B.sum().backward()
        for tensor in (users_Bd, items_Md):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_masked_candidates_get_no_gradient(kind: Any) -> None:
    case = make(3)
    candidates = candidates_of(case)
    users_Bd = torch.from_numpy(case["user_vectors"])
    for row in range(ROWS):
        items_Ud = torch.from_numpy(case["item_vectors"])[candidates.items_U].requires_grad_()
        hard_BKd = torch.from_numpy(case["item_vectors"])[candidates.hard_BK]
        config = LossConfig(kind=kind, correction="none", temperature=0.5, margin=20.0)
        row_losses(users_Bd, items_Ud, hard_BKd, candidates, None, 0.5, config).losses_B[row].backward()
        masked = candidates.excluded_places_E[candidates.excluded_rows_E == row]
        assert items_Ud.grad is not None
        assert (items_Ud.grad[masked] == 0).all()
        open_ = set(range(len(items_Ud))) - set(masked.tolist())
        assert all((items_Ud.grad[place] != 0).any() for place in open_), "all other candidates get a gradient"

"""Weight, temperature, ramp and rows of hard negatives: by hand, and against a loop over all candidates."""

from typing import Any

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.loss import losses, objective
from model.loss.candidates import BatchRows, StepCandidates, collect_candidates
from model.loss.objective import batch_loss, row_losses
from pipelines.contract.negative_kinds import COARSE, FINE, MINED, NONE, UNIFORM
from tests.model.loss.random_batch import ITEMS, KINDS, ROWS, SEEDS, Case, expected_of, make, rows_of

E = np.e


def example(share_hard: bool = False) -> StepCandidates:
    """Positives 2 and 3, a uniform negative 4 in each row, and a mined negative 5 in row 0 only."""
    negatives, kinds = torch.tensor([[4, 5], [4, 0]]), torch.tensor([[UNIFORM, MINED], [UNIFORM, NONE]])
    rows = BatchRows(torch.tensor([2, 3]), torch.tensor([2, 3]), negatives, kinds)
    return collect_candidates(rows, rows, None, share_hard=share_hard)


def example_losses(config: LossConfig, scale: float = 1.0, share_hard: bool = False) -> list[float]:
    """Cosines 1 for both positives, 0 for item 4 and 0.5 for item 5. All expected counts are 1."""
    candidates = example(share_hard)
    cosines_M = torch.tensor([0, 0, 1, 1, 0, 0.5], dtype=torch.float64)[:, None]
    expected_U = None if config.correction == "none" else torch.ones(len(candidates.items_U), dtype=torch.float64)
    found = row_losses(
        torch.ones(2, 1, dtype=torch.float64), cosines_M[candidates.items_U], cosines_M[candidates.hard_BK],
        candidates, expected_U, config.temperature, config, hard_scale=scale,
    ).losses_B  # fmt: skip
    return found.tolist()


def test_a_weight_in_the_softmax_by_hand() -> None:
    """At temperature 1: e for the positive, e for the other positive, 2 for item 4, and w e^0.5 for the hard negative."""
    for weight in (0.25, 1.0, 3.0):
        config = LossConfig(correction="none", temperature=1.0, hard_weight=weight)
        expected = [np.log((2 * E + 2 + weight * E**0.5) / E), np.log((2 * E + 2) / E)]
        assert example_losses(config) == pytest.approx(expected)


def test_a_weight_in_revisited_by_hand() -> None:
    """A hard negative is `weight` more items of the catalogue: in the denominator n times that. Here N - e_p = n = 3."""
    config = LossConfig(correction="revisited", temperature=1.0, hard_weight=0.25)
    denominator = 3 * (E + 2) + 3 * 0.25 * E**0.5
    expected = (1 - E / (E + denominator / 3)) * np.log(denominator / E)
    assert example_losses(config)[0] == pytest.approx(expected)


def test_a_temperature_of_hard_negatives_by_hand() -> None:
    """Cosine 0.5 against a positive of 1, which has the logit 2: a difference of -0.5 / 0.8 in logits."""
    common = {"correction": "none", "temperature": 0.5, "hard_temperature": 0.8}
    hard = -0.5 / 0.8
    listwise = example_losses(LossConfig(**common))
    assert listwise[0] == pytest.approx(np.log(1 + 1 + 2 * np.exp(-2) + np.exp(hard)))
    assert listwise[1] == pytest.approx(np.log(1 + 1 + 2 * np.exp(-2)))
    hinge = example_losses(LossConfig(kind="hinge", margin=1.5, **common))
    assert hinge == pytest.approx([0.5 * (1.5 + 0 + 0) / 3 + 0.5 * (1.5 + hard), 1.5 / 3])
    logistic = example_losses(LossConfig(kind="logistic", **common))
    shared = (np.log(2) + 2 * np.log(1 + np.exp(-2))) / 3
    assert logistic == pytest.approx([0.5 * shared + 0.5 * np.log(1 + np.exp(hard)), shared])
    # Pointwise compares no scores: the logit of the hard negative is 0.5 / 0.8.
    pointwise = example_losses(LossConfig(kind="pointwise", **common))
    shared, positive = (np.log(1 + np.exp(2)) + 2 * np.log(2)) / 3, np.log(1 + np.exp(-2))
    mean = 0.5 * shared + 0.5 * np.log(1 + np.exp(0.5 / 0.8))
    assert pointwise == pytest.approx([positive + 3 * mean, positive + 3 * shared])


def test_the_temperature_of_the_others_changes_nothing() -> None:
    for kind in KINDS:
        same = LossConfig(kind=kind, temperature=0.5, hard_temperature=0.5)  # type: ignore[arg-type]
        plain = same.model_copy(update={"hard_temperature": None})
        assert example_losses(same) == example_losses(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ramp_starts_without_hard_negatives_and_ends_with_their_whole_weight(kind: Any) -> None:
    config = LossConfig(kind=kind, correction="none", temperature=0.5, margin=2.0, hard_share=0.4)
    none, half, whole = (example_losses(config, scale)[0] for scale in (0.0, 0.5, 1.0))
    if kind == "listwise":
        assert half == pytest.approx(np.log((np.exp(none) + np.exp(whole)) / 2))
        assert example_losses(config.model_copy(update={"hard_weight": 0.5}))[0] == pytest.approx(half)
    else:
        assert half == pytest.approx((none + whole) / 2)
        assert example_losses(config.model_copy(update={"hard_share": 0.2}))[0] == pytest.approx(half)
    assert none == pytest.approx(example_losses(config, 0.0)[1])  # Row 1 has the same candidates and no hard negative.
    assert none != pytest.approx(whole)


def test_hard_negatives_of_all_rows_by_hand() -> None:
    """Row 1 now has the hard negative of row 0 too."""
    config = LossConfig(correction="classic", temperature=1.0, hard_weight=0.25, hard_rows="all")
    expected = [np.log((2 * E + 2 + 0.25 * E**0.5) / E)] * 2
    assert example_losses(config, share_hard=True) == pytest.approx(expected)
    without = example_losses(config, 0.0, share_hard=True)
    assert without == pytest.approx([np.log((2 * E + 2) / E)] * 2)


def shared_case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Case, StepCandidates, list[torch.Tensor]]:
    case = make(seed)
    rows = rows_of(case)
    candidates = collect_candidates(rows, rows, torch.from_numpy(case["history"]), share_hard=True)
    items_Md = torch.from_numpy(case["item_vectors"]).to(dtype)
    users_Bd = torch.from_numpy(case["user_vectors"]).to(dtype)
    return case, candidates, [users_Bd, items_Md[candidates.items_U], items_Md[candidates.hard_BK]]


@pytest.mark.parametrize("correction", ["none", "classic", "mns"])
def test_losses_with_hard_negatives_of_all_rows_equal_a_loop_over_candidates(correction: Any) -> None:
    for seed in SEEDS:
        config = LossConfig(correction=correction, temperature=0.4, hard_weight=0.7, hard_rows="all")
        case, candidates, vectors = shared_case(seed)
        kinds, negatives = case["kinds"], case["negatives"]
        hard = negatives[np.isin(kinds, (COARSE, FINE, MINED))]
        entered = [*case["items"], *negatives[(kinds > NONE) & (kinds < COARSE)]]
        expected_U = None if correction == "none" else expected_of(case, candidates)
        draws = dict(
            zip(candidates.items_U.tolist(), (torch.ones(ITEMS) if expected_U is None else expected_U).tolist())
        )
        losses_B = row_losses(*vectors, candidates, expected_U, 0.4, config).losses_B
        for row in range(ROWS):
            user, positive = case["users"][row], case["items"][row]
            banned = {positive, *case["history"][row]}
            if user > 1:
                banned |= set(case["items"][case["users"] == user])
            score = np.exp(case["item_vectors"] @ case["user_vectors"][row] / 0.4)
            others = sum(score[item] / draws[item] for item in entered if item not in banned)
            others += 0.7 * sum(score[item] for item in hard if item not in banned)
            numerator = score[positive] / (draws[positive] if correction == "classic" else 1.0)
            np.testing.assert_allclose(losses_B[row], -np.log(numerator / (numerator + others)), rtol=1e-6)


def test_a_hard_negative_that_nothing_else_draws_has_a_finite_loss_and_gradient() -> None:
    """Its expected count is 0, its weight without the ramp too. SL@K does not count it as an item of the catalogue."""
    for scale, top_k in ((0.0, None), (0.5, None), (0.0, 2), (0.5, 2)):
        case, candidates, vectors = shared_case(1, torch.float32)
        assert candidates.hard_counts_U is not None
        expected_U = expected_of(case, candidates).float()
        only_hard = candidates.counts_U == 0
        assert 0 < int(only_hard.sum()) < len(only_hard)
        expected_U = expected_U.masked_fill(only_hard, 0.0)
        config = LossConfig(temperature=0.05, hard_rows="all", top_k=top_k)
        leaves = [vector.requires_grad_() for vector in vectors]
        losses_B = row_losses(*leaves, candidates, expected_U, 0.05, config, hard_scale=scale).losses_B
        losses_B.sum().backward()
        assert losses_B.isfinite().all()
        assert leaves[1].grad is not None
        assert leaves[1].grad.isfinite().all()
        assert bool((leaves[1].grad[only_hard] != 0).any()) == (scale > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_weight_and_temperature_match_finite_differences(kind: Any) -> None:
    case = make(1)
    rows = rows_of(case)
    candidates = collect_candidates(rows, rows, torch.from_numpy(case["history"]))
    weight = 0.3 if kind == "listwise" else 1.0
    config = LossConfig(kind=kind, correction="none", margin=0.3, hard_weight=weight, hard_temperature=0.9)
    items_Md = torch.from_numpy(case["item_vectors"])
    inputs = [torch.from_numpy(case["user_vectors"]), items_Md[candidates.items_U], items_Md[candidates.hard_BK]]

    def losses_of(users: torch.Tensor, items: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        return row_losses(users, items, hard, candidates, None, 0.5, config, ITEMS, 0.6).losses_B

    assert torch.autograd.gradcheck(losses_of, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize(
    "options", [{"hard_weight": 0.3, "hard_temperature": 0.9}, {"hard_weight": 0.3, "hard_rows": "all"}]
)
@pytest.mark.parametrize("block", [1, 60])
def test_blocks_of_rows_give_the_same_loss_and_gradients(
    options: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make(3)
    rows = rows_of(case)
    share = options.get("hard_rows") == "all"
    candidates = collect_candidates(rows, rows, torch.from_numpy(case["history"]), share_hard=share)
    expected_U, config = expected_of(case, candidates), LossConfig(**options)
    items_Md, weights_B = torch.from_numpy(case["item_vectors"]), torch.from_numpy(case["weights"])

    def leaves() -> list[torch.Tensor]:
        vectors = [torch.from_numpy(case["user_vectors"]), items_Md[candidates.items_U], items_Md[candidates.hard_BK]]
        return [vector.clone().requires_grad_() for vector in vectors]

    whole, blocks = leaves(), leaves()
    arguments = (candidates, expected_U, 0.5, config, ITEMS, 0.6)
    loss = losses.weighted_mean(row_losses(*whole, *arguments).losses_B, weights_B, ROWS)
    loss.backward()
    monkeypatch.setattr(objective, "BLOCK", block)
    actual = batch_loss(*blocks, weights_B, *arguments)
    actual.loss.backward()
    torch.testing.assert_close(actual.loss, loss)
    for one, other in zip(blocks, whole):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_the_shared_set_with_hard_negatives_counts_them_apart() -> None:
    candidates = example(share_hard=True)
    assert candidates.items_U.tolist() == [2, 3, 4, 5]
    assert candidates.counts_U.tolist() == [1, 1, 2, 0]
    assert candidates.hard_counts_U is not None
    assert candidates.hard_counts_U.tolist() == [0, 0, 0, 1]
    assert candidates.hard_BK.tolist() == [[0, 0], [0, 0]]
    assert example().hard_BK.tolist() == [[0, 5], [0, 0]]
    assert example().hard_counts_U is None

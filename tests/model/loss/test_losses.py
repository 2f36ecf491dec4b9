"""Each loss and correction against a float64 oracle that lists every candidate, and against cases by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.data.catalogue import SamplingProbabilities
from model.loss import losses
from model.loss.candidates import BatchRows, StepCandidates, collect_candidates
from model.loss.logq import OtherDraws, expected_counts, logit_offsets, other_draws
from model.loss.losses import MASKED, Logits
from pipelines.contract.negative_kinds import COARSE, FINE, POPULARITY, UNIFORM
from tests.model.loss.random_batch import (
    CORRECTIONS,
    ITEMS,
    KINDS,
    ROWS,
    SEEDS,
    Case,
    losses_of,
    make,
)


def oracle(case: Case, config: LossConfig, once: bool = False) -> np.ndarray:
    """Loss per row from the formulas: loops over rows and candidates. A candidate occurs as often as it entered the set."""
    easy = (case["kinds"] == UNIFORM) | (case["kinds"] == POPULARITY)
    positives = sorted(set(case["items"])) if once else list(case["items"])
    entered = [*positives, *case["negatives"][easy]]
    uniform, popularity = (case["kinds"] == UNIFORM).sum(), (case["kinds"] == POPULARITY).sum()
    in_batch = case["chance"] if once else ROWS * case["q"][0]
    expected = in_batch + uniform * case["q"][1] + popularity * case["q"][2]
    result = []
    for row in range(ROWS):
        user, positive = case["users"][row], case["items"][row]
        banned = {positive, *case["history"][row]}
        if user > 1:
            banned |= set(case["items"][case["users"] == user])
        score = case["item_vectors"] @ case["user_vectors"][row] / config.temperature
        shared = [item for item in entered if item not in banned]
        own = case["negatives"][row][(case["kinds"][row] == COARSE) | (case["kinds"][row] == FINE)]
        hard = [item for item in own if item not in banned]
        if not shared and not hard:
            result.append(0.0)
        elif config.kind == "listwise":
            loss = softmax_loss(config.correction, score, positive, shared, hard, entered, expected)
            result.append(top_k_weight(config, score, positive, shared, expected) * loss)
        else:
            result.append(mean_loss(config, score, positive, shared, hard, expected))
    return np.array(result)


def softmax_loss(
    correction: str, score: np.ndarray, p: int, shared: list[int], hard: list[int], entered: list[int], expected: np.ndarray
) -> float:  # fmt: skip
    if correction == "revisited":
        n = sum(item != p for item in entered)
        q = {d: expected[d] / (len(entered) - expected[p]) for d in shared}
        partition = np.exp(score[p]) + sum(np.exp(score[d]) / q[d] / n for d in shared) + np.exp(score[hard]).sum()
        denominator = sum(np.exp(score[d]) / q[d] for d in shared) + n * np.exp(score[hard]).sum()
        return -(1 - np.exp(score[p]) / partition) * np.log(np.exp(score[p]) / denominator)
    weight = {d: 1.0 if correction == "none" else 1 / expected[d] for d in {p, *shared}}
    numerator = np.exp(score[p]) * (weight[p] if correction == "classic" else 1.0)
    denominator = numerator + sum(weight[d] * np.exp(score[d]) for d in shared) + np.exp(score[hard]).sum()
    return -np.log(numerator / denominator)


def top_k_weight(config: LossConfig, score: np.ndarray, p: int, shared: list[int], expected: np.ndarray) -> float:
    if config.top_k is None:
        return 1.0
    items = 0.0  # Estimated number of items of the catalogue with at least the score of d.
    for d in sorted(shared, key=lambda item: -score[item]):
        items += 1 / expected[d]
        if items >= config.top_k:
            return 1 / (1 + np.exp(-(score[p] - score[d]) * config.temperature / config.top_k_temperature))
    return 1.0


def mean_loss(
    config: LossConfig, score: np.ndarray, p: int, shared: list[int], hard: list[int], expected: np.ndarray
) -> float:
    def penalty(d: int) -> float:
        if config.kind == "pointwise":
            return -np.log(1 - 1 / (1 + np.exp(-score[d])))
        if config.kind == "hinge":
            return max(0.0, score[d] + config.margin - score[p])
        return np.log(1 + np.exp(score[d] - score[p]))

    parts = []
    if shared:
        weights = [1.0 if config.correction == "none" else 1 / expected[d] for d in shared]
        parts.append((1 - config.hard_share, np.average([penalty(d) for d in shared], weights=weights)))
    if hard:
        parts.append((config.hard_share, np.mean([penalty(d) for d in hard])))
    mean = sum(share * value for share, value in parts) / sum(share for share, _ in parts)
    if config.kind == "pointwise":
        alpha, t = config.negatives_per_positive / (ITEMS - 1), config.gbce_calibration
        beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
        return -np.log((1 / (1 + np.exp(-score[p]))) ** beta) + config.negatives_per_positive * mean
    return mean


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, CORRECTIONS))
def test_losses_equal_the_oracle(kind: Any, correction: Any, once: bool) -> None:
    for seed, temperature in itertools.product(SEEDS, (1.0, 0.2)):
        case = make(seed)
        config = LossConfig(kind=kind, correction=correction, temperature=temperature, hard_share=0.3, margin=0.7)
        expected = oracle(case, config, once)
        assert len(set(expected.round(6))) > ROWS / 2
        np.testing.assert_allclose(losses_of(case, config, once=once), expected, rtol=1e-6)
        np.testing.assert_allclose(losses_of(case, config, torch.float32, once), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("correction", CORRECTIONS[1:])
def test_top_k_losses_equal_the_oracle(correction: Any, once: bool) -> None:
    """SL@K with a K that some rows do not reach, and with one that all rows reach."""
    for seed, k in itertools.product(SEEDS, (2, 9)):
        case = make(seed)
        config = LossConfig(correction=correction, temperature=0.2, top_k=k, top_k_temperature=0.1)
        expected = oracle(case, config, once)
        plain = losses_of(case, config.model_copy(update={"top_k": None}), once=once).numpy()
        assert (expected < plain - 1e-9).sum() > (1 if k == 9 else ROWS / 2)
        np.testing.assert_allclose(losses_of(case, config, once=once), expected, rtol=1e-6)
        np.testing.assert_allclose(losses_of(case, config, torch.float32, once), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("correction", ["none", "classic"])
@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_losses_equal_the_oracle(correction: Any, calibration: float) -> None:
    for seed in SEEDS:
        case = make(seed)
        config = LossConfig(kind="pointwise", correction=correction, temperature=0.2, gbce_calibration=calibration)
        np.testing.assert_allclose(losses_of(case, config), oracle(case, config), rtol=1e-6)


@pytest.mark.parametrize("calibration", [0.0, 1.0])
def test_gbce_learns_the_probability_that_an_item_is_the_positive(calibration: float) -> None:
    """100 items with skewed probabilities, three negatives. t = 1: sigmoid(s) = P; t = 0: P / (P + alpha (1 - P))."""
    positive_M = torch.arange(1, 101, dtype=torch.float64) ** -1.0
    positive_M /= positive_M.sum()
    power = losses.gbce_power(3.0, 100, calibration)
    logits_M = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_M], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    itself = torch.eye(100, dtype=torch.bool)

    def expected_loss() -> torch.Tensor:
        """Mean over all items as the positive: row i has positive i, and all other items as candidates."""
        optimizer.zero_grad()
        shared_BU = torch.where(itself, MASKED, logits_M.expand(100, 100))
        rows = Logits(logits_M, shared_BU, torch.full((100, 1), MASKED, dtype=torch.float64))
        losses_B = losses.pointwise(rows, torch.ones(100, dtype=torch.float64), 3.0, 0.5, power)
        loss = (positive_M * losses_B).sum()
        loss.backward()
        return loss

    optimizer.step(expected_loss)
    alpha = 3 / 99 if calibration == 0 else 1.0
    expected_M = positive_M / (positive_M + alpha * (1 - positive_M))
    torch.testing.assert_close(logits_M.detach().sigmoid(), expected_M, rtol=1e-3, atol=1e-5)


def test_gbce_power_by_hand() -> None:
    """alpha = 3 / 30 = 0.1; t = 0.75: 0.1 (0.75 (1 - 10) + 10) = 0.325."""
    assert losses.gbce_power(3.0, 31, 0.75) == pytest.approx(0.325)
    assert losses.gbce_power(3.0, 31, 0.0) == 1.0


def two_rows() -> tuple[StepCandidates, SamplingProbabilities]:
    """Positives 2 and 3, uniform negatives 4 and 4. Each source draws each item with probability 1/4."""
    rows = BatchRows(torch.tensor([2, 3]), torch.tensor([2, 3]), torch.tensor([[4], [4]]), torch.tensor([[1], [1]]))
    quarter = torch.full((6,), 0.25)
    return collect_candidates(rows, rows, None), SamplingProbabilities(quarter, quarter, quarter)


def example_logits() -> Logits:
    """Scores: 1 for the positives, 0 for the other shared candidates, 1 for a hard negative of the first row."""
    return Logits(torch.ones(2), torch.tensor([[MASKED, 0, 0], [0, MASKED, 0]]), torch.tensor([[1.0], [MASKED]]))


def test_expected_counts_by_hand() -> None:
    candidates, q = two_rows()
    assert candidates.items_U.tolist() == [2, 3, 4]
    assert candidates.counts_U.tolist() == [1, 1, 2]
    expected_U = expected_counts(candidates, 2 * q.in_batch_M[candidates.items_U], q)
    assert expected_U.tolist() == [1, 1, 1]  # 2 x 1/4 as positives, 2 x 1/4 as uniform negatives
    assert [draws.tolist() for draws in other_draws(candidates, expected_U)] == [[3, 3], [3, 3]]
    double = 2 * expected_U
    for correction, positive in (("none", 0.0), ("classic", -np.log(2)), ("mns", 0.0), ("revisited", 0.0)):
        offsets = logit_offsets(correction, candidates, None if correction == "none" else double)
        shift = 0.0 if correction == "none" else np.log(2)
        np.testing.assert_allclose(offsets.shared_U, [-shift, -shift, np.log(2) - shift], atol=1e-6)
        np.testing.assert_allclose(offsets.positive_B, [positive] * 2, rtol=1e-6)


def test_listwise_by_hand() -> None:
    # Row 0: e for the positive, 1 and 1 shared, e hard. Row 1: e, 1 and 1.
    np.testing.assert_allclose(
        losses.listwise(example_logits()), [np.log(2 + 2 / np.e), np.log(1 + 2 / np.e)], rtol=1e-6
    )


def test_revisited_by_hand() -> None:
    """Two draws are not the positive, as expected: q' = expected / 2, and f - log q' = log 2 for each."""
    two = torch.tensor([2.0, 2.0])
    losses_B = losses.listwise_revisited(example_logits(), OtherDraws(two, two))
    denominator = np.array([4 + 2 * np.e, 4])
    weight = 1 - np.e / (np.e + denominator / 2)
    np.testing.assert_allclose(losses_B, weight * (np.log(denominator) - 1), rtol=1e-6)


def test_pointwise_by_hand() -> None:
    # Row 0: half of log 2 and half of log(1 + e); row 1: only log 2. Times 3 negatives.
    positive, equal = np.log(1 + np.exp(-1)), np.log(2)
    mean = np.array([(equal + np.log(1 + np.e)) / 2, equal])
    losses_B = losses.pointwise(example_logits(), torch.tensor([1.0, 1.0, 2.0]), negatives=3, hard_share=0.5)
    np.testing.assert_allclose(losses_B, positive + 3 * mean, rtol=1e-6)


def test_pairwise_by_hand() -> None:
    weights_U = torch.tensor([1.0, 1.0, 2.0])
    # Shared candidates score 1 below the positive, the hard negative scores the same: margin 1.5 gives losses 0.5 and 1.5.
    np.testing.assert_allclose(losses.pairwise_hinge(example_logits(), weights_U, 1.5, 0.5), [1.0, 0.5])
    lower, equal = np.log(1 + np.exp(-1)), np.log(2)
    losses_B = losses.pairwise_logistic(example_logits(), weights_U, 0.25)
    np.testing.assert_allclose(losses_B, [0.75 * lower + 0.25 * equal, lower], rtol=1e-6)


def test_weighted_mean_by_hand() -> None:
    assert losses.weighted_mean(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5]), rows=4) == 3.5 / 4

"""SL@K: the K-th best score is that of the catalogue, and its weights have no gradient."""

import itertools

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.loss import top_k
from model.loss.losses import MASKED
from model.loss.objective import row_losses
from model.loss.top_k import kth_best, top_k_weights
from tests.model.loss.random_batch import SEEDS, candidates_of, expected_of, make


def test_kth_best_by_hand() -> None:
    """Candidates in the order of their scores stand for 2, 0.5, 1 and 3 items: 2, 2.5, 3.5 and 6 in all."""
    scores_BU = torch.tensor([[0.1, 0.4, 0.9, 0.3], [0.1, MASKED, 0.9, MASKED]])
    weights_U = torch.tensor([3.0, 0.5, 2.0, 1.0])
    expected = {1: [0.9, 0.9], 2: [0.9, 0.9], 3: [0.3, 0.1], 4: [0.1, 0.1], 6: [0.1, -np.inf], 7: [-np.inf] * 2}
    for k, thresholds in expected.items():
        np.testing.assert_allclose(kth_best(scores_BU, weights_U, k), thresholds, rtol=1e-6)
    # Row 0: the third best item has the cosine 0.3 x 0.5, 0.1 below that of the positive.
    weight_B = top_k_weights(torch.tensor([0.5, 0.1]), scores_BU, weights_U, 3, 0.5, 0.1)
    np.testing.assert_allclose(weight_B, [1 / (1 + np.exp(-1)), 0.5], rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_candidates_of_all_items_give_the_kth_best_of_the_catalogue(seed: int) -> None:
    scores_BU = torch.randn(6, 80, generator=torch.Generator().manual_seed(seed))
    for k in (1, 5, 80):
        expected = scores_BU.sort(1, descending=True).values[:, k - 1]
        assert kth_best(scores_BU, torch.ones(80), k).equal(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_need_many_candidates_are_sorted_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights: the first candidates do not add up to K. The result does not depend on how many are sorted first."""
    rng = torch.Generator().manual_seed(seed)
    scores_BU = torch.randn(6, 80, generator=rng)
    scores_BU[torch.rand(6, 80, generator=rng) < 0.3] = MASKED
    weights_U = 0.3 * torch.rand(80, generator=rng)
    few = kth_best(scores_BU, weights_U, 2)
    monkeypatch.setattr(top_k, "FIRST", 80)
    assert few.equal(kth_best(scores_BU, weights_U, 2))
    assert few.isfinite().all()


def test_the_expected_number_of_items_above_the_true_threshold_is_k() -> None:
    """A catalogue of 300 items, drawn by a mixture of a skewed and a uniform sampler, as in training."""
    rng = np.random.default_rng(1)
    items, draws, k = 300, 400, 20
    score_M = rng.normal(size=items)
    skewed_M = rng.permutation(np.arange(1, items + 1) ** -1.0)
    q_M = 0.7 * skewed_M / skewed_M.sum() + 0.3 / items
    threshold = np.sort(score_M)[-k]
    counts_NM = rng.multinomial(draws, q_M, size=4000)
    estimated_N = (counts_NM / (draws * q_M))[:, score_M >= threshold].sum(1)
    assert estimated_N.mean() == pytest.approx(k, abs=4 * estimated_N.std() / np.sqrt(4000))
    # kth_best is consistent with that estimate: it is at least the threshold where at least K items were estimated.
    weights_NM = torch.from_numpy(counts_NM / (draws * q_M))
    for weights_M, estimated in itertools.islice(zip(weights_NM, estimated_N), 200):
        drawn = weights_M > 0
        best = kth_best(torch.from_numpy(score_M)[None, drawn], weights_M[drawn], k)
        assert (float(best) >= threshold) == (estimated >= k)


@pytest.mark.parametrize("correction", ["classic", "mns", "revisited"])
def test_the_weights_have_no_gradient(correction: str) -> None:
    """The gradient is that of the loss without top_k, times the weight of the row."""
    case = make(2)
    candidates = candidates_of(case)
    items_Md = torch.from_numpy(case["item_vectors"])
    hard_BKd, items_Ud = items_Md[candidates.hard_BK], items_Md[candidates.items_U]
    expected_U = expected_of(case, candidates)
    gradients, losses = {}, {}
    for k in (None, 3):
        config = LossConfig(correction=correction, temperature=0.2, top_k=k, top_k_temperature=0.1)  # type: ignore[arg-type]
        users_Bd = torch.from_numpy(case["user_vectors"]).requires_grad_()
        losses[k] = row_losses(users_Bd, items_Ud, hard_BKd, candidates, expected_U, 0.2, config).losses_B
        (gradients[k],) = torch.autograd.grad(losses[k].sum(), users_Bd)
    weight_B = (losses[3] / losses[None]).detach()
    assert (weight_B < 0.9).any()
    torch.testing.assert_close(gradients[3], weight_B[:, None] * gradients[None])

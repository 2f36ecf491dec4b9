"""Streaming frequency estimation: against a literal implementation of the paper, and its statistical properties."""

import numpy as np
import pytest
import torch

from model.config import StreamingConfig
from model.loss.streaming_frequency import FrequencyEstimator

ITEMS = 30
SEEDS = range(3)


def make(initial_gap: float = 20.0, rows: int = 8, **config: object) -> FrequencyEstimator:
    return FrequencyEstimator(StreamingConfig.model_validate({"slots": 40, **config}), initial_gap, rows)


def stream(seed: int, steps: int = 200) -> list[torch.Tensor]:
    """Batches of 8 with repeats and padding. Lower indices are more popular."""
    rng = np.random.default_rng(seed)
    share = np.arange(ITEMS, 0, -1) ** 2.0
    batches = rng.choice(np.arange(2, ITEMS + 2), (steps, 8), p=share / share.sum())
    batches[rng.random(batches.shape) < 0.1] = 0
    return [torch.from_numpy(batch) for batch in batches]


def by_the_paper(
    batches: list[torch.Tensor], slots_mM: np.ndarray, slots: int, alpha: float, initial_gap: float, warm_up: bool
) -> np.ndarray:
    """[items]: Algorithm 3 as a loop over items, in float64."""
    hashes = len(slots_mM)
    last, gap, hits = np.zeros((hashes, slots)), np.full((hashes, slots), initial_gap), np.zeros((hashes, slots))
    for step, batch in enumerate(batches, start=1):
        for number in range(hashes):
            for slot in {slots_mM[number, item] for item in batch.tolist() if item != 0}:
                hits[number, slot] += 1
                rate = max(alpha, 1 / hits[number, slot]) if warm_up else alpha
                gap[number, slot] = (1 - rate) * gap[number, slot] + rate * (step - last[number, slot])
                last[number, slot] = step
    return np.array(
        [min(1.0, 1 / max(gap[n, slots_mM[n, item]] for n in range(hashes))) for item in range(2, ITEMS + 2)]
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hashes", [1, 3])
@pytest.mark.parametrize("warm_up", [False, True])
def test_estimates_equal_the_algorithm_of_the_paper(seed: int, hashes: int, warm_up: bool) -> None:
    estimator, batches = make(hashes=hashes, alpha=0.05, warm_up=warm_up), stream(seed)
    slots_mM = estimator._slots(torch.arange(ITEMS + 2)).numpy()
    assert len(np.unique(slots_mM[0, 2:])) < ITEMS, "some items share a slot"
    for count in (1, 10, 200):
        fresh = make(hashes=hashes, alpha=0.05, warm_up=warm_up)
        for batch in batches[:count]:
            fresh.update(batch)
        expected = by_the_paper(batches[:count], slots_mM, 40, 0.05, 20.0, warm_up)
        np.testing.assert_allclose(fresh.probabilities(torch.arange(2, ITEMS + 2)), expected, rtol=1e-4)


def test_gaps_by_hand() -> None:
    """Item 5 is hit in steps 2 and 6: gaps 2 and 4. From 10 with alpha 0.5: 6, then 5. With warm-up, the means: 2, then 3."""
    for warm_up, gaps in ((False, (6.0, 5.0)), (True, (2.0, 3.0))):
        estimator, estimates = make(10.0, alpha=0.5, hashes=1, slots=1000, warm_up=warm_up), []
        for step in range(1, 7):
            estimator.update(torch.tensor([5, 5, 0] if step in (2, 6) else [6]))
            if step in (2, 6):
                estimates.append(1 / float(estimator.probabilities(torch.tensor([5]))))
        assert estimates == pytest.approx(gaps)
        assert float(estimator.probabilities(torch.tensor([9]))) == pytest.approx(0.1), (
            "an item without hits has the initial gap"
        )


def test_order_and_repeats_within_a_batch_do_not_matter() -> None:
    one, other = make(alpha=0.3), make(alpha=0.3)
    for batch in stream(0):
        one.update(batch)
        other.update(torch.cat([batch.flip(0), batch]))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_probability_is_at_most_one() -> None:
    always = make(alpha=0.9)
    for _ in range(50):
        always.update(torch.tensor([2]))
    assert 0.999 < float(always.probabilities(torch.tensor([2]))) <= 1.0


def test_estimates_are_unbiased_and_follow_changes() -> None:
    """The mean gap of 4000 items is 1/p within 3 standard errors, before and after a change of p."""
    items, alpha = 4000, 0.05
    rng = torch.Generator().manual_seed(0)
    estimator = make(50.0, slots=1_000_000, hashes=2, alpha=alpha)
    for chance, steps in ((0.05, 1600), (0.2, 600)):
        for _ in range(steps):
            estimator.update(2 + (torch.rand(items, generator=rng) < chance).nonzero().squeeze(1))
        gaps = 1 / estimator.probabilities(torch.arange(2, items + 2))
        # Geometric gaps have variance (1 - p) / p^2. Their moving average has alpha / (2 - alpha) times that.
        deviation = ((1 - chance) / chance**2 * alpha / (2 - alpha)) ** 0.5
        assert abs(float(gaps.mean()) - 1 / chance) < 3 * deviation / items**0.5 + 0.02 / chance
        assert float(gaps.std()) == pytest.approx(deviation, rel=0.15)


def test_warm_up_removes_the_initial_guess() -> None:
    errors = {}
    for warm_up in (False, True):
        estimator = make(1000.0, slots=100_000, alpha=0.01, warm_up=warm_up)
        for step in range(1, 101):
            estimator.update(torch.tensor([2, 3] if step % 5 == 0 else [3]))
        errors[warm_up] = (1 / estimator.probabilities(torch.tensor([2, 3])) - torch.tensor([5.0, 1.0])).abs()
    assert (errors[True] < 1e-4).all()
    assert (errors[False] > 300).all(), "(1 - 0.01)^100 of the guess remains"


def test_more_hash_functions_reduce_errors_of_shared_slots() -> None:
    """A rare item has an error if it shares a slot with others. It rarely shares the slots of all hash functions."""
    exact = torch.zeros(ITEMS)
    one, three = make(slots=40, hashes=1), make(slots=40, hashes=3)
    batches = stream(1, 3000)
    for batch in batches:
        exact[batch[batch != 0].unique() - 2] += 1 / len(batches)
        one.update(batch)
        three.update(batch)
    items = torch.arange(2, ITEMS + 2)
    errors = [float((estimator.probabilities(items) - exact).abs().sum()) for estimator in (one, three)]
    assert errors[1] < 0.7 * errors[0]


def test_dense_indices_fill_slots_like_random_indices() -> None:
    """An item shares a slot with items / slots others on average. Pairs share all slots only by chance."""
    for items, slots in ((262_144, 262_144), (100_000, 131_072), (100_000, 1_000_000), (30_000, 10_007)):
        estimator = make(slots=slots, hashes=2)
        slots_mN = estimator._slots(torch.arange(2, items + 2))
        for row in slots_mN:
            load = row.bincount(minlength=slots).double()
            assert float((load * load).sum() / items) == pytest.approx(1 + items / slots, rel=0.05)
        pairs = (slots_mN[0] * slots + slots_mN[1]).unique(return_counts=True)[1]
        shared = float((pairs * (pairs - 1)).sum()) / items
        assert shared < 3 * items / slots**2 + 1e-3


def test_probabilities_depend_on_the_batch_size() -> None:
    """With four times the rows, probability p becomes 1 - (1 - p)^4, also for items that occur always or almost never."""
    estimator = make(slots=1000, alpha=0.5, initial_gap=1e7)
    for step in range(40):
        estimator.update(torch.tensor([2, 3] if step % 4 == 0 else [3]))
    items = torch.tensor([2, 3, 4])
    usual = estimator.probabilities(items).double()
    assert estimator.probabilities(items, 8).tolist() == estimator.probabilities(items).tolist()
    np.testing.assert_allclose(estimator.probabilities(items, 32), 1 - (1 - usual) ** 4, rtol=1e-4)
    np.testing.assert_allclose(estimator.probabilities(items, 2), 1 - (1 - usual) ** 0.25, rtol=1e-4)


def test_resume_with_another_batch_size_scales_the_gaps() -> None:
    before, after = make(rows=8, alpha=0.1), make(rows=16, alpha=0.1)
    for batch in stream(2):
        before.update(batch)
    after.resume(before.state_dict(), rows_per_step=16)
    items = torch.arange(2, ITEMS + 2)
    gaps = 1 / before.probabilities(items)
    np.testing.assert_allclose(1 / after.probabilities(items), (gaps / 2).clamp(min=1.0), rtol=1e-5)
    waited = before.step - before.last_mH
    assert ((after.step - after.last_mH) - waited / 2).abs().max() <= 0.5
    with pytest.raises(ValueError, match="had 2 hashes of 40 slots, has 2 of 41"):
        make(slots=41).resume(before.state_dict(), 8)


def test_introduced_items_wait_from_the_current_step() -> None:
    plain, introduced = make(slots=10_000, alpha=0.5), make(slots=10_000, alpha=0.5)
    for batch in stream(0):
        plain.update(batch)
        introduced.update(batch)
    new = torch.tensor([ITEMS + 5])
    introduced.introduce(torch.cat([new, torch.tensor([2])]))
    assert torch.equal(
        introduced.last_mH.gather(1, introduced._slots(torch.tensor([2]))),
        plain.last_mH.gather(1, plain._slots(torch.tensor([2]))),
    )
    for _ in range(4):
        plain.update(torch.tensor([2]))
        introduced.update(torch.tensor([2]))
    plain.update(new)
    introduced.update(new)
    assert 1 / float(introduced.probabilities(new)) == pytest.approx(5)
    assert 1 / float(plain.probabilities(new)) == pytest.approx(205)

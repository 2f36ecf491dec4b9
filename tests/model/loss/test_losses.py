"""Every loss, correction and mask against a float64 oracle that lists every candidate, and what holds whatever the numbers."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.data.catalogue import SamplingProbabilities
from model.loss import losses, objective
from model.loss.candidates import BatchRows, StepCandidates, collect_candidates
from model.loss.logq import OtherDraws, expected_counts, logit_offsets, other_draws
from model.loss.losses import MASKED, Logits
from model.loss.objective import batch_loss, logits_of, mask_, positive_ranks, row_losses, vectors_of
from pipelines.contract.negative_kinds import COARSE, FINE, POPULARITY, UNIFORM

ROWS, K, LENGTH, ITEMS, DIM = 12, 5, 4, 20, 6
SEEDS = range(5)
KINDS = ("listwise", "pointwise", "hinge", "logistic")
CORRECTIONS = ("none", "classic", "mns", "revisited")
Case = dict[str, Any]


def make(seed: int) -> Case:
    """A random batch in which everything happens: repeats, history hits, unknown users, padding."""
    rng = np.random.default_rng(seed)
    items = rng.integers(2, ITEMS, ROWS)
    history = rng.integers(0, ITEMS, (ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.7)
    kinds = rng.integers(0, 5, (ROWS, K))
    negatives = rng.integers(2, ITEMS, (ROWS, K)) * (kinds > 0)
    unit = rng.normal(size=(ITEMS + ROWS, DIM))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    q = rng.random((3, ITEMS)) * (np.arange(ITEMS) > 1)
    return {
        "users": rng.integers(1, 6, ROWS), "items": items, "history": history, "kinds": kinds, "negatives": negatives,
        "user_vectors": unit[ITEMS:], "item_vectors": unit[:ITEMS], "q": q / q.sum(1, keepdims=True),
        "chance": rng.random(ITEMS) * 0.9 + 0.1, "weights": rng.random(ROWS) * 2,
    }  # fmt: skip


def rows_of(case: Case) -> BatchRows:
    return BatchRows(*(torch.from_numpy(case[name]) for name in ("users", "items", "negatives", "kinds")))


def candidates_of(case: Case, once: bool = False) -> StepCandidates:
    rows = rows_of(case)
    return collect_candidates(rows, rows, torch.from_numpy(case["history"]), positives_once=once)


def expected_of(case: Case, candidates: StepCandidates, once: bool = False) -> torch.Tensor:
    q = SamplingProbabilities(*torch.from_numpy(case["q"]))
    exact_U = ROWS * q.in_batch_M[candidates.items_U]
    return expected_counts(candidates, torch.from_numpy(case["chance"])[candidates.items_U] if once else exact_U, q)


def found(case: Case, config: LossConfig, dtype: torch.dtype = torch.float64, once: bool = False) -> torch.Tensor:
    candidates = candidates_of(case, once)
    items_Md = torch.from_numpy(case["item_vectors"]).to(dtype)
    expected_U = None if config.correction == "none" else expected_of(case, candidates, once)
    return row_losses(
        torch.from_numpy(case["user_vectors"]).to(dtype), items_Md[candidates.items_U], items_Md[candidates.hard_BK],
        candidates, expected_U, config.temperature, config,
    ).losses_B  # fmt: skip


def oracle(case: Case, config: LossConfig, once: bool = False) -> np.ndarray:
    """Row by row and candidate by candidate, each as often as it has entered, straight from the formulas."""
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
            result.append(softmax_loss(config.correction, score, positive, shared, hard, entered, expected))
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
        return -np.log(1 / (1 + np.exp(-score[p]))) + config.negatives_per_positive * mean
    return mean


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, CORRECTIONS))
def test_equals_the_oracle(kind: Any, correction: Any, once: bool) -> None:
    for seed, temperature in itertools.product(SEEDS, (1.0, 0.2)):
        case = make(seed)
        config = LossConfig(kind=kind, correction=correction, temperature=temperature, hard_share=0.3, margin=0.7)
        expected = oracle(case, config, once)
        assert len(set(expected.round(6))) > ROWS / 2
        np.testing.assert_allclose(found(case, config, once=once), expected, rtol=1e-6)
        np.testing.assert_allclose(found(case, config, torch.float32, once), expected, rtol=1e-4, atol=1e-5)


def two_rows() -> tuple[StepCandidates, SamplingProbabilities]:
    """Items 2 and 3 are the positives, 4 and 4 uniform negatives; each of four items is drawn with chance 1/4."""
    rows = BatchRows(torch.tensor([2, 3]), torch.tensor([2, 3]), torch.tensor([[4], [4]]), torch.tensor([[1], [1]]))
    quarter = torch.full((6,), 0.25)
    return collect_candidates(rows, rows, None), SamplingProbabilities(quarter, quarter, quarter)


def hand_made() -> Logits:
    """Scores 1 for the positive, 0 for the other shared candidates, and a hard negative of 1 in the first row."""
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
    np.testing.assert_allclose(losses.listwise(hand_made()), [np.log(2 + 2 / np.e), np.log(1 + 2 / np.e)], rtol=1e-6)


def test_revisited_by_hand() -> None:
    """Two draws that are no positive, two expected: q' = expected / 2, f - log q' = log 2 for each."""
    two = torch.tensor([2.0, 2.0])
    found = losses.listwise_revisited(hand_made(), OtherDraws(two, two))
    denominator = np.array([4 + 2 * np.e, 4])
    weight = 1 - np.e / (np.e + denominator / 2)
    np.testing.assert_allclose(found, weight * (np.log(denominator) - 1), rtol=1e-6)


def test_pointwise_by_hand() -> None:
    # Row 0: half of log 2 and half of log(1 + e); row 1: log 2 alone; three times.
    positive, even = np.log(1 + np.exp(-1)), np.log(2)
    mean = np.array([(even + np.log(1 + np.e)) / 2, even])
    found = losses.pointwise(hand_made(), torch.tensor([1.0, 1.0, 2.0]), negatives=3, hard_share=0.5)
    np.testing.assert_allclose(found, positive + 3 * mean, rtol=1e-6)


def test_pairwise_by_hand() -> None:
    weights_U = torch.tensor([1.0, 1.0, 2.0])
    # The shared ones are 1 below, the hard one is level: a margin of 1.5 is missed by 0.5 and by 1.5.
    np.testing.assert_allclose(losses.pairwise_hinge(hand_made(), weights_U, 1.5, 0.5), [1.0, 0.5])
    below, level = np.log(1 + np.exp(-1)), np.log(2)
    found = losses.pairwise_logistic(hand_made(), weights_U, 0.25)
    np.testing.assert_allclose(found, [0.75 * below + 0.25 * level, below], rtol=1e-6)


def test_rewards_by_hand() -> None:
    assert losses.weighted_mean(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5]), rows=4) == 3.5 / 4


@pytest.mark.parametrize(("kind", "correction"), [*itertools.product(KINDS, ("none", "mns")), ("listwise", "classic")])
def test_gradients(kind: Any, correction: Any) -> None:
    """gradcheck of users, items, hard negatives and the temperature. (revisited stops a gradient: see the next test.)"""
    case = make(1)
    candidates = candidates_of(case)
    expected_U = None if correction == "none" else expected_of(case, candidates)
    config = LossConfig(kind=kind, correction=correction, margin=0.3)
    items_Md = torch.from_numpy(case["item_vectors"])
    inputs = [
        torch.from_numpy(case["user_vectors"]),
        items_Md[candidates.items_U],
        items_Md[candidates.hard_BK],
        torch.tensor(0.5, dtype=torch.float64),
    ]

    def losses_of(
        users: torch.Tensor, items: torch.Tensor, hard: torch.Tensor, temperature: torch.Tensor
    ) -> torch.Tensor:
        return row_losses(users, items, hard, candidates, expected_U, temperature, config).losses_B

    assert torch.autograd.gradcheck(losses_of, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, CORRECTIONS))
@pytest.mark.parametrize("block", [1, 60, 10**6])
def test_blocks_of_rows_change_nothing(kind: Any, correction: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, rows and the gradients of vectors and temperature: of one row a block, of a few, of all rows in one."""
    monkeypatch.setattr(objective, "BLOCK", block)
    case = make(3)
    candidates = candidates_of(case)
    expected_U = None if correction == "none" else expected_of(case, candidates)
    config = LossConfig(kind=kind, correction=correction, margin=0.3)
    weights_B, items_Md = torch.from_numpy(case["weights"]), torch.from_numpy(case["item_vectors"])

    def inputs() -> list[torch.Tensor]:
        vectors = [torch.from_numpy(case["user_vectors"]), items_Md[candidates.items_U], items_Md[candidates.hard_BK]]
        leaves = [*vectors, torch.tensor(0.5, dtype=torch.float64)]
        return [leaf.clone().requires_grad_() for leaf in leaves]

    whole, blocks = inputs(), inputs()
    wanted = row_losses(*whole[:3], candidates, expected_U, whole[3], config)
    loss = losses.weighted_mean(wanted.losses_B, weights_B, candidates.rows)
    (3 * loss).backward()
    found = batch_loss(*blocks[:3], weights_B, candidates, expected_U, blocks[3], config)
    (3 * found.loss).backward()
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.losses_B, wanted.losses_B.detach())
    assert found.contrasted_B.equal(wanted.contrasted_B)
    for one, other in zip(blocks, whole):
        torch.testing.assert_close(one.grad, other.grad)
    with torch.no_grad():
        again = batch_loss(*blocks[:3], weights_B, candidates, expected_U, blocks[3], config)
    assert again.loss.equal(found.loss)
    assert again.losses_B.equal(found.losses_B)


def test_the_gradient_of_revisited_is_that_of_its_log_times_a_constant() -> None:
    case = make(2)
    candidates = candidates_of(case)
    users_Bd = torch.from_numpy(case["user_vectors"]).requires_grad_()
    items_Md = torch.from_numpy(case["item_vectors"])
    expected_U = expected_of(case, candidates)
    offsets, draws = logit_offsets("revisited", candidates, expected_U), other_draws(candidates, expected_U)

    def logits() -> Logits:
        items_Ud, hard_BKd = items_Md[candidates.items_U], items_Md[candidates.hard_BK]
        return logits_of(vectors_of(users_Bd, items_Ud, hard_BKd, candidates, 0.3), candidates, offsets)

    given = logits()
    n_B = draws.actual_B
    others_B = given.shared_BU.exp().sum(1) * draws.expected_B + n_B * given.hard_BK.exp().sum(1)
    log_ratio_B = others_B.log() - given.positive_B
    weight_B = (1 / (1 + n_B * given.positive_B.exp() / others_B)).detach()
    (wanted,) = torch.autograd.grad((weight_B * log_ratio_B).sum(), users_Bd)
    (gradient,) = torch.autograd.grad(losses.listwise_revisited(logits(), draws).sum(), users_Bd)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_positive_is_never_masked_and_what_is_known_always_is(seed: int) -> None:
    case = make(seed)
    case["history"][:, 0] = case["items"]  # Even where a history holds it.
    candidates = candidates_of(case)
    assert (candidates.items_U[candidates.positive_B] == torch.from_numpy(case["items"])).all()
    logits_BU = torch.zeros(ROWS, len(candidates.items_U))
    mask_(logits_BU, candidates)
    items_Md = torch.from_numpy(case["item_vectors"])
    items_Ud, hard_BKd = items_Md[candidates.items_U], items_Md[candidates.hard_BK]
    vectors = vectors_of(torch.from_numpy(case["user_vectors"]), items_Ud, hard_BKd, candidates, 1.0)
    logits = logits_of(vectors, candidates, None)
    positive = (case["user_vectors"] * case["item_vectors"][case["items"]]).sum(1)
    np.testing.assert_allclose(logits.positive_B, positive)
    for row in range(ROWS):
        known = {case["items"][row], *case["history"][row]}
        if case["users"][row] > 1:
            known |= set(case["items"][case["users"] == case["users"][row]])
        masked = {item for item, value in zip(candidates.items_U.tolist(), logits_BU[row]) if value == MASKED}
        assert masked == known & set(candidates.items_U.tolist()), "nothing less and nothing more"
        there = candidates.hard_BK[row][logits.hard_BK[row] > MASKED].tolist()
        assert not known & set(there)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, ("none", "revisited")))
def test_the_order_of_candidates_and_rows_changes_nothing(seed: int, kind: Any, correction: Any) -> None:
    case, rng = make(seed), np.random.default_rng(100 + seed)
    config = LossConfig(kind=kind, correction=correction)
    before = found(case, config)
    columns, order = rng.permutation(K), rng.permutation(ROWS)
    shuffled = {**case, "negatives": case["negatives"][:, columns], "kinds": case["kinds"][:, columns]}
    np.testing.assert_allclose(found(shuffled, config), before, rtol=1e-9)
    for name in ("users", "items", "history", "kinds", "negatives", "user_vectors"):
        shuffled[name] = shuffled[name][order]
    np.testing.assert_allclose(found(shuffled, config), before[torch.from_numpy(order)], rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_scale_of_exact_counts_cancels_in_classic_and_not_in_mns(seed: int) -> None:
    """Without hard negatives, whose weight is an absolute one."""
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
def test_a_row_without_negatives_contributes_nothing_and_is_counted(kind: Any, correction: Any) -> None:
    """Three rows of one user, whose positives are all there is, and a stranger."""
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
def test_what_is_no_number_does_not_pass_for_a_row_without_negatives(kind: Any, correction: Any) -> None:
    case = make(0)
    case["user_vectors"][4] = np.nan
    assert found(case, LossConfig(kind=kind, correction=correction)).isnan().tolist() == [
        row == 4 for row in range(ROWS)
    ]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, CORRECTIONS))
def test_a_temperature_of_one_hundredth_stays_finite(kind: Any, correction: Any, half: bool) -> None:
    """In float32 and from bfloat16 vectors under autocast, with every positive opposite to its user: the worst there is."""
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
        assert all((items_Ud.grad[place] != 0).any() for place in open_), "all others do"


def test_ranks_count_better_candidates_only() -> None:
    rows = BatchRows(torch.tensor([2, 3]), torch.tensor([2, 3]), torch.tensor([[4], [5]]), torch.tensor([[1], [1]]))
    candidates = collect_candidates(rows, rows, torch.tensor([[0, 5], [0, 0]]))
    items_Ud = torch.tensor([[0.5], [0.1], [0.9], [1.0]])
    # Row 0: item 4 is better, item 5 too but in its history. Row 1: all three are better.
    assert positive_ranks(torch.ones(2, 1), items_Ud, candidates).tolist() == [1, 3]


def test_a_positive_that_is_padding_is_refused() -> None:
    rows = BatchRows(torch.tensor([2]), torch.tensor([0]), torch.tensor([[4]]), torch.tensor([[1]]))
    with pytest.raises(ValueError, match="1 rows have item 0"):
        collect_candidates(rows, rows, None)

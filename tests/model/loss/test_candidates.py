"""The candidates of a step: masks, invariance to order, ranks of positives, and refused positives."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.loss.candidates import BatchRows, collect_candidates, with_most_easy
from model.loss.losses import MASKED
from model.loss.objective import logits_of, mask_, positive_ranks, vectors_of
from pipelines.contract.negative_kinds import COARSE, NONE, POPULARITY, UNIFORM
from tests.model.loss.random_batch import (
    KINDS,
    ROWS,
    SEEDS,
    K,
    candidates_of,
    losses_of,
    make,
)


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_cover_exactly_the_history_and_positives_of_the_user(seed: int) -> None:
    case = make(seed)
    case["history"][:, 0] = case["items"]  # The history contains the positive.
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
        excluded = {case["items"][row], *case["history"][row]}
        if case["users"][row] > 1:
            excluded |= set(case["items"][case["users"] == case["users"][row]])
        masked = {item for item, value in zip(candidates.items_U.tolist(), logits_BU[row]) if value == MASKED}
        assert masked == excluded & set(candidates.items_U.tolist())
        hard = candidates.hard_BK[row][logits.hard_BK[row] > MASKED].tolist()
        assert not excluded & set(hard)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "correction"), itertools.product(KINDS, ("none", "revisited")))
def test_losses_do_not_depend_on_the_order_of_candidates_and_rows(seed: int, kind: Any, correction: Any) -> None:
    case, rng = make(seed), np.random.default_rng(100 + seed)
    config = LossConfig(kind=kind, correction=correction)
    before = losses_of(case, config)
    columns, order = rng.permutation(K), rng.permutation(ROWS)
    shuffled = {**case, "negatives": case["negatives"][:, columns], "kinds": case["kinds"][:, columns]}
    np.testing.assert_allclose(losses_of(shuffled, config), before, rtol=1e-9)
    for name in ("users", "items", "history", "kinds", "negatives", "user_vectors"):
        shuffled[name] = shuffled[name][order]
    np.testing.assert_allclose(losses_of(shuffled, config), before[torch.from_numpy(order)], rtol=1e-9)


def test_positive_ranks_count_better_candidates() -> None:
    rows = BatchRows(torch.tensor([2, 3]), torch.tensor([2, 3]), torch.tensor([[4], [5]]), torch.tensor([[1], [1]]))
    candidates = collect_candidates(rows, rows, torch.tensor([[0, 5], [0, 0]]))
    items_Ud = torch.tensor([[0.5], [0.1], [0.9], [1.0]])
    # Row 0: item 4 scores higher; item 5 too, but it is in the history. Row 1: all three other items score higher.
    assert positive_ranks(torch.ones(2, 1), items_Ud, candidates).tolist() == [1, 3]


def test_padding_as_positive_is_refused() -> None:
    rows = BatchRows(torch.tensor([2]), torch.tensor([0]), torch.tensor([[4]]), torch.tensor([[1]]))
    with pytest.raises(ValueError, match="1 rows have item 0"):
        collect_candidates(rows, rows, None)


def test_a_limit_of_easy_negatives_keeps_that_many_of_every_kind_and_all_hard_ones() -> None:
    rows, kinds = 64, (UNIFORM, POPULARITY, UNIFORM, POPULARITY, COARSE)
    kinds_GK = torch.tensor(kinds).repeat(rows, 1)
    batch = BatchRows(
        torch.arange(rows) + 2, torch.arange(rows) + 2, torch.arange(rows * 5).reshape(rows, 5) + 2, kinds_GK
    )
    kept = with_most_easy(batch, 64).kinds
    assert int((kept == UNIFORM).sum()) + int((kept == POPULARITY).sum()) == 64
    assert 24 <= int((kept == UNIFORM).sum()) <= 40, "an even choice"
    assert torch.equal(kept == COARSE, kinds_GK == COARSE)
    assert torch.equal(kept[kept != NONE], kinds_GK[kept != NONE])
    for enough in (None, 256, 1000):
        assert with_most_easy(batch, enough) is batch
    candidates = collect_candidates(with_most_easy(batch, 64), batch, None)
    assert (candidates.uniform, candidates.popularity) == (
        int((kept == UNIFORM).sum()),
        int((kept == POPULARITY).sum()),
    )
    assert int(candidates.counts_U.sum()) == rows + 64, "the expected counts of the correction read these numbers"

"""Random batches for the tests of losses: rows, candidates, expected counts and losses per row."""

from typing import Any

import numpy as np
import torch

from model.config import LossConfig
from model.data.catalogue import SamplingProbabilities
from model.loss.candidates import BatchRows, StepCandidates, collect_candidates
from model.loss.logq import expected_counts
from model.loss.objective import row_losses

ROWS, K, LENGTH, ITEMS, DIM = 12, 5, 4, 20, 6
SEEDS = range(5)
KINDS = ("listwise", "pointwise", "hinge", "logistic")
CORRECTIONS = ("none", "classic", "mns", "revisited")
Case = dict[str, Any]


def make(seed: int) -> Case:
    """A random batch with repeated items, history items among the candidates, unknown users and padding."""
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


def losses_of(case: Case, config: LossConfig, dtype: torch.dtype = torch.float64, once: bool = False) -> torch.Tensor:
    candidates = candidates_of(case, once)
    items_Md = torch.from_numpy(case["item_vectors"]).to(dtype)
    expected_U = None if config.correction == "none" else expected_of(case, candidates, once)
    return row_losses(
        torch.from_numpy(case["user_vectors"]).to(dtype), items_Md[candidates.items_U], items_Md[candidates.hard_BK],
        candidates, expected_U, config.temperature, config, ITEMS,
    ).losses_B  # fmt: skip

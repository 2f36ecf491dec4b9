"""logQ correction: what sampled softmax makes of candidates that are sampled more often than others.

An estimate of a sum over the catalogue from what was sampled: candidate j, which entered count_j times and was expected
to enter expected_j times, stands for count_j / expected_j items like it. In a softmax that weight is log count_j - log
expected_j, added to its logit; in a mean it is the weight itself.

Where an item stands among the candidates in several versions, its expected entries are those of the item, whatever
version enters: expected_j is the same for all of them, and the counts of the versions add up to the item's. The sum over
the catalogue then has one term an item, the mean of its versions over the draws that saw them. (Splitting expected_j among
the versions in proportion to their counts would give each of them the weight of the whole item.)

Shapes: U shared candidates, B rows of this rank, M item indices.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.data.catalogue import SamplingProbabilities
from model.loss.candidates import StepCandidates


class Offsets(NamedTuple):
    """What is added to the logits of shared candidates [U] and of each row's positive [B]."""

    shared_U: Tensor
    positive_B: Tensor


def expected_counts(candidates: StepCandidates, in_batch_U: Tensor, q: SamplingProbabilities) -> Tensor:
    """[U]: the expected number of times each candidate enters the shared set of a batch of this make-up.

    expected_j = in_batch_j + n_uniform q_uniform_j + n_popularity q_popularity_j for any mixture of the sources, with
    the numbers of draws that are really in this batch. in_batch_U: expected entries as a positive, which is B q_j, or
    where the candidates count positives once, the chance to be among them.
    """
    return (
        in_batch_U
        + candidates.uniform * q.uniform_M[candidates.items_U]
        + candidates.popularity * q.popularity_M[candidates.items_U]
    )


def logit_offsets(correction: str, candidates: StepCandidates, expected_U: Tensor | None) -> Offsets:
    """What a sampled softmax adds to its logits; every candidate counts as often as it has entered, the positive once.

    none: no correction. classic: - log expected_j for all, the positive's too (Yi et al., RecSys 2019). mns: the
    positive is there whatever is sampled, so it stays as it is (Yang et al., WWW 2020); expected counts then have a
    scale of their own and may not be replaced by anything proportional. revisited: as mns (arXiv 2507.09331).
    """
    log_count_U = candidates.counts_U.log()
    nothing_B = torch.zeros(len(candidates.positive_B))
    if expected_U is None:
        return Offsets(log_count_U, nothing_B)
    log_expected_U = expected_U.log()
    return Offsets(
        log_count_U - log_expected_U, -log_expected_U[candidates.positive_B] if correction == "classic" else nothing_B
    )


class OtherDraws(NamedTuple):
    """Draws into the shared set that are not the row's positive: how many were expected and how many there are, [B]."""

    expected_B: Tensor
    actual_B: Tensor


def other_draws(candidates: StepCandidates, expected_U: Tensor) -> OtherDraws:
    """Expected: N - expected_positive; actual: N - count_positive; N: all draws. 1 where it would be less.

    The positive is the item in any version: all of them are masked.
    """
    draws = candidates.counts_U.sum()
    return OtherDraws(
        (draws - expected_U[candidates.positive_B]).clamp(min=1.0),
        (draws - candidates.item_counts_U[candidates.positive_B]).clamp(min=1.0),
    )

"""logQ correction: corrects the logits for the sampling frequency of the candidates.

The sampled candidates estimate a sum over the catalogue. Candidate j entered count_j times and was expected to enter
expected_j times, so it gets the weight count_j / expected_j. In a softmax, log count_j - log expected_j is added to its
logit. In a mean, the weight is used directly.

If an item is among the candidates in several versions, its expected count is that of the item: expected_j is the same for
all versions, and the counts of the versions add up to the count of the item. The sum over the catalogue then has one term
per item: the mean over its versions, weighted by their draws. (Splitting expected_j in proportion to the counts would give
each version the weight of the whole item.)

Shapes: U shared candidates, B rows of this rank, M item indices.
"""

from typing import NamedTuple

from torch import Tensor

from model.data.catalogue import SamplingProbabilities
from model.loss.candidates import StepCandidates


class Offsets(NamedTuple):
    """Offsets of the logits of shared candidates [U] and of each row's positive [B]."""

    shared_U: Tensor
    positive_B: Tensor


def expected_counts(candidates: StepCandidates, in_batch_U: Tensor, q: SamplingProbabilities) -> Tensor:
    """[U]: expected number of times that each candidate enters the shared set of this batch.

    expected_j = in_batch_j + n_uniform q_uniform_j + n_popularity q_popularity_j, with the actual numbers of draws in this
    batch. in_batch_U: expected count as a positive: B q_j, or, if positives are counted once, the probability of being
    among the positives.
    """
    return (
        in_batch_U
        + candidates.uniform * q.uniform_M[candidates.items_U]
        + candidates.popularity * q.popularity_M[candidates.items_U]
    )


def draw_weights(candidates: StepCandidates, expected_U: Tensor | None) -> Tensor:
    """[U]: count_j, or count_j / expected_j: how many items of the catalogue each candidate stands for.

    0 for candidates that are in the set only as hard negatives.
    """
    if expected_U is None:
        return candidates.counts_U
    weights_U = candidates.counts_U / expected_U
    return weights_U if candidates.hard_counts_U is None else weights_U.where(candidates.counts_U > 0, 0.0)


def logit_offsets(
    correction: str, candidates: StepCandidates, expected_U: Tensor | None, hard_weight: float = 1.0
) -> Offsets:
    """Offsets of a sampled softmax. Each candidate counts as often as it entered the set, the positive counts once.

    none: no correction. classic: - log expected_j for all candidates and the positive (Yi et al., RecSys 2019). mns: the
    positive is not corrected, because it is present whatever is sampled (Yang et al., WWW 2020). The scale of the expected
    counts then matters: proportional values would change the loss. revisited: same offsets as mns (arXiv 2507.09331).

    If hard negatives are in the shared set, each occurrence adds `hard_weight` to the weight of its candidate: the offset is
    log(count_j / expected_j + hard_weight hard_count_j), -inf for a candidate without weight.
    """
    nothing_B = candidates.counts_U.new_zeros(len(candidates.positive_B))
    if candidates.hard_counts_U is not None:
        weights_U = draw_weights(candidates, expected_U) + hard_weight * candidates.hard_counts_U
        shared_U = weights_U.log()
    else:
        shared_U = candidates.counts_U.log()
        if expected_U is not None:
            shared_U = shared_U - expected_U.log()
    if expected_U is None or correction != "classic":
        return Offsets(shared_U, nothing_B)
    return Offsets(shared_U, -expected_U[candidates.positive_B].log())


class OtherDraws(NamedTuple):
    """Number of draws into the shared set that are not the row's positive: expected and actual, [B]."""

    expected_B: Tensor
    actual_B: Tensor


def other_draws(candidates: StepCandidates, expected_U: Tensor) -> OtherDraws:
    """Expected: N - expected_positive; actual: N - count_positive, where N is the number of draws. At least 1.

    The positive is the item in any version, because all versions are masked.
    """
    draws = candidates.counts_U.sum()
    return OtherDraws(
        (draws - expected_U[candidates.positive_B]).clamp(min=1.0),
        (draws - candidates.item_counts_U[candidates.positive_B]).clamp(min=1.0),
    )

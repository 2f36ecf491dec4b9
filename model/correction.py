"""logQ correction: what sampled softmax subtracts for candidates that are sampled more often than others.

Shapes: U shared candidates, M item indices.
"""

import torch
from torch import Tensor

from model.candidates import Candidates
from model.catalogue import SamplingProbabilities


def expected_counts(candidates: Candidates, q: SamplingProbabilities) -> Tensor:
    """[U]: the expected number of times each candidate enters the shared set of a batch of this make-up.

    expected_j = B q_in_batch_j + n_uniform q_uniform_j + n_popularity q_popularity_j, with B and n the actual counts of
    this batch (Yi et al., RecSys 2019, for a mixture of sources).
    """
    in_batch_U = q.in_batch_M[candidates.items_U]
    # An item no training row has (a validation positive, say) cannot be more likely than the rarest that one has; taken
    # as 0, its logit would be raised without bound.
    seen = q.in_batch_M[q.in_batch_M > 0]
    floor = float(seen.min()) / 2 if len(seen) else 1 / max(candidates.rows, 1)
    expected_U = (
        candidates.rows * in_batch_U
        + candidates.uniform * q.uniform_M[candidates.items_U]
        + candidates.popularity * q.popularity_M[candidates.items_U]
    )
    return expected_U.clamp(min=candidates.rows * floor)


def classic(candidates: Candidates, q: SamplingProbabilities) -> Tensor:
    """[U]: log expected count, subtracted from every shared logit, the positive's too (Yi et al., RecSys 2019)."""
    return torch.log(expected_counts(candidates, q))

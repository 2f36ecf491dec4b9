"""Losses per row, as functions of logits. They do not depend on the tower or sampler. `weighted_mean` applies rewards.

A row without negatives has loss 0.

Shapes: B rows, U shared candidates, K hard negatives per row.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.loss.logq import OtherDraws

MASKED = -1e30  # Finite, so that a row with only masked candidates has no inf - inf. exp() of it is 0.


class Logits(NamedTuple):
    """Scores divided by the temperature: each row's positive, the shared candidates, the row's hard negatives.

    MASKED: not a negative of the row. The position of the positive among the shared candidates is always masked.
    """

    positive_B: Tensor
    shared_BU: Tensor
    hard_BK: Tensor


def has_negatives(logits: Logits) -> Tensor:
    """[B] bool: whether a row has any negative. NaN counts as a negative, so that it does not give a loss of 0."""
    return ~((logits.shared_BU.amax(1) <= MASKED / 2) & (logits.hard_BK <= MASKED / 2).all(1))


def listwise(logits: Logits) -> Tensor:
    """[B]: sampled softmax, - log softmax of the positive among itself, the shared candidates and the hard negatives.

    The logits include correction and counts (Yi et al., RecSys 2019; Yang et al., WWW 2020). A hard negative counts once
    and is not corrected, because it is not drawn from a distribution over the catalogue. Overwrites `logits.shared_BU`.
    """
    others_B = torch.logaddexp(_logsumexp(logits.shared_BU), _log_sum(logits.hard_BK))
    return torch.logaddexp(logits.positive_B, others_B) - logits.positive_B


def listwise_revisited(logits: Logits, draws: OtherDraws) -> Tensor:
    """[B]: - sg(1 - P_i) log(e^f_p / sum_{d != p} e^(f_d - log q'_d)). The denominator does not include the positive.

    q'_d = expected_d / (N - expected_p): probability that a draw is d, given that it is not the positive. P_i: softmax
    weight of f_p against {f_d - log q'_d - log n}, with n draws that are not the positive. sg: stop gradient (Khrylchenko
    et al., RecSys 2025, arXiv 2507.09331; here for any mixture of samplers). `logits.shared_BU` contains f_d - log
    expected_d. A hard negative counts as one more item of the catalogue: e^f_h in P_i, n e^f_h in the denominator, whose
    scale is n times larger. Overwrites `logits.shared_BU`.
    """
    log_n_B = draws.actual_B.log()
    drawn_B = _logsumexp(logits.shared_BU) + draws.expected_B.log()
    others_B = torch.logaddexp(drawn_B, _log_sum(logits.hard_BK) + log_n_B)
    weight_B = torch.sigmoid(others_B - log_n_B - logits.positive_B).detach()  # 1 - P_i
    return torch.where(others_B <= MASKED / 2, 0.0, weight_B * (others_B - logits.positive_B))


def pointwise(
    logits: Logits, weights_U: Tensor, negatives: float, hard_share: float, positive_power: float = 1.0
) -> Tensor:
    """[B]: binary cross entropy, -log sigmoid(s_p)^beta - negatives * mean log(1 - sigmoid(s_d)).

    Uses the mean over all negatives instead of drawing `negatives` of them: same expectation, less noise.
    `positive_power`: beta of gBCE, see `gbce_power`; 1: plain binary cross entropy.
    """
    mean_B = _mean_over_negatives(
        F.softplus(logits.shared_BU), F.softplus(logits.hard_BK), logits, weights_U, hard_share
    )
    positive_B = positive_power * F.softplus(-logits.positive_B)
    return torch.where(has_negatives(logits), positive_B + negatives * mean_B, 0.0)


def gbce_power(negatives: float, items: int, calibration: float) -> float:
    """beta of gBCE: alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha) (Petrov and Macdonald, RecSys 2023: gSASRec).

    In the paper alpha = k / (items - 1) is the chance that an item other than the positive is one of the row's k uniform
    negatives. Here no negatives are drawn: the row's negatives have the total weight `negatives`, over all candidates. If
    candidates weigh count / expected count, each of the other items - 1 items has the same expected weight, so
    alpha = negatives / (items - 1), whatever the number of candidates and however they are drawn. (The weight of a row's
    hard negatives is part of that total. They get more than alpha, the other items less. Without correction alpha is only
    the mean: frequent candidates get more.)

    Why this calibrates: let item d be the positive of a user with probability P. Its logit then minimises
    -beta P log sigmoid(s) - alpha (1 - P) log(1 - sigmoid(s)), so sigmoid(s) = beta P / (beta P + alpha (1 - P)). With
    beta = 1 this is close to 1 for every P much larger than alpha: the overconfidence of the paper. With beta = alpha it is P.

    calibration: t in [0, 1]. 0: beta = 1, plain binary cross entropy; 1: beta = alpha.
    """
    return 1 - calibration * (1 - negatives / max(1, items - 1))


def pairwise_hinge(logits: Logits, weights_U: Tensor, margin: float, hard_share: float) -> Tensor:
    """[B]: mean max(0, s_d + margin - s_p) over the negatives d."""
    shift_B1 = margin - logits.positive_B[:, None]
    shared_BU, hard_BK = F.relu(logits.shared_BU + shift_B1), F.relu(logits.hard_BK + shift_B1)
    return _mean_over_negatives(shared_BU, hard_BK, logits, weights_U, hard_share)


def pairwise_logistic(logits: Logits, weights_U: Tensor, hard_share: float) -> Tensor:
    """[B]: mean log(1 + exp(s_d - s_p)) over the negatives d (BPR; the sigma in some papers is 1 / temperature)."""
    shared_BU = F.softplus(logits.shared_BU - logits.positive_B[:, None])
    hard_BK = F.softplus(logits.hard_BK - logits.positive_B[:, None])
    return _mean_over_negatives(shared_BU, hard_BK, logits, weights_U, hard_share)


def weighted_mean(losses_B: Tensor, weights_B: Tensor, rows: int) -> Tensor:
    """1/rows sum_i r_i loss_i over this rank's rows. `rows` counts the global batch: the sum over ranks is its mean.

    The weights are not normalised: a night with larger rewards takes larger steps.
    """
    return (weights_B * losses_B).sum() / rows


def _mean_over_negatives(
    shared_BU: Tensor, hard_BK: Tensor, logits: Logits, weights_U: Tensor, hard_share: float
) -> Tensor:
    """[B]: (1 - hard_share) * weighted mean over shared candidates + hard_share * mean over hard negatives.

    If a row lacks one of the two, the other has weight 1. Masked entries of the averaged tensors must be 0.
    """
    present_BK = logits.hard_BK > MASKED / 2
    hard_B = present_BK.sum(1)
    weight_B = (logits.shared_BU > MASKED / 2).to(weights_U.dtype) @ weights_U
    share_B = torch.where(hard_B == 0, 0.0, torch.where(weight_B == 0, 1.0, hard_share))
    mean_shared_B = (shared_BU @ weights_U) / torch.where(weight_B == 0, 1.0, weight_B)
    return (1 - share_B) * mean_shared_B + share_B * hard_BK.sum(1) / hard_B.clamp(min=1)


def _log_sum(logits_BK: Tensor) -> Tensor:
    """[B] logsumexp; MASKED if there are no columns."""
    return F.pad(logits_BK, (0, 1), value=MASKED).logsumexp(1)


class _LogSumExp(torch.autograd.Function):
    """logsumexp over dim 1, in place: overwrites its input. [B, U] is by far the largest tensor of a step.

    torch.logsumexp allocates a tensor for exp() and computes it again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits_BU: Tensor) -> Tensor:
        highest_B1 = logits_BU.amax(1, keepdim=True)
        exp_BU = logits_BU.sub_(highest_B1).exp_()
        sum_B1 = exp_BU.sum(1, keepdim=True)
        ctx.save_for_backward(exp_BU, sum_B1)
        return (sum_B1.log() + highest_B1).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        exp_BU, sum_B1 = ctx.saved_tensors
        return exp_BU * (gradients[0][:, None] / sum_B1)


def _logsumexp(logits_BU: Tensor) -> Tensor:
    return _LogSumExp.apply(logits_BU)

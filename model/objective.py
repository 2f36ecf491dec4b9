"""The objective of a step, in order: temperature, correction, masks, hard negatives, loss. The reduction is last of all.

Shapes: B rows of this rank, U shared candidates, K negatives a row, d vector length.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model import losses
from model.candidates import Candidates
from model.config import LossConfig
from model.correction import Offsets, logit_offsets, other_draws
from model.losses import MASKED, Logits
from model.schema import PADDING


class RowLosses(NamedTuple):
    """The loss of each row [B], and whether it had a negative at all [B] (its loss is 0 where not)."""

    losses_B: Tensor
    contrasted_B: Tensor


def row_losses(
    users_Bd: Tensor,
    items_Ud: Tensor,
    hard_BKd: Tensor,
    candidates: Candidates,
    expected_U: Tensor | None,
    temperature: Tensor | float,
    config: LossConfig,
) -> RowLosses:
    """The loss of each row, before rewards.

    users_Bd, items_Ud, hard_BKd: vectors of the rows' users, the shared candidates and each row's hard negatives.
    expected_U: expected entries of each candidate; None: no correction.
    Under autocast too everything here is float32: at temperature 0.01 logits reach 100, where bfloat16 has steps of 0.5.
    """
    with torch.autocast(users_Bd.device.type, enabled=False):
        users_Bd, items_Ud, hard_BKd = (_full_precision(vectors) for vectors in (users_Bd, items_Ud, hard_BKd))
        users_Bd = users_Bd / temperature  # Before the products: one pass over [B, d] in place of [B, U].
        if config.kind == "listwise":
            logits = logits_of(
                users_Bd, items_Ud, hard_BKd, candidates, logit_offsets(config.correction, candidates, expected_U)
            )
            contrasted_B = losses.has_negatives(logits)
            if config.correction == "revisited" and expected_U is not None:
                return RowLosses(losses.listwise_revisited(logits, other_draws(candidates, expected_U)), contrasted_B)
            return RowLosses(losses.listwise(logits), contrasted_B)
        logits = logits_of(users_Bd, items_Ud, hard_BKd, candidates, None)
        weights_U = candidates.counts_U if expected_U is None else candidates.counts_U / expected_U
        weights_U = weights_U.to(users_Bd.dtype)
        if config.kind == "pointwise":
            losses_B = losses.pointwise(logits, weights_U, config.negatives_per_positive, config.hard_share)
        elif config.kind == "hinge":
            losses_B = losses.pairwise_hinge(logits, weights_U, config.margin, config.hard_share)
        else:
            losses_B = losses.pairwise_logistic(logits, weights_U, config.hard_share)
        return RowLosses(losses_B, losses.has_negatives(logits))


def logits_of(
    users_Bd: Tensor, items_Ud: Tensor, hard_BKd: Tensor, candidates: Candidates, offsets: Offsets | None
) -> Logits:
    """Logits with their correction and masks, from vectors of which the users' are divided by the temperature."""
    positive_B = (users_Bd * items_Ud[candidates.positive_B]).sum(1)
    # One pass over [B, U] for products and offsets together.
    shared_BU = torch.nn.functional.linear(users_Bd, items_Ud, offsets.shared_U.to(users_Bd.dtype) if offsets else None)
    mask_(shared_BU, candidates)
    hard_BK = torch.einsum("bd,bkd->bk", users_Bd, hard_BKd).masked_fill(candidates.hard_BK == PADDING, MASKED)
    return Logits(positive_B + offsets.positive_B if offsets else positive_B, shared_BU, hard_BK)


def mask_(logits_BU: Tensor, candidates: Candidates) -> None:
    """Masks, in place, what is no negative of its row: its positive, items of its history, its user's other positives.

    No step of the gradient: a masked logit has weight 0 in every loss, so its gradient is 0 as it is.
    """
    values = logits_BU.detach()
    values.index_put_((candidates.excluded_rows_E, candidates.excluded_places_E), values.new_tensor(MASKED))
    values.scatter_(1, candidates.positive_B[:, None], MASKED)


def positive_ranks(users_Bd: Tensor, items_Ud: Tensor, candidates: Candidates) -> Tensor:
    """[B]: how many shared candidates score above the row's positive, by the uncorrected score that serving uses."""
    scores_BU = users_Bd @ items_Ud.T
    positive_B1 = scores_BU.gather(1, candidates.positive_B[:, None])
    mask_(scores_BU, candidates)
    return (scores_BU > positive_B1).sum(1)


def _full_precision(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype in (torch.bfloat16, torch.float16) else vectors

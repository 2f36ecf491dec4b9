"""Losses over logits. The steps of the listwise one stand in order: temperature, correction, masks, cross entropy.

Shapes: B rows of this rank, U shared candidates, K negatives a row, E excluded places, d vector length.
"""

import torch
from torch import Tensor

from model.candidates import Candidates
from model.features import PADDING

MASKED = -1e30  # Finite, so that a row of masked places has no inf - inf; exp() of it is still 0.


def listwise_losses(
    users_Bd: Tensor,
    items_Ud: Tensor,
    hard_BKd: Tensor,
    candidates: Candidates,
    temperature: Tensor | float,
    log_q_U: Tensor | None,
) -> Tensor:
    """[B]: sampled softmax loss of each row, - log softmax of its positive among its candidates.

    users_Bd, items_Ud, hard_BKd: vectors of unit length. log_q_U: subtracted from the shared logits, or None.
    Each shared candidate weighs as often as it has entered, the positive once: its other entries are accidental hits.
    """
    users_Bd = users_Bd / temperature  # Before the product: one pass over [B, d] in place of [B, U].
    logits_BU = users_Bd @ items_Ud.T
    offset_U = torch.zeros(len(candidates.items_U)) if log_q_U is None else -log_q_U
    places_B1 = candidates.positive_B[:, None]
    positive_B1 = (users_Bd * items_Ud[candidates.positive_B]).sum(1, keepdim=True) + offset_U[places_B1]
    # In place from here: [B, U] is the largest tensor of a step by far.
    logits_BU = exclude(logits_BU.add_(offset_U + candidates.counts_U.log()), candidates)
    logits_BU = logits_BU.scatter_(1, places_B1, positive_B1)

    hard_BK = torch.einsum("bd,bkd->bk", users_Bd, hard_BKd)  # No draws from a distribution, so no correction.
    hard_BK = hard_BK.masked_fill(candidates.hard_BK == PADDING, MASKED)
    nothing_B1 = torch.full_like(positive_B1, MASKED)  # Keeps the sum defined where there are no hard negatives at all.
    hard_B = torch.cat([hard_BK, nothing_B1], dim=1).logsumexp(1)
    normaliser_B = torch.logaddexp(logits_BU.logsumexp(1), hard_B)
    return normaliser_B - positive_B1.squeeze(1)


def exclude(logits_BU: Tensor, candidates: Candidates) -> Tensor:
    """Masks, in place, the candidates that are no negatives of their row. Never touches the positive."""
    return logits_BU.index_put_((candidates.excluded_rows_E, candidates.excluded_places_E), torch.tensor(MASKED))


def weighted_mean(losses_B: Tensor, weights_B: Tensor, rows: int) -> Tensor:
    """1/rows sum_i r_i loss_i over this rank's rows, where `rows` counts the global batch: ranks add up to its mean.

    The weights do not divide: a night of larger rewards takes larger steps.
    """
    return (weights_B * losses_B).sum() / rows


def positive_ranks(users_Bd: Tensor, items_Ud: Tensor, candidates: Candidates) -> Tensor:
    """[B]: how many shared candidates score above the row's positive, by the uncorrected score that serving uses."""
    scores_BU = exclude(users_Bd @ items_Ud.T, candidates)
    return (scores_BU > scores_BU.gather(1, candidates.positive_B[:, None])).sum(1)

"""The order of the ranking stages: what coarse ranking kept should score above what it dropped.

A request shows what the ranking models, which know more features than two towers can read, think of hundreds of items; its
user clicks on a few. Of a row's hard negatives, the fine ones are items that coarse ranking kept, and the coarse ones are
items that it dropped. Both are still negatives of the row's positive in the main loss. Retrieval that follows the stages
after it delivers more items that survive them (Zheng et al., "Full Stage Learning to Rank", WWW 2024, arXiv 2405.04844).

Shapes: B rows of this rank, K negatives per row, F and C columns with fine and coarse ones, d vector length.
"""

import torch
from torch import Tensor, nn

from pipelines.contract.indices import PADDING
from pipelines.contract.negative_kinds import COARSE, FINE


def stage_order(
    users_Bd: Tensor, hard_BKd: Tensor, hard_BK: Tensor, kinds_BK: Tensor, temperature: Tensor | float, rows: int
) -> Tensor:
    """The loss of this rank's rows (scalar): 1/rows sum_i sum_f mean_c log(1 + e^(s_c - s_f)), over the fine negatives f and
    the coarse negatives c of row i. s: cosine / temperature.

    The weight of a row thus grows with its fine negatives: of few of them a model learns the noise.

    users_Bd, hard_BKd: vectors of the users and of their hard negatives.
    hard_BK: hard negatives; 0: none, or masked. kinds_BK: their kinds (pipelines/contract/negative_kinds.py).
    rows: rows of the global batch. A row without such a pair adds 0.
    Computes in float32 even under autocast, as the main loss does.
    """
    with torch.autocast(users_Bd.device.type, enabled=False):
        scores_BK = torch.einsum("bd,bkd->bk", users_Bd.float() / temperature, hard_BKd.float())
        (kept_BF, kept_scores_BF), (dropped_BC, dropped_scores_BC) = (
            _of_kind(kind, scores_BK, hard_BK, kinds_BK) for kind in (FINE, COARSE)
        )
        pairs_BFC = kept_BF[:, :, None] & dropped_BC[:, None, :]
        losses_BFC = nn.functional.softplus(dropped_scores_BC[:, None, :] - kept_scores_BF[:, :, None])
        dropped_B = dropped_BC.sum(1).clamp(min=1)
        return ((losses_BFC * pairs_BFC).sum((1, 2)) / dropped_B).sum() / max(1, rows)


def _of_kind(kind: int, scores_BK: Tensor, hard_BK: Tensor, kinds_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Which negatives are of a kind, and their scores, without the columns that have none: easy ones may be a hundred."""
    of_kind_BK = (hard_BK != PADDING) & (kinds_BK == kind)
    columns = of_kind_BK.any(0)
    return of_kind_BK[:, columns], scores_BK[:, columns]

"""The loss of a step, in this order: temperature, correction, masks, hard negatives, loss per row, reduction.

Shapes: B rows of this rank, U shared candidates, K negatives per row, d vector length.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.config import LossConfig
from model.loss import losses
from model.loss.candidates import StepCandidates
from model.loss.hard_negatives import AS_OTHERS, HardNegatives
from model.loss.logq import Offsets, draw_weights, logit_offsets, other_draws
from model.loss.losses import MASKED, Logits
from model.loss.top_k import top_k_weights
from pipelines.contract.indices import PADDING

# Number of logits in memory at once: about what fits into the cache of a core.
BLOCK = 2**20


class RowLosses(NamedTuple):
    """Loss of each row [B], and whether the row has a negative [B]. Without one its loss is 0."""

    losses_B: Tensor
    contrasted_B: Tensor


class BatchLoss(NamedTuple):
    """Loss of this rank's rows (scalar, with gradient); loss of each row and whether it has a negative, [B]."""

    loss: Tensor
    losses_B: Tensor
    contrasted_B: Tensor


class Objective(NamedTuple):
    """The settings of a loss, and the numbers that it reads besides them.

    temperature: for SL@K and for a temperature of hard negatives. items: size of the catalogue, for gBCE. hard_scale: factor
    on the weight of hard negatives (the ramp).
    """

    config: LossConfig
    temperature: float
    items: int
    hard_scale: float

    @property
    def hard(self) -> HardNegatives:
        """How hard negatives enter."""
        return HardNegatives.of(self.config, self.temperature, self.hard_scale)

    @property
    def hard_share(self) -> float:
        """The weight of hard negatives in the means of pairwise and pointwise losses."""
        return self.config.hard_share * self.hard_scale


class Vectors(NamedTuple):
    """The vectors that are multiplied to logits: users divided by the temperature [B, d], positives [B, d], shared candidates
    [U, d], hard negatives [B, K, d].
    """

    users_Bd: Tensor
    positives_Bd: Tensor
    items_Ud: Tensor
    hard_BKd: Tensor


def row_losses(
    users_Bd: Tensor,
    items_Ud: Tensor,
    hard_BKd: Tensor,
    candidates: StepCandidates,
    expected_U: Tensor | None,
    temperature: Tensor | float,
    config: LossConfig,
    items: int = 0,
    hard_scale: float = 1.0,
) -> RowLosses:
    """Loss of each row, before rewards.

    users_Bd, items_Ud, hard_BKd: vectors of the users, the shared candidates and the hard negatives.
    expected_U: expected count of each candidate; None: no correction.
    items: number of items in the catalogue. Only gBCE reads it.
    hard_scale: factor in [0, 1] on the weight of hard negatives.
    Computes in float32 even under autocast: at temperature 0.01 logits reach 100, where bfloat16 has steps of 0.5.
    """
    with torch.autocast(users_Bd.device.type, enabled=False):
        vectors = vectors_of(users_Bd, items_Ud, hard_BKd, candidates, temperature)
        return _row_losses(vectors, candidates, expected_U, _objective(config, temperature, items, hard_scale))


def batch_loss(
    users_Bd: Tensor,
    items_Ud: Tensor,
    hard_BKd: Tensor,
    weights_B: Tensor,
    candidates: StepCandidates,
    expected_U: Tensor | None,
    temperature: Tensor | float,
    config: LossConfig,
    items: int = 0,
    hard_scale: float = 1.0,
) -> BatchLoss:
    """`weighted_mean` of `row_losses`, in blocks of rows. Runs forward and backward while the logits are in cache.

    No tensor has shape [B, U], so memory does not grow with rows times candidates.
    The arguments are those of `row_losses`; weights_B: rewards.
    """
    with torch.autocast(users_Bd.device.type, enabled=False):
        vectors = vectors_of(users_Bd, items_Ud, hard_BKd, candidates, temperature)
        objective = _objective(config, temperature, items, hard_scale)
        return BatchLoss(
            *_InBlocks.apply(*vectors, weights_B, candidates, expected_U, objective, torch.is_grad_enabled())
        )


def _objective(config: LossConfig, temperature: Tensor | float, items: int, hard_scale: float) -> Objective:
    if isinstance(temperature, Tensor):
        temperature = float(temperature.detach()) if config.top_k or config.hard_temperature else 1.0
    return Objective(config, temperature, items, hard_scale)


class _InBlocks(torch.autograd.Function):
    """The loss is a sum over rows. forward() also computes the gradients, block by block; backward() only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        users_Bd: Tensor,
        positives_Bd: Tensor,
        items_Ud: Tensor,
        hard_BKd: Tensor,
        weights_B: Tensor,
        candidates: StepCandidates,
        expected_U: Tensor | None,
        objective: Objective,
        backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_rows = (users_Bd, positives_Bd, hard_BKd)
        items_Ud = items_Ud.detach().requires_grad_(backward)  # Accumulates the gradients of all blocks.
        gradients = [torch.zeros_like(vectors) for vectors in of_rows] if backward else []
        losses_B = users_Bd.new_zeros(len(users_Bd))
        contrasted_B = torch.zeros_like(losses_B, dtype=torch.bool)
        total = users_Bd.new_zeros(())
        for block, of_block in candidates.in_blocks(max(1, BLOCK // len(candidates.items_U))):
            users, positives, hard = (vectors[block].detach().requires_grad_(backward) for vectors in of_rows)
            with torch.set_grad_enabled(backward):
                block_losses = _row_losses(Vectors(users, positives, items_Ud, hard), of_block, expected_U, objective)
                loss = losses.weighted_mean(block_losses.losses_B, weights_B[block], candidates.rows)
            if backward:
                loss.backward()
                for gradient, leaf in zip(gradients, (users, positives, hard)):
                    if leaf.grad is not None:
                        gradient[block] = leaf.grad
            total += loss.detach()
            losses_B[block], contrasted_B[block] = block_losses.losses_B.detach(), block_losses.contrasted_B
        if backward:
            shared = torch.zeros_like(items_Ud) if items_Ud.grad is None else items_Ud.grad
            ctx.save_for_backward(*gradients, shared)
        ctx.mark_non_differentiable(losses_B, contrasted_B)
        return total, losses_B, contrasted_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        users_Bd, positives_Bd, hard_BKd, items_Ud = (gradients[0] * saved for saved in ctx.saved_tensors)
        return users_Bd, positives_Bd, items_Ud, hard_BKd, *[None] * 5


def vectors_of(
    users_Bd: Tensor, items_Ud: Tensor, hard_BKd: Tensor, candidates: StepCandidates, temperature: Tensor | float
) -> Vectors:
    """Convert to float32 or float64, gather the positives, and divide the users by the temperature."""
    users_Bd, items_Ud, hard_BKd = (
        vectors.float() if vectors.dtype in (torch.bfloat16, torch.float16) else vectors
        for vectors in (users_Bd, items_Ud, hard_BKd)
    )
    # embedding() adds gradients of one item in a fixed order. Indexing would add them from several threads in any order.
    positives_Bd = nn.functional.embedding(candidates.positive_B, items_Ud)
    # Divide before the products: one pass over [B, d] instead of [B, U].
    return Vectors(users_Bd / temperature, positives_Bd, items_Ud, hard_BKd)


def _row_losses(
    vectors: Vectors, candidates: StepCandidates, expected_U: Tensor | None, objective: Objective
) -> RowLosses:
    config = objective.config
    weights_U = draw_weights(candidates, expected_U).to(vectors.users_Bd.dtype)
    if config.kind == "listwise":
        return _listwise(vectors, candidates, expected_U, weights_U, objective)
    logits = logits_of(vectors, candidates, None, objective.hard)
    if config.kind == "pointwise":
        power = losses.gbce_power(config.negatives_per_positive, objective.items, config.gbce_calibration)
        losses_B = losses.pointwise(logits, weights_U, config.negatives_per_positive, objective.hard_share, power)
    elif config.kind == "hinge":
        losses_B = losses.pairwise_hinge(logits, weights_U, config.margin, objective.hard_share)
    else:
        losses_B = losses.pairwise_logistic(logits, weights_U, objective.hard_share)
    return RowLosses(losses_B, losses.has_negatives(logits))


def _listwise(
    vectors: Vectors, candidates: StepCandidates, expected_U: Tensor | None, weights_U: Tensor, objective: Objective
) -> RowLosses:
    """Sampled softmax with its correction and, if `top_k` is set, the weights of SL@K."""
    config = objective.config
    offsets = logit_offsets(config.correction, candidates, expected_U, objective.hard.weight)
    offsets = offsets._replace(shared_U=offsets.shared_U.clamp(min=MASKED))
    logits = logits_of(vectors, candidates, offsets, objective.hard)
    contrasted_B = losses.has_negatives(logits)
    weight_B = None
    if config.top_k:  # Before the losses, which overwrite the logits.
        positive_B = (logits.positive_B - offsets.positive_B).detach()
        shared_BU = logits.shared_BU.detach() - offsets.shared_U.to(positive_B.dtype)
        weight_B = top_k_weights(
            positive_B, shared_BU, weights_U, config.top_k, objective.temperature, config.top_k_temperature
        )
    if config.correction == "revisited" and expected_U is not None:
        losses_B = losses.listwise_revisited(logits, other_draws(candidates, expected_U))
    else:
        losses_B = losses.listwise(logits)
    return RowLosses(losses_B if weight_B is None else weight_B * losses_B, contrasted_B)


def logits_of(
    vectors: Vectors, candidates: StepCandidates, offsets: Offsets | None, hard: HardNegatives = AS_OTHERS
) -> Logits:
    """Logits with correction and masks."""
    users_Bd, positives_Bd, items_Ud, hard_BKd = vectors
    positive_B = (users_Bd * positives_Bd).sum(1)
    # One pass over [B, U] computes products and offsets.
    shared_BU = nn.functional.linear(users_Bd, items_Ud, offsets.shared_U.to(users_Bd.dtype) if offsets else None)
    mask_(shared_BU, candidates)
    hard_BK = hard.logits(positive_B, torch.einsum("bd,bkd->bk", users_Bd, hard_BKd))
    hard_BK = hard_BK.masked_fill(candidates.hard_BK == PADDING, MASKED)
    return Logits(positive_B + offsets.positive_B if offsets else positive_B, shared_BU, hard_BK)


def mask_(logits_BU: Tensor, candidates: StepCandidates) -> None:
    """Mask, in place, the candidates that are not negatives of a row: its positive, its history, its user's positives.

    Autograd does not record this. A masked logit has weight 0 in every loss, so its gradient is 0 anyway.
    """
    values = logits_BU.detach()
    values.index_put_((candidates.excluded_rows_E, candidates.excluded_places_E), values.new_tensor(MASKED))
    values.scatter_(1, candidates.positive_B[:, None], MASKED)


def positive_ranks(users_Bd: Tensor, items_Ud: Tensor, candidates: StepCandidates) -> Tensor:
    """[B]: how many shared candidates score above the row's positive, by uncorrected score, as in serving.

    An item with several versions counts once, with its best score.
    """
    scores_BU = users_Bd @ items_Ud.T
    positive_B1 = scores_BU.gather(1, candidates.positive_B[:, None])
    mask_(scores_BU, candidates)
    items, item_U = torch.unique_consecutive(candidates.items_U, return_inverse=True)
    if len(items) < len(item_U):
        best_BD = scores_BU.new_full((len(scores_BU), len(items)), MASKED)
        scores_BU = best_BD.scatter_reduce_(1, item_U.expand_as(scores_BU), scores_BU, "amax")
    return (scores_BU > positive_B1).sum(1)

"""One forward pass of training: batch -> candidates -> vectors -> loss, the same on one rank and on many.

Shapes: G rows of the global batch (padded), B rows of this rank, K negatives per row, U shared candidates, H distinct hard
negatives, L history length, R ranks, d vector length.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import LossConfig
from model.data.catalogue import Catalogue, SamplingProbabilities
from model.data.item_versions import SNAPSHOT, packed_snapshots
from model.data.petastorm_reader import USER
from model.distributed.collectives import gather_rows, gather_vectors, rank, world_size
from model.loss.candidates import BatchRows, StepCandidates, collect_candidates, with_most_easy
from model.loss.logq import expected_counts
from model.loss.objective import batch_loss, positive_ranks
from model.loss.self_supervision import SelfSupervision
from model.loss.stage_order import stage_order
from model.loss.streaming_frequency import FrequencyEstimator
from model.network.embeddings import Batch
from model.network.sequence_encoder import PACKED_HISTORY
from model.network.two_tower import TwoTower
from pipelines.contract.indices import PADDING

HITS_AT = 10  # In evaluation a row is a hit if its positive is among this many best shared candidates.
# Limits of a learned temperature. Below, one candidate takes all of the softmax; above, all candidates weigh the same.
TEMPERATURES = (0.005, 1.0)


class StepOutput(NamedTuple):
    """Results of a step. `figures` are sums over this rank's rows, to be summed over ranks."""

    loss: Tensor  # Scalar to call backward() on. DDP averages gradients, so it is R times this rank's part of the loss.
    losses_B: Tensor  # Loss of each row, detached.
    figures: Tensor  # In the order of FIGURES.
    candidates: StepCandidates
    items_Ud: Tensor  # Vectors of the shared candidates, detached.


LOSSES = ("loss", "self_loss", "stage_loss")  # the last two before their weights
FIGURES = (*LOSSES, "rows", "hits", "masked_shared", "masked_hard", "rows_without_negatives")


class RetrievalStep(nn.Module):
    """The towers with everything that their loss reads. This is the module to wrap in DistributedDataParallel."""

    def __init__(
        self,
        towers: TwoTower,
        catalogue: Catalogue,
        q: SamplingProbabilities,
        config: LossConfig,
        frequency: FrequencyEstimator | None = None,
        self_supervision: SelfSupervision | None = None,
        log_popularity_M: Tensor | None = None,
    ) -> None:
        """`log_popularity_M`: what `loss.lift` adds to the logits of items, by item index.

        `frequency`: streaming estimator of in-batch positives, a submodule; None: the exact frequencies in `q`.

        `self_supervision`: a second loss, added in training only.
        """
        super().__init__()
        self.towers, self.catalogue, self.q, self.config = towers, catalogue, q, config
        # The weights of top_k grow with the quality of the model, so losses with them do not show which model is better.
        self._validation_config = config.model_copy(update={"top_k": None})
        self.frequency, self.self_supervision = frequency, self_supervision
        self.log_popularity_M = log_popularity_M
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(config.temperature)), requires_grad=config.learned_temperature
        )
        self.hard_scale = (
            1.0  # Factor on the weights of hard negatives and of their order. The loop sets it before each step.
        )
        self.limit_temperature()

    def move(self, device: torch.device) -> None:
        """Move the model and the tables that its loss reads to a device."""
        self.to(device)
        self.catalogue.move(device)
        self.q = self.q.to(device)
        if self.log_popularity_M is not None:
            self.log_popularity_M = self.log_popularity_M.to(device)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.log_temperature.device

    @property
    def temperature(self) -> Tensor | float:
        """The divisor of all logits, fixed or learned."""
        return self.log_temperature.exp() if self.config.learned_temperature else self.config.temperature

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Clamp a learned temperature to TEMPERATURES. Call it after each step of the optimiser.

        The forward pass does not clamp: a clamped value has no gradient, so the parameter could not return.
        """
        if self.config.learned_temperature:
            self.log_temperature.clamp_(*(math.log(limit) for limit in TEMPERATURES))

    def forward(self, batch: Batch, capacity: int | None) -> StepOutput:
        """Loss of this rank's rows against candidates of all ranks.

        Without gradients, the loss has no weights of top_k, no order of stages, and hard negatives have their full weight.
        batch: the columns of `samples` that training reads, one row per positive. capacity: the most rows that any rank has
        in this step; None: the ranks exchange their numbers of rows, because those of packed rows are not known before.
        """
        candidates, expected_U = self._candidates(batch, capacity)
        items_Ud, hard_BKd = self._item_vectors(candidates)
        users_Bd = self.user_vectors(batch)
        vectors = items_Ud.detach()
        if self.log_popularity_M is not None:
            added = self._with_popularity(self.log_popularity_M, users_Bd, items_Ud, hard_BKd, candidates)
            users_Bd, items_Ud, hard_BKd = added
        loss, losses_B, has_negatives_B = batch_loss(
            users_Bd,
            items_Ud,
            hard_BKd,
            batch["weight"],
            candidates,
            expected_U,
            self.temperature,
            self.config if torch.is_grad_enabled() else self._validation_config,
            len(self.catalogue.present),
            self.hard_scale if torch.is_grad_enabled() else 1.0,
        )
        stage_loss = self._stage_loss(users_Bd, hard_BKd, candidates, batch["negative_kinds"])
        total, self_loss = self._add_self_loss(loss + self.config.stage_weight * self.hard_scale * stage_loss)
        hits = 0 if self.training else int((positive_ranks(users_Bd, items_Ud, candidates) < HITS_AT).sum())
        figures = torch.tensor(
            [
                float(loss.detach()),
                self_loss,
                float(stage_loss.detach()),
                len(losses_B),
                hits,
                len(candidates.excluded_rows_E),
                candidates.hard_excluded,
                int((~has_negatives_B).sum()),
            ],
            dtype=torch.float64,
            device="cpu",
        )
        return StepOutput(total * world_size(), losses_B, figures, candidates, vectors)

    def _with_popularity(
        self, log_M: Tensor, users_Bd: Tensor, items_Ud: Tensor, hard_BKd: Tensor, candidates: StepCandidates
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors with one more component, which adds the log popularity of the item to each logit."""
        log_U, log_BK = (
            log_M[self.catalogue.versions.items(rows)][..., None].to(items_Ud.dtype)
            for rows in (candidates.rows_U, candidates.hard_BK)
        )
        temperature_B1 = users_Bd.new_ones(len(users_Bd), 1) * self.temperature
        return (
            torch.cat([users_Bd, temperature_B1], 1),
            torch.cat([items_Ud, log_U], 1),
            torch.cat([hard_BKd, log_BK], 2),
        )

    def user_vectors(self, batch: Batch) -> Tensor:
        """[B, d] of the users of a batch."""
        return self.towers.user_vectors(self._with_history_features(batch))

    def tower_weights(self, batch: Batch) -> dict[str, float]:
        """SIDE.NAME -> mean weight of a field or channel, over the rows of a batch and their positives.

        Call it in eval mode, without dropout. Empty for towers without such weights.
        """
        batch = self._with_history_features(batch)
        rows = self.catalogue.rows(batch[self.towers.schema.item_id.column], batch.get(SNAPSHOT))
        return self.towers.weights(batch, self.catalogue.gather(rows))

    def _with_history_features(self, batch: Batch) -> Batch:
        """The batch with the catalogue's features of the items in the history, if there is a history.

        If the tower encodes packed histories, the features are of those.
        """
        history, features = self.towers.schema.history, self.towers.history_features
        if history is None:
            return batch
        items, snapshots = self.towers.pooled_history(batch[history.column]), batch.get(SNAPSHOT)
        if self.towers.encoder and PACKED_HISTORY in batch:
            items = batch[PACKED_HISTORY]
            snapshots = None if snapshots is None else packed_snapshots(items, batch)
        return {**batch, **self.catalogue.history_columns(items, features, snapshots)}

    def _candidates(self, batch: Batch, capacity: int | None) -> tuple[StepCandidates, Tensor | None]:
        """Candidates of this rank's rows, and [U] how often each shared one is expected (None: no correction)."""
        schema = self.towers.schema
        snapshots = batch[SNAPSHOT] if len(self.catalogue.versions) else None
        local = BatchRows(
            batch[USER], batch[schema.item_id.column], batch["negatives"], batch["negative_kinds"], snapshots
        )
        all_ranks = with_most_easy(_gather_rows(local, capacity), self.config.shared_negatives)
        candidates = collect_candidates(
            all_ranks,
            local,
            batch[schema.history.column] if schema.history else None,
            self.catalogue.versions,
            positives_once=self.frequency is not None,
            share_hard=self.config.hard_rows == "all",
        )
        return candidates, self._expected_counts(candidates, all_ranks.items)

    def _expected_counts(self, candidates: StepCandidates, positives_G: Tensor) -> Tensor | None:
        """[U] expected number of entries of each shared candidate; None if the loss has no correction.

        A streaming estimator is read before it learns from this batch: otherwise each item of the batch would look more
        frequent because it is in the batch. The estimators of all ranks see the same positives.
        """
        if self.config.correction == "none":
            return None
        if self.frequency is None:
            in_batch_U = candidates.rows * self._exact_frequencies(candidates, positives_G)
        else:
            in_batch_U = self.frequency.probabilities(candidates.items_U, candidates.rows)
        expected_U = expected_counts(candidates, in_batch_U, self.q)
        if self.frequency is not None and self.training:
            self.frequency.update(positives_G)
        return expected_U

    def _exact_frequencies(self, candidates: StepCandidates, positives_G: Tensor) -> Tensor:
        """[U] share of the training rows whose positive is the candidate."""
        q_U = self.q.in_batch_M[candidates.items_U]
        if self.training:
            return q_U
        # A positive of the valid split may be no positive of any training row. With frequency 0 the correction would
        # raise its logit without bound, so it gets half the frequency of the rarest item. Candidates that were only drawn
        # as negatives keep 0, which is exact for them.
        positive_U = torch.isin(candidates.items_U, positives_G)
        return torch.where(positive_U, q_U.clamp(min=self.q.rarest / 2), q_U)

    def _item_vectors(self, candidates: StepCandidates) -> tuple[Tensor, Tensor]:
        """[U, d] of the shared candidates, each rank embedding its share of them, and [B, K, d] of hard negatives."""
        share = math.ceil(len(candidates.rows_U) / world_size())
        padded = candidates.rows_U.new_full((share * world_size(),), PADDING)
        padded[: len(candidates.rows_U)] = candidates.rows_U
        hard_H, index_BK = torch.unique(candidates.hard_BK, return_inverse=True)
        vectors = self.towers.item_vectors(
            self.catalogue.gather(torch.cat([padded.chunk(world_size())[rank()], hard_H]))
        )
        shared, hard_Hd = vectors.split([share, len(hard_H)])
        # nn.functional.embedding adds gradients in a fixed order, indexing does not (model/loss/objective.py, vectors_of).
        return gather_vectors(shared)[: len(candidates.rows_U)], nn.functional.embedding(index_BK, hard_Hd)

    def _stage_loss(self, users_Bd: Tensor, hard_BKd: Tensor, candidates: StepCandidates, kinds_BK: Tensor) -> Tensor:
        """The loss of the order of stages, before its weight; 0 without gradients, as the loss on held-out hours lacks it."""
        if not (self.config.stage_weight and torch.is_grad_enabled()):
            return users_Bd.new_zeros((), dtype=torch.float32)
        return stage_order(users_Bd, hard_BKd, candidates.hard_BK, kinds_BK, self.temperature, candidates.rows)

    def _add_self_loss(self, loss: Tensor) -> tuple[Tensor, float]:
        """The loss plus the weighted self-supervised loss, and the latter before its weight; 0 outside training."""
        if self.self_supervision is None:
            return loss, 0.0
        self_loss = self.self_supervision.loss(self.towers) if self.training else loss.new_zeros(())
        return loss + self.self_supervision.config.weight * self_loss, float(self_loss.detach())


def _gather_rows(local: BatchRows, capacity: int | None) -> BatchRows:
    """Rows of all ranks, in one message: a few integers per row."""
    columns = [local.users[:, None], local.items[:, None], local.negatives, local.kinds]
    if local.snapshots is not None:
        columns.append(local.snapshots[:, None])
    gathered = gather_rows(torch.cat(columns, dim=1), capacity).split([part.shape[1] for part in columns], dim=1)
    users, items, negatives, kinds, *snapshots = gathered
    return BatchRows(
        users.squeeze(1), items.squeeze(1), negatives, kinds, snapshots[0].squeeze(1) if snapshots else None
    )

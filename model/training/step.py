"""One training step up to its loss: batch -> candidates -> vectors -> loss, the same on one rank and on many.

Shapes: G rows of the global batch (padded), B rows of this rank, K negatives a row, U shared candidates, H distinct hard
negatives, R ranks, d vector length.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import LossConfig
from model.data.catalogue import Catalogue, SamplingProbabilities
from model.data.item_versions import SNAPSHOT
from model.data.petastorm_reader import USER
from model.distributed.collectives import gather_rows, gather_vectors, rank, world_size
from model.loss.candidates import BatchRows, StepCandidates, collect_candidates
from model.loss.logq import expected_counts
from model.loss.objective import batch_loss, positive_ranks
from model.loss.self_supervision import SelfSupervision
from model.loss.streaming_frequency import FrequencyEstimator
from model.network.embeddings import Batch
from model.network.two_tower import TwoTower
from pipelines.contract.indices import PADDING

HITS_AT = 10  # A row of an evaluation is a hit where its positive is among so many best shared candidates.
TEMPERATURES = (0.005, 1.0)  # Where a learned one may go: below, one candidate takes all; above, nothing is told apart.


class StepOutput(NamedTuple):
    """What a step returns. `figures` are sums over this rank's rows, to be added over ranks."""

    loss: Tensor  # Scalar to call backward() on. DDP averages gradients, so it is R times this rank's share.
    losses_B: Tensor  # Each row's loss, detached.
    figures: Tensor  # In the order of FIGURES.
    candidates: StepCandidates
    items_Ud: Tensor  # Vectors of the shared candidates, detached.


FIGURES = ("loss", "self_loss", "rows", "hits", "masked_shared", "masked_hard", "rows_without_negatives")


class RetrievalStep(nn.Module):
    """The towers with everything that their loss needs. Wrap this one in DistributedDataParallel."""

    def __init__(
        self,
        towers: TwoTower,
        catalogue: Catalogue,
        q: SamplingProbabilities,
        config: LossConfig,
        frequency: FrequencyEstimator | None = None,
        self_supervision: SelfSupervision | None = None,
    ) -> None:
        """`frequency`: of the in-batch positives; None: the exact ones of `q`. Of one that learns, this is the owner.

        `self_supervision`: a second loss, in training only.
        """
        super().__init__()
        self.towers, self.catalogue, self.q, self.config = towers, catalogue, q, config
        self.frequency, self.self_supervision = frequency, self_supervision
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(config.temperature)), requires_grad=config.learned_temperature
        )
        self.limit_temperature()

    @property
    def temperature(self) -> Tensor | float:
        """The divisor of all logits, fixed or learned."""
        return self.log_temperature.exp() if self.config.learned_temperature else self.config.temperature

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Bring a learned temperature back to TEMPERATURES; to be called after each step of the optimiser.

        Not a clamp in the forward pass: beyond a limit that has no gradient, and what is there stays there.
        """
        if self.config.learned_temperature:
            self.log_temperature.clamp_(*(math.log(limit) for limit in TEMPERATURES))

    def forward(self, batch: Batch, capacity: int) -> StepOutput:
        """Loss of this rank's rows against candidates of all ranks.

        batch: the columns of `samples` that training reads. capacity: the most rows that any rank has in this step.
        """
        history_BL, batch = self._with_history(batch)
        local = self._rows(batch)
        everyone = self._gather(local, capacity)
        candidates = collect_candidates(
            everyone, local, history_BL, self.catalogue.versions, positives_once=self.frequency is not None
        )
        expected_U = self._expected(candidates, everyone.items)
        items_Ud, hard_BKd = self._embed(candidates)
        users_Bd = self.towers.user_vectors(batch)

        loss, losses_B, contrasted_B = batch_loss(
            users_Bd, items_Ud, hard_BKd, batch["weight"], candidates, expected_U, self.temperature, self.config
        )
        self_loss = loss.new_zeros(())
        if self.self_supervision is not None and self.training:
            self_loss = self.self_supervision.loss(self.towers)
        hits = 0
        if not self.training:
            hits = int((positive_ranks(users_Bd, items_Ud, candidates) < HITS_AT).sum())
        figures = torch.tensor(
            [
                float(loss.detach()),
                float(self_loss.detach()),
                len(losses_B),
                hits,
                len(candidates.excluded_rows_E),
                candidates.hard_excluded,
                int((~contrasted_B).sum()),
            ],
            dtype=torch.float64,
        )
        if self.self_supervision is not None:
            loss = loss + self.self_supervision.config.weight * self_loss
        return StepOutput(loss * world_size(), losses_B, figures, candidates, items_Ud.detach())

    def tower_weights(self, batch: Batch) -> dict[str, float]:
        """SIDE.NAME -> what the towers weigh, over the rows of a batch and their positives. In eval mode: no dropout."""
        _, batch = self._with_history(batch)
        rows = self.catalogue.rows(batch[self.towers.schema.item_id.column], batch.get(SNAPSHOT))
        return self.towers.weights(batch, self.catalogue.gather(rows))

    def _with_history(self, batch: Batch) -> tuple[Tensor | None, Batch]:
        """The history [B, L], where there is one, and the batch with what the catalogue says of the items in it."""
        history = self.towers.schema.history
        if history is None:
            return None, batch
        history_BL = batch[history.column]
        columns = self.catalogue.history_columns(history_BL, self.towers.history_features, batch.get(SNAPSHOT))
        return history_BL, {**batch, **columns}

    def _expected(self, candidates: StepCandidates, items_G: Tensor) -> Tensor | None:
        """[U] expected entries of each candidate; None where the loss takes no correction.

        An estimator is asked before it is told of this batch: an item that is here would otherwise look the more
        frequent for being here. All ranks tell it the same.
        """
        if self.config.correction == "none":
            return None
        if self.frequency is None:
            q_U = self.q.in_batch_M[candidates.items_U]
            if not self.training:
                # A positive of the valid split that no training row has: taken as 0, its logit would be raised without
                # bound. Where an item is drawn as a negative alone 0 is the truth, and any floor would count it for less.
                positive_U = torch.isin(candidates.items_U, items_G)
                q_U = torch.where(positive_U, q_U.clamp(min=self.q.rarest / 2), q_U)
            return expected_counts(candidates, candidates.rows * q_U, self.q)
        expected_U = expected_counts(
            candidates, self.frequency.probabilities(candidates.items_U, candidates.rows), self.q
        )
        if self.training:
            self.frequency.update(items_G)
        return expected_U

    def _rows(self, batch: Batch) -> BatchRows:
        items = batch[self.towers.schema.item_id.column]
        snapshots = batch[SNAPSHOT] if len(self.catalogue.versions) else None
        return BatchRows(batch[USER], items, batch["negatives"], batch["negative_kinds"], snapshots)

    def _gather(self, local: BatchRows, capacity: int) -> BatchRows:
        """Indices of all ranks' rows; a few integers a row, in one message."""
        columns = [local.users[:, None], local.items[:, None], local.negatives, local.kinds]
        if local.snapshots is not None:
            columns.append(local.snapshots[:, None])
        gathered = gather_rows(torch.cat(columns, dim=1), capacity).split([part.shape[1] for part in columns], dim=1)
        users, items, negatives, kinds, *snapshots = gathered
        return BatchRows(
            users.squeeze(1), items.squeeze(1), negatives, kinds, snapshots[0].squeeze(1) if snapshots else None
        )

    def _embed(self, candidates: StepCandidates) -> tuple[Tensor, Tensor]:
        """[U, d] of the shared candidates, of which each rank embeds its share, and [B, K, d] of hard negatives."""
        share = math.ceil(len(candidates.rows_U) / world_size())
        padded = candidates.rows_U.new_full((share * world_size(),), PADDING)
        padded[: len(candidates.rows_U)] = candidates.rows_U
        hard_H, places_BK = torch.unique(candidates.hard_BK, return_inverse=True)
        vectors = self.towers.item_vectors(
            self.catalogue.gather(torch.cat([padded.chunk(world_size())[rank()], hard_H]))
        )
        shared, hard_Hd = vectors.split([share, len(hard_H)])
        # As an embedding, whose gradients are added in one order (model/loss/objective.py, vectors_of).
        return gather_vectors(shared)[: len(candidates.rows_U)], nn.functional.embedding(places_BK, hard_Hd)

"""Recall@K of the valid split over the whole catalogue, while training. Recorded for each epoch of a first night.

Shapes: B rows of a batch, V collected rows of this rank, C items of a piece of the catalogue, L history length, d vector
length.
"""

import math

import torch
from torch import Tensor

from model.distributed.collectives import gather_vectors, rank, sum_over_ranks, world_size
from model.loss.candidates import places_of
from model.network.embeddings import Batch
from model.training.step import RetrievalStep
from pipelines.contract.indices import PADDING

# Rows of the valid split that are ranked, evenly spread over it. The standard error is then below 0.0036.
MOST_ROWS = 20_000
ITEMS, ROWS = 4096, 2048  # Items of a piece of the catalogue and rows of a block: 32 MiB of scores at once.


class CorpusRecall:
    """Collects rows of the valid split, then ranks each positive among all items that are in the catalogue tonight.

    As in a release: example_age is 0, and items have their current features. Items of the row's history are not ranked. A
    positive that has left the catalogue is a miss. All ranks make the same calls; each passes its own rows.
    """

    def __init__(self, step: RetrievalStep, k: int, rows: int) -> None:
        """`rows`: number of rows of the valid split. `step` must be in eval mode."""
        self._step, self._k, self._every = step, k, math.ceil(rows / MOST_ROWS)
        self._users: list[Tensor] = []
        self._positives: list[Tensor] = []
        self._items: list[Tensor] = []
        self._histories: list[Tensor] = []

    @torch.no_grad()
    def add(self, batch: Batch, numbers_B: Tensor) -> None:
        """Add this rank's rows of a batch. `numbers_B`: their positions in the split, which decide whether a row counts."""
        step, schema = self._step, self._step.towers.schema
        if schema.example_age:
            batch = batch | {schema.example_age.column: torch.zeros_like(batch[schema.example_age.column])}
        keep_B = numbers_B % self._every == 0
        items_B = batch[schema.item_id.column]
        self._users.append(step.user_vectors(batch)[keep_B])
        self._positives.append(step.towers.item_vectors(step.catalogue.gather(step.catalogue.rows(items_B)))[keep_B])
        self._items.append(items_B[keep_B])
        history_BL = batch[schema.history.column] if schema.history else items_B.new_zeros(len(items_B), 0)
        self._histories.append(history_BL[keep_B])

    @torch.no_grad()
    def result(self) -> float:
        """Share of the rows of all ranks whose positive is among the K items with the highest scores."""
        users_Vd, items_V = torch.cat(self._users), torch.cat(self._items)
        scores_V = (users_Vd * torch.cat(self._positives)).sum(1)
        ranked_VL = torch.cat([items_V[:, None], torch.cat(self._histories)], dim=1)  # Not compared with the positive.
        above_V = torch.zeros_like(items_V)
        present = self._step.catalogue.present.sort().values
        for items_C in present.split(ITEMS):
            vectors_Cd = self._item_vectors(items_C)
            for start in range(0, len(users_Vd), ROWS):
                block = slice(start, start + ROWS)
                better = users_Vd[block] @ vectors_Cd.T > scores_V[block, None]
                rows, places = places_of(ranked_VL[block], items_C)
                better[rows, places] = False
                above_V[block] += better.sum(1)
        hits = ((above_V < self._k) & torch.isin(items_V, present)).sum()
        hits, rows_of_ranks = sum_over_ranks(torch.stack([hits, hits.new_tensor(len(items_V))])).tolist()
        return hits / rows_of_ranks

    def _item_vectors(self, items_C: Tensor) -> Tensor:
        """[C, d] of items with their current features. Each rank embeds its share."""
        step, share = self._step, math.ceil(len(items_C) / world_size())
        padded = items_C.new_full((share * world_size(),), PADDING)
        padded[: len(items_C)] = items_C
        mine = step.catalogue.rows(padded.chunk(world_size())[rank()])
        return gather_vectors(step.towers.item_vectors(step.catalogue.gather(mine)))[: len(items_C)]

"""Weight decay of the embeddings of item ids: the fewer positives an item has, the more its row shrinks.

The row of a rare item can learn its few clicks by heart, and drown what the features of the item say. A Gaussian prior on the
rows, of one width for all items, shrinks those most whose clicks say least (Salakhutdinov and Mnih, NeurIPS 2007:
probabilistic matrix factorisation). Adam makes the steps of rare and of frequent rows about equally long, so that a decoupled
decay (Loshchilov and Hutter, ICLR 2019: AdamW) of one strength would shrink them alike. Here its strength depends on the
item: in each step in which a row has a gradient it is multiplied by

    1 - rate x decay / (1 + n),  n: positives of the item / those of the mean item

It is the same for tables with dense and sparse gradients, for sharded tables and for both optimisers. Rows without a gradient
keep their values: a night must not shrink items that it does not train.
"""

import torch
from torch import Tensor, nn

from model.data.popularity import read_log_popularity
from model.distributed.collectives import rank, world_size
from model.distributed.sharded_embedding import ShardedEmbedding
from model.network.embeddings import HISTORY, table_name
from model.training.spec import TrainingSpec
from model.training.step import RetrievalStep


class ItemDecay:
    """The decay of the tables of item ids of one training."""

    def __init__(self, step: RetrievalStep, spec: TrainingSpec) -> None:
        """Reads the positives of the items from `spec.item_stats`. Without these files, all items count as the mean item."""
        ids = step.towers.schema.item_id
        log_M = step.log_popularity_M
        if log_M is None:
            log_M = read_log_popularity(spec.features, spec.item_stats) if spec.item_stats else torch.zeros(ids.size)
        self.weight_T = _weights(step, log_M.to(step.device))
        tables = step.towers.tables
        self.tables = [tables[name] for name in (table_name(ids), HISTORY) if name in tables]

    def apply(self, share: float) -> None:
        """Shrink the rows that have a gradient. `share`: learning rate x decay.

        Call it after the gradients of all ranks have been exchanged. All copies of a replicated table then decay the same
        rows, and each rank decays the rows of its share of a sharded table.
        """
        for table in self.tables:
            shrink_rows(table, self.weight_T, share)


@torch.no_grad()
def shrink_rows(table: nn.Module, weight_T: Tensor, share: float) -> None:
    """Multiply each row of a table that has a gradient by 1 - share x its weight, or by 0 if that is negative."""
    sharded = isinstance(table, ShardedEmbedding)
    values: Tensor = table.share if sharded else table.weight  # type: ignore[assignment]
    if values.grad is None:
        return
    rows = _rows_with_gradient(values.grad)
    weight_R = weight_T[rank() :: world_size()] if sharded else weight_T
    values[rows] *= (1 - share * weight_R[rows, None]).clamp(min=0)


def _weights(step: RetrievalStep, log_popularity_M: Tensor) -> Tensor:
    """[T] 1 / (1 + n) of each row of the table of item ids. Items that share a row add up."""
    ids, catalogue = step.towers.schema.item_id, step.catalogue
    popularity_M = log_popularity_M.exp()
    if ids.rows is None:
        return 1 / (1 + popularity_M)
    items = catalogue.present
    rows = catalogue.values(ids.rows.column, catalogue.rows(items))
    popularity_T = popularity_M.new_zeros(ids.table_size).index_add(0, rows, popularity_M[items])
    return 1 / (1 + popularity_T)


def _rows_with_gradient(gradient: Tensor) -> Tensor:
    if not gradient.is_sparse:
        return (gradient != 0).any(1).nonzero().squeeze(1)
    gradient = gradient.coalesce()
    return gradient.indices()[0][(gradient.values() != 0).any(1)]

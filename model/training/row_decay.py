"""Weight decay of the embedding tables of ids: shrinks only the rows that a step trains.

A row that has a gradient in a step is multiplied by 1 - rate x decay before the optimiser's step (decoupled, as in AdamW:
Loshchilov and Hutter, ICLR 2019). This is the same for tables with dense and sparse gradients, for sharded tables and for
both optimisers, so a table that grows beyond `embedding_rows_sparse` is regularised as before.

Rows without a gradient keep their values. A night would otherwise shrink every user and item without events towards zero. A
row is thus decayed in proportion to the number of steps that it is in, which is the weighted regularisation of matrix
factorisation (Zhou et al., AAIM 2008: lambda times the number of events of the row).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.distributed.sharded_embedding import ShardedEmbedding


@torch.no_grad()
def decay_rows(tables: Iterable[nn.Module], share: float) -> None:
    """Multiply the rows that have a gradient by 1 - share. `share`: learning rate x weight decay.

    Call it after the gradients of all ranks have been exchanged. All copies of a replicated table then decay the same rows,
    and each rank decays the rows of its share of a sharded table.
    """
    for table in tables:
        values: Tensor = table.share if isinstance(table, ShardedEmbedding) else table.weight  # type: ignore[assignment]
        if values.grad is not None:
            values[_rows_with_gradient(values.grad)] *= 1 - share


def _rows_with_gradient(gradient: Tensor) -> Tensor:
    if not gradient.is_sparse:
        return (gradient != 0).any(1).nonzero().squeeze(1)
    gradient = gradient.coalesce()
    return gradient.indices()[0][(gradient.values() != 0).any(1)]

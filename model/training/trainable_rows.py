"""Embedding tables of ids: their names, and the restriction of an update within the day to the rows of its events."""

import torch
from torch import Tensor, nn

from model.distributed.collectives import rank, world_size
from model.distributed.sharded_embedding import ShardedEmbedding, shares_of
from model.network.embeddings import HISTORY, table_name
from model.training.step import RetrievalStep
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import IdFeature


def id_tables(step: RetrievalStep) -> dict[str, nn.Module]:
    """The embedding tables of ids (users, items, history) by name."""
    schema, tables = step.towers.schema, step.towers.tables
    names = {table_name(feature) for feature in (*schema.user, *schema.item) if isinstance(feature, IdFeature)}
    return {name: table for name, table in tables.items() if name in (*names, HISTORY)}


def train_only_id_tables(step: RetrievalStep) -> None:
    """Freeze all parameters except the embedding tables of ids.

    A parameter that many items share, such as the row of a category, has learned from more data than the events of a few
    hours, and a change of it would move every item with that category.
    """
    ids = id_tables(step)
    shared = (table for name, table in step.towers.tables.items() if name not in ids)
    shared_values = (values for table in shared for values in (*table.parameters(), *shares_of(table)))
    for parameter in (*step.towers.dense_parameters(), step.log_temperature, *shared_values):
        parameter.requires_grad_(False)


def drop_default_row_gradients(step: RetrievalStep) -> None:
    """Remove the padding row and the default row from the sparse gradients of all tables. Call it before the optimiser.

    An update has no id dropout, so the default row would only get gradients of negatives, and the scores of all items
    without a positive, which read that row, would drop.
    """
    for table in step.towers.tables.values():
        sharded = isinstance(table, ShardedEmbedding)
        values: Tensor = table.share if sharded else table.weight  # type: ignore[assignment]
        if values.grad is None:
            continue
        gradient = values.grad.coalesce()
        rows = gradient.indices()[0]
        own = (rows * world_size() + rank() if sharded else rows) > DEFAULT
        values.grad = torch.sparse_coo_tensor(
            gradient.indices()[:, own], gradient.values()[own], gradient.shape, is_coalesced=True
        )

"""What an update within the day may train: the rows of users and items that its events met."""

import torch
from torch import Tensor

from model.distributed.collectives import rank, world_size
from model.distributed.sharded_embedding import ShardedEmbedding, shares_of
from model.network.embeddings import HISTORY, table_name
from model.training.step import RetrievalStep
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import IdFeature


def train_only_id_tables(step: RetrievalStep) -> None:
    """Leave nothing to be trained but the embedding tables of ids.

    What many share (a category) knows more than a few hours can tell it, and would move every item that has it.
    """
    schema, tables = step.towers.schema, step.towers.tables
    ids = {table_name(feature) for feature in (*schema.user, *schema.item) if isinstance(feature, IdFeature)}
    shared = (table for name, table in tables.items() if name not in (*ids, HISTORY))
    of_tables = (values for table in shared for values in (*table.parameters(), *shares_of(table)))
    for parameter in (*step.towers.dense_parameters(), step.log_temperature, *of_tables):
        parameter.requires_grad_(False)


def drop_default_row_gradients(step: RetrievalStep) -> None:
    """Take padding and the default row out of the sparse gradients of all tables, before an optimiser sees them.

    An update drops no ids, so the default row would meet gradients of negatives only, and every item that nobody has had
    yet, which reads it, would fall behind the others.
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

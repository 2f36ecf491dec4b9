"""Rows of items that have had no positive yet."""

import torch

from model.distributed.sharded_embedding import local_rows
from model.network.embeddings import table_name
from model.training.step import RetrievalStep
from pipelines.contract.indices import DEFAULT


@torch.no_grad()
def reset_unseen_items(step: RetrievalStep) -> None:
    """Copy the default row into the rows of items that have had no positive yet, in the table of item ids.

    Such items read the default row. With its first positive an item gets a row, which then starts from these values.
    Each rank sets the rows that it holds. Does nothing if item ids are hashed or all items have rows.
    """
    ids = step.towers.schema.item_id
    if ids.rows is None or ids.hashed:
        return
    items = step.catalogue.present
    unseen = items[step.catalogue.values(ids.rows.column, step.catalogue.rows(items)) == DEFAULT]
    table = step.towers.tables[table_name(ids)]
    default_1e = table(items.new_tensor([DEFAULT]))
    values, rows = local_rows(table, unseen)
    values[rows] = default_1e

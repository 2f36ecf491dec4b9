"""Vectors for serving: numpy in, numpy out, so that Spark can call it on Arrow batches.

Shapes: n rows, d vector length.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.data.batching import to_tensor
from model.data.catalogue import Catalogue
from model.io.arrow import to_arrays
from model.network.embeddings import Batch, history_column
from model.network.two_tower import TwoTower

_ROWS = 8192  # At a time: bounds memory, and larger is not faster.


def batch_columns(batch: pa.RecordBatch | pa.Table, columns: list[str]) -> dict[str, np.ndarray]:
    """Some columns of an Arrow batch as arrays: scalars [n], lists of equal length [n, length].

    Raises ColumnError for nulls or ragged lists, KeyError for a missing column.
    """
    return to_arrays(batch.select(columns))


def embed_items(model: TwoTower, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """[n, d] float32 of unit length, from `model.schema.item_columns`."""
    names = model.schema.item_columns
    return _embed(model, {name: columns[name] for name in names}, model.item_vectors)


def embed_users(model: TwoTower, columns: Mapping[str, np.ndarray], catalogue: Catalogue | None = None) -> np.ndarray:
    """[n, d] float32 of unit length, from `model.schema.user_columns`; example_age may be missing and counts as 0.

    catalogue: where the model pools item features over the history; its columns may also be given as `history_COLUMN`.
    """
    schema = model.schema
    given = [*schema.user_columns, *(history_column(feature.column) for feature in model.history_features)]
    batch = {name: columns[name] for name in given if name in columns}
    if schema.example_age:
        # Training looks back at an event from the end of its window; a request is at the end of it.
        rows = len(next(iter(columns.values())))
        batch[schema.example_age.column] = np.zeros(rows, np.float32)
    if catalogue is None or schema.history is None:
        return _embed(model, batch, model.user_vectors)
    history = schema.history.column
    return _embed(
        model,
        batch,
        lambda part: model.user_vectors({**part, **catalogue.history_columns(part[history], model.history_features)}),
    )


@torch.inference_mode()
def _embed(model: TwoTower, columns: Mapping[str, np.ndarray], vectors: Callable[[Batch], Tensor]) -> np.ndarray:
    """[n, d]: `vectors` of the columns, some rows at a time, in eval mode; the model is left in the mode it was in."""
    rows = len(next(iter(columns.values())))
    result = np.empty((rows, model.config.dim), np.float32)
    training = model.training
    model.eval()
    try:
        for start in range(0, rows, _ROWS):
            part = slice(start, start + _ROWS)
            result[part] = vectors({name: to_tensor(values[part]) for name, values in columns.items()}).numpy()
    finally:
        model.train(training)
    return result

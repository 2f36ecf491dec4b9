"""Computes vectors for serving. Numpy in, numpy out, so that Spark can call it on Arrow batches.

Shapes: n rows, d vector length: `TwoTower.dim`, the components of the towers (of length 1), the item-item part and the prior.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.data.batching import to_tensor
from model.data.catalogue import Catalogue
from model.io.arrow import to_arrays
from model.network.embeddings import Batch, history_column
from model.network.two_tower import TwoTower

_ROWS = 8192  # Rows per forward pass. Bounds memory; larger batches are not faster.


def batch_columns(batch: pa.RecordBatch | pa.Table, columns: list[str]) -> dict[str, np.ndarray]:
    """Columns of an Arrow batch as arrays: scalars [n], lists of equal length [n, length].

    Raises ColumnError for nulls or ragged lists, KeyError for a missing column.
    """
    return to_arrays(batch.select(columns))


def embed_items(model: TwoTower, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Item vectors [n, d], float32, from `model.schema.item_columns`."""
    names = model.schema.item_columns
    return _embed(model, {name: columns[name] for name in names}, model.item_vectors)


def embed_users(model: TwoTower, columns: Mapping[str, np.ndarray], catalogue: Catalogue | None = None) -> np.ndarray:
    """User vectors [n, d], float32, from `model.schema.user_columns`. example_age is always 0.

    catalogue: needed if the model pools item features over the history, unless `columns` has them as `history_COLUMN`.
    """
    schema = model.schema
    names = [*schema.user_columns, *(history_column(feature.column) for feature in model.history_features)]
    batch = {name: columns[name] for name in names if name in columns}
    if schema.example_age:
        # example_age is the time from an event to the end of the training window. A request is at the end.
        rows = len(next(iter(columns.values())))
        batch[schema.example_age.column] = np.zeros(rows, np.float32)
    if catalogue is None or schema.history is None:
        return _embed(model, batch, model.user_vectors)
    history = schema.history.column
    return _embed(
        model,
        batch,
        lambda part: model.user_vectors(
            {**part, **catalogue.history_columns(model.pooled_history(part[history]), model.history_features)}
        ),
    )


def history_catalogue(model: TwoTower, urls: Sequence[str]) -> Catalogue | None:
    """The item features that a user tower reads of the history, from the files of `item_features`; None if it reads none."""
    if not model.history_features:
        return None
    schema = model.schema
    needed = {feature.name for feature in model.history_features} | {schema.item_id.name}
    return Catalogue.read(schema.without([f.name for f in schema.item if f.name not in needed]), urls)


@torch.inference_mode()
def _embed(model: TwoTower, columns: Mapping[str, np.ndarray], vectors: Callable[[Batch], Tensor]) -> np.ndarray:
    """Apply `vectors` to the columns, _ROWS rows at a time, in eval mode: [n, d]. Restores the mode of the model."""
    rows = len(next(iter(columns.values())))
    result = np.empty((rows, model.dim), np.float32)
    training = model.training
    model.eval()
    try:
        for start in range(0, rows, _ROWS):
            part = slice(start, start + _ROWS)
            result[part] = vectors({name: to_tensor(values[part]) for name, values in columns.items()}).numpy()
    finally:
        model.train(training)
    return result

"""The item side as tensors: samples carry item indices only, and everything else is gathered from here.

Shapes: M indices of the item vocabulary (padding and default included), N items asked for, V values a feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.arrays import ColumnError
from model.batching import to_tensor
from model.features import DEFAULT, PADDING, Batch, history_column, lookup_column, rows_of
from model.files import read_columns
from model.schema import Feature, FeatureSchema, IdFeature, MultiCategoricalFeature, NumericFeature


class Catalogue:
    """Features of every item, by item index.

    An index without a row (an item that has left, or the default one) has default features: index 1, or the mean.
    """

    def __init__(self, schema: FeatureSchema, rows: dict[str, np.ndarray]) -> None:
        """`rows`: the schema's item columns of `item_features`. Raises ColumnError for an index that does not fit."""
        self.schema = schema
        self.size = schema.item_id.size
        index = rows[schema.item_id.column]
        _check_indices(index, self.size, schema.item_id.column)
        places = self.present = to_tensor(index)  # Indices that have a row, in no order.
        self.columns: Batch = {}
        for feature in schema.item:
            for column, default in _defaults(feature, self.size).items():
                values = rows[column]
                if values.shape[1:] != default.shape[1:]:
                    raise ColumnError(
                        f"column {column!r} has shape {values.shape}, the schema says {default.shape[1:]} a row"
                    )
                if not default.is_floating_point() and not isinstance(feature, NumericFeature):
                    _check_indices(values, rows_of(feature), column)
                default[places] = to_tensor(values)
                self.columns[column] = default

    @classmethod
    def read(cls, schema: FeatureSchema, urls: Sequence[str]) -> "Catalogue":
        """From the Parquet files of one partition of `item_features`."""
        return cls(schema, read_columns(urls, schema.item_columns))

    def gather(self, indices: Tensor) -> Batch:
        """The item tower's batch for indices of any shape: every column [*shape] or [*shape, V]."""
        return {self.schema.item_id.column: indices, **{name: tensor[indices] for name, tensor in self.columns.items()}}

    def defaults(self) -> Batch:
        """The item tower's batch of one item of which nothing is known: index 1, default features."""
        return self.gather(torch.tensor([DEFAULT]))

    def history_columns(self, history_BL: Tensor, features: Sequence[Feature]) -> Batch:
        """Columns `history_COLUMN` of some item features for every item in the histories; padding stays padding."""
        columns = {}
        for feature in features:
            column = lookup_column(feature)
            values = self.columns[column][history_BL]
            padding = (history_BL == PADDING).reshape(history_BL.shape + (1,) * (values.dim() - history_BL.dim()))
            columns[history_column(column)] = values.masked_fill(padding, PADDING)
        return columns


@dataclass(frozen=True)
class SamplingProbabilities:
    """How likely one draw of each source is item j, all [M] float32. 0 where the source never draws it.

    In-batch: as `read`, nothing is 0. An item that no training row has (a validation positive, say) cannot be more
    likely than the rarest that one has; taken as 0, its logit would be raised without bound.
    """

    in_batch_M: Tensor
    uniform_M: Tensor
    popularity_M: Tensor

    @classmethod
    def read(cls, schema: FeatureSchema, urls: Sequence[str]) -> "SamplingProbabilities":
        """From the Parquet files of one partition of `item_stats`."""
        names = ("q_in_batch", "q_uniform", "q_popularity")
        rows = read_columns(urls, ["item_index", *names])
        _check_indices(rows["item_index"], schema.item_id.size, "item_index")
        tensors = [torch.zeros(schema.item_id.size) for _ in names]
        for name, tensor in zip(names, tensors, strict=True):
            tensor[to_tensor(rows["item_index"])] = to_tensor(rows[name])
        in_batch_M = tensors[0]
        seen = in_batch_M[in_batch_M > 0]
        in_batch_M.clamp_(min=float(seen.min()) / 2 if len(seen) else 1 / schema.item_id.size)
        return cls(*tensors)


def _defaults(feature: Feature, size: int) -> Batch:
    """The columns of one feature with the default in every row; none of an id, unless it is hashed."""
    if isinstance(feature, IdFeature):
        return {feature.hashed.column: torch.full((size,), DEFAULT)} if feature.hashed else {}
    if isinstance(feature, NumericFeature):
        return {feature.column: torch.full((size,), feature.mean)}
    if not isinstance(feature, MultiCategoricalFeature):
        return {feature.column: torch.full((size,), DEFAULT)}
    values = torch.full((size, feature.length), PADDING)
    values[:, 0] = DEFAULT
    columns = {feature.column: values}
    if feature.weights_column:
        columns[feature.weights_column] = (values == DEFAULT).float()
    return columns


def _check_indices(values: np.ndarray, size: int, column: str) -> None:
    if values.size and (values.min() < 0 or values.max() >= size):
        raise ColumnError(
            f"column {column!r} holds indices from {values.min()} to {values.max()}, the schema has {size}: "
            "the table and the schema are of different nights"
        )

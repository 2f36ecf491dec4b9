"""The item side as tensors: samples carry item indices only, and everything else is gathered from here.

In training an item may have several rows, one for each version of its features (model/data/item_versions.py). Elsewhere
each item has one row.

Shapes: M indices of the item vocabulary (padding and default included), N items asked for, V values a feature.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from model.data.batching import to_tensor
from model.data.item_columns import ItemColumn, MappedFiles, MultiValueColumn, SingleValueColumn, bytes_of
from model.data.item_versions import VALID_BEFORE, StackedColumns, Versions
from model.io.arrow import ColumnError
from model.io.urls import read_columns
from model.network.embeddings import Batch, history_column, lookup_column, rows_of
from pipelines.contract.indices import DEFAULT, PADDING
from pipelines.contract.schema import Feature, FeatureSchema, IdFeature, MultiCategoricalFeature, NumericFeature


class Catalogue:
    """Features of every item, by the row that `rows` tells of an item index.

    An index without a row (an item that has left, or the default one) has default features: index 1, or the mean.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        rows: Mapping[str, np.ndarray],
        memory_mb: int | None = None,
        earlier: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """`rows`: the schema's item columns of `item_features`, asked for one by one.

        `earlier`: those of `item_versions` and its `valid_before`; None: every item has its current version only.
        `memory_mb`: once the columns take more, they are mapped from files; None: never.
        Raises ColumnError for an index that does not fit.
        """
        self.schema = schema
        self.size = schema.item_id.size
        index = rows[schema.item_id.column]
        _check_indices(index, self.size, schema.item_id.column)
        self.present = to_tensor(index)  # Indices that have a current row, in no order.
        self.versions, places = Versions.none(), self.present
        if earlier is not None:
            self.versions, order = Versions.build(earlier[schema.item_id.column], earlier[VALID_BEFORE])
            rows = StackedColumns(rows, earlier, order)
            _check_indices(rows[schema.item_id.column], self.size, schema.item_id.column)
            places = torch.cat([self.versions.rows(self.present), self.versions.rows_V])
        size = self.size + len(self.versions)
        self.columns: dict[str, ItemColumn] = {}
        self._files: MappedFiles | None = None
        for feature in schema.item:
            made = _columns(feature, rows, size, places)
            if self._files is None and memory_mb is not None and bytes_of(self.columns | made) > memory_mb * 2**20:
                self._files = MappedFiles()
                self.columns, made = {}, self.columns | made
            self.columns |= {name: self._files.move(name, made[name]) for name in made} if self._files else made

    @property
    def mapped(self) -> bool:
        """Whether the columns lie in files."""
        return self._files is not None

    @classmethod
    def read(
        cls, schema: FeatureSchema, urls: Sequence[str], memory_mb: int | None = None, earlier: Sequence[str] = ()
    ) -> "Catalogue":
        """From the Parquet files of one partition of `item_features`, a column at a time: as read they are padded.

        `earlier`: those of `item_versions`; none: every item has its current version only.
        """
        columns = schema.item_columns
        versions = _OneByOne(earlier, [*columns, VALID_BEFORE]) if earlier else None
        return cls(schema, _OneByOne(urls, columns), memory_mb, versions)

    def rows(self, items: Tensor, snapshots: Tensor | None = None) -> Tensor:
        """The rows of items as some snapshots know them, or as they are now: see Versions.rows."""
        return self.versions.rows(items, snapshots)

    def gather(self, rows: Tensor) -> Batch:
        """The item tower's batch for rows of any shape: every column [*shape] or [*shape, V]."""
        found = {name: column.gather(rows) for name, column in self.columns.items()}
        return {self.schema.item_id.column: self.versions.items(rows), **found}

    def defaults(self) -> Batch:
        """The item tower's batch of one item of which nothing is known: index 1, default features."""
        return self.gather(torch.tensor([DEFAULT]))

    def history_columns(
        self, history_BL: Tensor, features: Sequence[Feature], snapshots_B: Tensor | None = None
    ) -> Batch:
        """Columns `history_COLUMN` of some item features for every item in the histories; padding stays padding.

        `snapshots_B`: which snapshot each row sees; None: features as they are now.
        """
        columns: Batch = {}
        if not features:
            return columns
        rows_BL = self.rows(history_BL, None if snapshots_B is None else snapshots_B[:, None])
        for feature in features:
            column = lookup_column(feature)
            values = self.columns[column].gather(rows_BL)
            padding = (history_BL == PADDING).reshape(history_BL.shape + (1,) * (values.dim() - history_BL.dim()))
            columns[history_column(column)] = values.masked_fill(padding, PADDING)
        return columns


@dataclass(frozen=True)
class _OneByOne(Mapping[str, np.ndarray]):
    """Columns of Parquet files, each read when it is asked for."""

    urls: Sequence[str]
    names: Sequence[str]

    def __getitem__(self, name: str) -> np.ndarray:
        return read_columns(self.urls, [name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class SamplingProbabilities:
    """How likely one draw of each source is item j, all [M] float32. 0 where the source never draws it."""

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
        return cls(*tensors)

    @cached_property
    def rarest(self) -> float:
        """The smallest chance of an in-batch positive; of any item, where there are none."""
        drawn = self.in_batch_M[self.in_batch_M > 0]
        return float(drawn.min()) if len(drawn) else 1 / len(self.in_batch_M)


def _columns(feature: Feature, rows: Mapping[str, np.ndarray], size: int, places: Tensor) -> dict[str, ItemColumn]:
    """The columns of one feature, with the default where there is no row; none of an id whose row is its index."""
    if isinstance(feature, IdFeature):
        if feature.rows is None:
            return {}
        column, default = feature.rows.column, float(DEFAULT)
    else:
        column, default = feature.column, feature.mean if isinstance(feature, NumericFeature) else float(DEFAULT)
    values = rows[column]
    shape = (feature.length,) if isinstance(feature, MultiCategoricalFeature) else ()
    if values.shape[1:] != shape:
        raise ColumnError(f"column {column!r} has shape {values.shape}, the schema says {shape} a row")
    if not isinstance(feature, NumericFeature):
        _check_indices(values, rows_of(feature), column)
    if not isinstance(feature, MultiCategoricalFeature):
        return {column: SingleValueColumn.fill(size, places, values, default)}
    counts = (values != PADDING).sum(1)
    columns: dict[str, ItemColumn] = {column: MultiValueColumn.fill(size, places, values, counts, default)}
    if feature.weights_column:
        weights = rows[feature.weights_column].astype(np.float32)
        columns[feature.weights_column] = MultiValueColumn.fill(size, places, weights, counts, 1.0)
    return columns


def _check_indices(values: np.ndarray, size: int, column: str) -> None:
    if values.size and (values.min() < 0 or values.max() >= size):
        raise ColumnError(
            f"column {column!r} holds indices from {values.min()} to {values.max()}, the schema has {size}: "
            "the table and the schema are of different nights"
        )

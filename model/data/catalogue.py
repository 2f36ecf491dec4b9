"""Item features as tensors. Samples contain only item indices; all other item columns are gathered from here.

In training an item may have several rows, one for each version of its features (model/data/item_versions.py). In serving
each item has one row.

Shapes: M indices of the item vocabulary (with padding and default), N requested items, V values of a feature.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from model.data.batching import to_tensor
from model.data.item_columns import (
    ItemColumn,
    MappedFiles,
    MultiValueColumn,
    SingleValueColumn,
    VectorColumn,
    bytes_of,
    to_device,
)
from model.data.item_versions import VALID_BEFORE, StackedColumns, Versions, parts_of
from model.io.arrow import ColumnError
from model.io.urls import read_column_parts, read_columns
from model.network.embeddings import Batch, history_column, lookup_column, rows_of
from pipelines.contract.indices import DEFAULT, PADDING
from pipelines.contract.schema import (
    Feature,
    FeatureSchema,
    IdFeature,
    MultiCategoricalFeature,
    NumericFeature,
    VectorFeature,
)


class Catalogue:
    """Features of all items. `rows` gives the row of an item index.

    An index without features (an item that has left the catalogue, or the default index) has default features: index 1, or
    the mean, or a vector of zeros.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        rows: Mapping[str, np.ndarray],
        memory_mb: int | None = None,
        earlier: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """`rows`: the schema's item columns, from `item_features`. Columns are accessed one at a time.

        `earlier`: the same columns and `valid_before`, from `item_versions`; None: items have only their current version.
        `memory_mb`: if the columns take more memory (MiB), they are mapped from files; None: never.
        Raises ColumnError if an index is out of range.
        """
        self.schema = schema
        self.size = schema.item_id.size
        index = rows[schema.item_id.column]
        _check_indices(index, self.size, schema.item_id.column)
        self.present = to_tensor(index)  # Indices of items with a current row, in any order.
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
            if isinstance(feature, VectorFeature):
                self.columns[feature.column] = self._vectors(feature, rows, (size, feature.length), places, memory_mb)
                continue
            made = _columns(feature, rows, size, places)
            if self._files is None and memory_mb is not None and bytes_of(self.columns | made) > memory_mb * 2**20:
                self._files = MappedFiles()
                self.columns, made = {}, self.columns | made
            self.columns |= {name: self._files.move(name, made[name]) for name in made} if self._files else made

    def _vectors(
        self,
        feature: VectorFeature,
        rows: Mapping[str, np.ndarray],
        shape: tuple[int, int],
        places: Tensor,
        memory_mb: int | None,
    ) -> VectorColumn:
        """The column of a vector. It may be larger than all others, so it is read in parts, and mapped before it is filled."""
        needed = bytes_of(self.columns) + 4 * shape[0] * shape[1]
        if self._files is None and memory_mb is not None and needed > memory_mb * 2**20:
            self._files = MappedFiles()
            self.columns = {name: self._files.move(name, column) for name, column in self.columns.items()}
        zeros_MN = self._files.zeros(feature.column, shape) if self._files else torch.zeros(shape)
        parts = (_checked(part, feature.column, (feature.length,)) for part in parts_of(rows, feature.column))
        return VectorColumn.fill(zeros_MN, places, parts)

    @property
    def mapped(self) -> bool:
        """Whether the columns are mapped from files."""
        return self._files is not None

    @classmethod
    def read(
        cls, schema: FeatureSchema, urls: Sequence[str], memory_mb: int | None = None, earlier: Sequence[str] = ()
    ) -> "Catalogue":
        """Read the Parquet files of one partition of `item_features`, one column at a time: columns are padded in memory.

        `earlier`: the files of `item_versions`; empty: items have only their current version.
        """
        columns = schema.item_columns
        versions = _LazyColumns(earlier, [*columns, VALID_BEFORE]) if earlier else None
        return cls(schema, _LazyColumns(urls, columns), memory_mb, versions)

    def move(self, device: torch.device) -> None:
        """Move the columns to a device. Columns that are mapped from files stay on the CPU."""
        self.present, self.versions = self.present.to(device), self.versions.to(device)
        if not self.mapped:
            self.columns = {name: to_device(column, device) for name, column in self.columns.items()}

    def values(self, column: str, rows: Tensor) -> Tensor:
        """Values of a column for rows of any shape, on the device of the rows: [*shape] or [*shape, V]."""
        return self.columns[column].gather(rows.cpu() if self.mapped else rows).to(rows.device)

    def rows(self, items: Tensor, snapshots: Tensor | None = None) -> Tensor:
        """Rows of items in the given snapshots, or their current rows: see Versions.rows."""
        return self.versions.rows(items, snapshots)

    def gather(self, rows: Tensor) -> Batch:
        """Batch of the item tower for rows of any shape. Columns are [*shape] or [*shape, V]."""
        features = {name: self.values(name, rows) for name in self.columns}
        return {self.schema.item_id.column: self.versions.items(rows), **features}

    def defaults(self) -> Batch:
        """Batch of the item tower for one unknown item: index 1, default features."""
        return self.gather(self.present.new_tensor([DEFAULT]))

    def history_columns(
        self, history_BL: Tensor, features: Sequence[Feature], snapshots: Tensor | None = None
    ) -> Batch:
        """Columns `history_COLUMN` of the given features, for each item of the histories. Padding stays padding.

        `snapshots`: the snapshot of each row [B] or of each item [B, L]; None: current features.
        """
        columns: Batch = {}
        if not features:
            return columns
        if snapshots is not None and snapshots.dim() == 1:
            snapshots = snapshots[:, None]
        rows_BL = self.rows(history_BL, snapshots)
        for feature in features:
            column = lookup_column(feature)
            values = self.values(column, rows_BL)
            padding = (history_BL == PADDING).reshape(history_BL.shape + (1,) * (values.dim() - history_BL.dim()))
            columns[history_column(column)] = values.masked_fill(padding, PADDING)
        return columns


@dataclass(frozen=True)
class _LazyColumns(Mapping[str, np.ndarray]):
    """Columns of Parquet files. Reads a column on access."""

    urls: Sequence[str]
    names: Sequence[str]

    def __getitem__(self, name: str) -> np.ndarray:
        return read_columns(self.urls, [name])[name]

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """A column in parts, in order, so that it is never in memory as a whole."""
        return read_column_parts(self.urls, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class SamplingProbabilities:
    """Probability that one draw from each source is item j: [M] float32 each. 0 if the source never draws the item."""

    in_batch_M: Tensor
    uniform_M: Tensor
    popularity_M: Tensor

    @classmethod
    def read(cls, schema: FeatureSchema, urls: Sequence[str]) -> "SamplingProbabilities":
        """Read the Parquet files of one partition of `item_stats`."""
        names = ("q_in_batch", "q_uniform", "q_popularity")
        rows = read_columns(urls, ["item_index", *names])
        _check_indices(rows["item_index"], schema.item_id.size, "item_index")
        tensors = [torch.zeros(schema.item_id.size) for _ in names]
        for name, tensor in zip(names, tensors, strict=True):
            tensor[to_tensor(rows["item_index"])] = to_tensor(rows[name])
        return cls(*tensors)

    def to(self, device: torch.device) -> "SamplingProbabilities":
        """The probabilities on a device."""
        return SamplingProbabilities(*(q.to(device) for q in (self.in_batch_M, self.uniform_M, self.popularity_M)))

    @cached_property
    def rarest(self) -> float:
        """The smallest probability of an in-batch positive. 1 / M if there are no positives."""
        drawn = self.in_batch_M[self.in_batch_M > 0]
        return float(drawn.min()) if len(drawn) else 1 / len(self.in_batch_M)


def _columns(feature: Feature, rows: Mapping[str, np.ndarray], size: int, places: Tensor) -> dict[str, ItemColumn]:
    """Columns of one feature, with defaults where an item has no row. Empty for an id whose table row is its index."""
    if isinstance(feature, IdFeature):
        if feature.rows is None:
            return {}
        column, default = feature.rows.column, float(DEFAULT)
    else:
        column, default = feature.column, feature.mean if isinstance(feature, NumericFeature) else float(DEFAULT)
    values = _checked(rows[column], column, (feature.length,) if isinstance(feature, MultiCategoricalFeature) else ())
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


def _checked(values: np.ndarray, column: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a column. `shape`: of one row. Raises ColumnError if it has another one."""
    if values.shape[1:] != shape:
        raise ColumnError(f"column {column!r} has shape {values.shape}, the schema says {shape} per row")
    return values


def _check_indices(values: np.ndarray, size: int, column: str) -> None:
    if values.size and (values.min() < 0 or values.max() >= size):
        raise ColumnError(
            f"column {column!r} holds indices from {values.min()} to {values.max()}, the schema has {size}: "
            "the table and the schema are from different nights"
        )

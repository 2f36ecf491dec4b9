"""Columns of users, items and interactions that features are made from."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipelines.feature_config import (
    ContextFeatureConfig,
    FeatureConfig,
    Features,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
    TimeFeatureConfig,
    VectorFeatureConfig,
)
from pipelines.files.parquet_reader import Wanted


def feature_columns(features: Features) -> dict[str, list[Wanted]]:
    """Table -> the columns that its features are made from."""
    columns: dict[str, list[Wanted]] = {}
    for table, side in _tables(features):
        columns[table] = []
        for feature in side:
            if isinstance(feature, MultiCategoricalFeatureConfig):
                columns[table].append(Wanted(feature.name, "array<string>", number=False))
                if feature.weights:
                    columns[table].append(Wanted(feature.weights, "array<double>"))
            elif isinstance(feature, NumericFeatureConfig):
                columns[table].append(Wanted(feature.name, "double"))
            elif isinstance(feature, VectorFeatureConfig):
                columns[table].append(Wanted(feature.name, "array<double>"))
            elif not isinstance(feature, TimeFeatureConfig):
                columns[table].append(Wanted(feature.name, "string", number=False))
    return columns


def _tables(features: Features) -> list[tuple[str, Sequence[FeatureConfig | ContextFeatureConfig]]]:
    return [("users", features.user), ("items", features.item), ("interactions", features.context)]


class NumberColumns(NamedTuple):
    """The columns of a table whose numbers are checked."""

    numbers: tuple[str, ...] = ()  # of numeric features
    weights: tuple[str, ...] = ()  # of multi-value features (arrays)
    vectors: Mapping[str, int] = {}  # column -> length of its vectors


def number_columns(features: Features) -> dict[str, NumberColumns]:
    """Table -> its columns of numbers."""
    columns = {}
    for table, side in _tables(features):
        numbers = tuple(f.name for f in side if isinstance(f, NumericFeatureConfig))
        weights = tuple(f.weights for f in side if isinstance(f, MultiCategoricalFeatureConfig) and f.weights)
        vectors = {f.name: f.length for f in side if isinstance(f, VectorFeatureConfig)}
        columns[table] = NumberColumns(numbers, weights, vectors)
    return columns

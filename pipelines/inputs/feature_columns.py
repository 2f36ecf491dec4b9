"""Columns of users and items that features are made from."""

from pipelines.config import Features, MultiCategoricalFeatureConfig, NumericFeatureConfig
from pipelines.files.parquet_reader import Wanted


def feature_columns(features: Features) -> dict[str, list[Wanted]]:
    """Table -> the columns that its features are made from."""
    columns: dict[str, list[Wanted]] = {}
    for table, side in (("users", features.user), ("items", features.item)):
        columns[table] = []
        for feature in side:
            if isinstance(feature, MultiCategoricalFeatureConfig):
                columns[table].append(Wanted(feature.name, "array<string>", number=False))
                if feature.weights:
                    columns[table].append(Wanted(feature.weights, "array<double>"))
            elif isinstance(feature, NumericFeatureConfig):
                columns[table].append(Wanted(feature.name, "double"))
            else:
                columns[table].append(Wanted(feature.name, "string", number=False))
    return columns


def number_columns(features: Features) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Table -> (columns of numeric features, columns of weights)."""
    columns = {}
    for table, side in (("users", features.user), ("items", features.item)):
        numbers = tuple(f.name for f in side if isinstance(f, NumericFeatureConfig))
        weights = tuple(f.weights for f in side if isinstance(f, MultiCategoricalFeatureConfig) and f.weights)
        columns[table] = (numbers, weights)
    return columns

"""Which columns of users and items features are made of."""

from pipelines.config import Features, MultiCategoricalFeatureConfig, NumericFeatureConfig
from pipelines.files.parquet_reader import Wanted


def feature_columns(features: Features) -> dict[str, list[Wanted]]:
    """The columns of users and items that features are made of."""
    found: dict[str, list[Wanted]] = {}
    for table, side in (("users", features.user), ("items", features.item)):
        found[table] = []
        for feature in side:
            if isinstance(feature, MultiCategoricalFeatureConfig):
                found[table].append(Wanted(feature.name, "array<string>", number=False))
                if feature.weights:
                    found[table].append(Wanted(feature.weights, "array<double>"))
            elif isinstance(feature, NumericFeatureConfig):
                found[table].append(Wanted(feature.name, "double"))
            else:
                found[table].append(Wanted(feature.name, "string", number=False))
    return found


def number_columns(features: Features) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """(columns of numeric features, columns of weights) of users and items."""
    found = {}
    for table, side in (("users", features.user), ("items", features.item)):
        numbers = tuple(f.name for f in side if isinstance(f, NumericFeatureConfig))
        weights = tuple(f.weights for f in side if isinstance(f, MultiCategoricalFeatureConfig) and f.weights)
        found[table] = (numbers, weights)
    return found

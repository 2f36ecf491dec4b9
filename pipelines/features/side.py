"""The two sides of the model, user and item: their features, input tables and column names."""

import re
from dataclasses import dataclass

from pyspark.sql import DataFrame

from pipelines.config import (
    FeatureConfig,
    Features,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
    VectorFeatureConfig,
    VocabularyFeatureConfig,
)
from pipelines.contract.errors import InputError
from pipelines.contract.indices import FIRST
from pipelines.inputs.contracts import VECTORS

NUMBER = re.compile(r"(tinyint|smallint|int|bigint|float|double|boolean|decimal.*)$")


@dataclass(frozen=True)
class Side:
    """The features of users or of items, and the names of their columns."""

    name: str  # "user" or "item"
    features: list[FeatureConfig]

    @property
    def key(self) -> str:
        """The id column of the snapshot."""
        return f"{self.name}_id"

    @property
    def table(self) -> str:
        """The input table."""
        return f"{self.name}s"

    def column(self, feature: FeatureConfig) -> str:
        """The encoded column of a feature."""
        return f"{self.name}_{feature.name}"

    def label(self, feature: FeatureConfig) -> str:
        """The name of a feature in the table `vocabularies`."""
        return f"{self.name}.{feature.name}"

    def encoded_columns(self) -> list[str]:
        """All encoded columns in order, weights included."""
        names = []
        for feature in self.features:
            names.append(self.column(feature))
            if isinstance(feature, MultiCategoricalFeatureConfig) and feature.weights:
                names.append(f"{self.column(feature)}_weights")
        return names


def sides(features: Features) -> tuple[Side, Side]:
    """(user side, item side)."""
    return Side("user", features.user), Side("item", features.item)


def check_columns(side: Side, snapshot: DataFrame) -> None:
    """Raises InputError if a feature has no column in the snapshot, or a column of an unsuitable type."""
    types = dict(snapshot.dtypes)
    for feature in side.features:
        required = [feature.name]
        if isinstance(feature, MultiCategoricalFeatureConfig) and feature.weights:
            required.append(feature.weights)
        for name in required:
            if name not in types:
                raise InputError(
                    f"table {side.table}: feature column {name!r} is missing; it has {', '.join(sorted(types))}. "
                    f"Add it, or take it out of features.{side.name}"
                )
            is_array = types[name].startswith("array")
            if isinstance(feature, VectorFeatureConfig):
                if types[name] not in VECTORS:
                    raise InputError(
                        f"table {side.table}, column {name!r}: its type is {types[name]}, but feature {feature.name!r} is "
                        f"declared vector, which needs array<float> or array<double>. Cast the column where the table is "
                        f"written, or change the kind under features.{side.name}"
                    )
            elif is_array != isinstance(feature, MultiCategoricalFeatureConfig):
                raise InputError(
                    f"table {side.table}, column {name!r}: its type is {types[name]}, but feature {feature.name!r} is "
                    f"declared {feature.kind}. Declare it {'multi_categorical' if is_array else 'categorical'} "
                    f"under features.{side.name}, or change the column"
                )
        if isinstance(feature, NumericFeatureConfig) and not NUMBER.match(types[feature.name]):
            raise InputError(
                f"table {side.table}, column {feature.name!r}: its type is {types[feature.name]}, but feature "
                f"{feature.name!r} is declared numeric. Declare it categorical under features.{side.name}, or cast the "
                "column where the table is written"
            )


def hashed_sizes(features: Features) -> dict[str, int]:
    """Number of indices of each feature that is hashed into buckets, and of the user id if it is hashed."""
    buckets = {"user_id": features.ids.user.buckets}
    for side in sides(features):
        buckets |= {side.label(f): f.buckets for f in side.features if isinstance(f, VocabularyFeatureConfig)}
    return {name: FIRST + number for name, number in buckets.items() if number is not None}


def min_counts(features: Features) -> dict[str, int]:
    """Occurrences in one night that a value needs to enter the vocabulary, by feature, including the user id."""
    counts = {"user_id": features.ids.user.min_count}
    for side in sides(features):
        counts |= {side.label(f): f.min_count for f in side.features if isinstance(f, VocabularyFeatureConfig)}
    return counts

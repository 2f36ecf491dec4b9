"""The sides of the model, user and item, and the context of a request: their features, input tables and column names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.contract.indices import FIRST
from pipelines.feature_config import (
    ContextFeatureConfig,
    FeatureConfig,
    Features,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
    TimeFeatureConfig,
    VectorFeatureConfig,
    VocabularyFeatureConfig,
)
from pipelines.inputs.contracts import CONTEXT_STRUCT, VECTORS

CONTEXT_SIDE = "context"
NUMBER = re.compile(r"(tinyint|smallint|int|bigint|float|double|boolean|decimal.*)$")


@dataclass(frozen=True)
class Side:
    """The features of users, of items or of requests, and the names of their columns."""

    name: str  # "user", "item" or "context"
    features: Sequence[FeatureConfig | ContextFeatureConfig]

    @property
    def key(self) -> str:
        """The column that identifies a row of the input."""
        return "row_key" if self.name == CONTEXT_SIDE else f"{self.name}_id"

    @property
    def table(self) -> str:
        """The input table."""
        return "interactions" if self.name == CONTEXT_SIDE else f"{self.name}s"

    def input(self, name: str) -> Column:
        """A column of the input table. Those of the context are together in one struct column."""
        return F.col(CONTEXT_STRUCT).getField(name) if self.name == CONTEXT_SIDE else F.col(name)

    def column(self, feature: FeatureConfig | ContextFeatureConfig) -> str:
        """The encoded column of a feature."""
        return f"{self.name}_{feature.name}"

    def label(self, feature: FeatureConfig | ContextFeatureConfig) -> str:
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
    return Side("user", features.user), Side("item", [*features.item, *features.popularity_features])


def context_side(features: Features) -> Side:
    """The features of requests. Features of the time have their zone."""
    zone = {"zone": features.context_zone}
    is_without = [isinstance(feature, TimeFeatureConfig) and feature.zone is None for feature in features.context]
    return Side(
        CONTEXT_SIDE,
        [f.model_copy(update=zone) if missing else f for f, missing in zip(features.context, is_without, strict=True)],
    )


def all_sides(features: Features) -> tuple[Side, Side, Side]:
    """(user side, item side, features of requests)."""
    return (*sides(features), context_side(features))


def check_columns(side: Side, snapshot: DataFrame) -> None:
    """Raises InputError if a feature has no column in the snapshot, or a column of an unsuitable type."""
    types = dict(snapshot.dtypes)
    for feature in side.features:
        if isinstance(feature, TimeFeatureConfig):
            continue
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
    for side in all_sides(features):
        buckets |= {side.label(f): f.buckets for f in side.features if isinstance(f, VocabularyFeatureConfig)}
    return {name: FIRST + number for name, number in buckets.items() if number is not None}


def min_counts(features: Features) -> dict[str, int]:
    """Occurrences in one night that a value needs to enter the vocabulary, by feature, including the user id."""
    counts = {"user_id": features.ids.user.min_count}
    for side in all_sides(features):
        counts |= {side.label(f): f.min_count for f in side.features if isinstance(f, VocabularyFeatureConfig)}
    return counts

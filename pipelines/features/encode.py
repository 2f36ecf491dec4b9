"""Features of users and items as indices and numbers, and the schema that tells the model room what they are."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.config import (
    CategoricalFeatureConfig,
    FeatureConfig,
    Features,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
)
from pipelines.contract.errors import InputError
from pipelines.contract.indices import DEFAULT, FIRST, PADDING
from pipelines.contract.limits import LARGEST
from pipelines.features.vocabulary import bucket_of, lookup

NUMBER = re.compile(r"(tinyint|smallint|int|bigint|float|double|boolean|decimal.*)$")
Statistics = dict[str, dict[str, float]]
ITEM_ROW = "item_row"  # column of item_features: the item's row of the embedding table


@dataclass(frozen=True)
class Side:
    """One side of the model: which features, under which names, from which snapshot."""

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
        """What the vocabulary calls a feature."""
        return f"{self.name}.{feature.name}"

    def encoded_columns(self) -> list[str]:
        """Every encoded column, weights included, in order."""
        names = []
        for feature in self.features:
            names.append(self.column(feature))
            if isinstance(feature, MultiCategoricalFeatureConfig) and feature.weights:
                names.append(f"{self.column(feature)}_weights")
        return names


def sides(features: Features) -> tuple[Side, Side]:
    """User side, item side."""
    return Side("user", features.user), Side("item", features.item)


def check_columns(side: Side, snapshot: DataFrame) -> None:
    """InputError where a declared feature has no column in the snapshot, or one that cannot be it."""
    types = dict(snapshot.dtypes)
    for feature in side.features:
        wanted = [feature.name]
        if isinstance(feature, MultiCategoricalFeatureConfig) and feature.weights:
            wanted.append(feature.weights)
        for name in wanted:
            if name not in types:
                raise InputError(
                    f"table {side.table}: feature column {name!r} is missing; it has {', '.join(sorted(types))}. "
                    f"Add it, or take it out of features.{side.name}"
                )
            is_array = types[name].startswith("array")
            if is_array != isinstance(feature, MultiCategoricalFeatureConfig):
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
    """Number of indices of every feature that has buckets instead of a vocabulary, the user's id included."""
    buckets = {"user_id": features.ids.user.buckets}
    for side in sides(features):
        buckets |= {side.label(f): f.buckets for f in side.features if not isinstance(f, NumericFeatureConfig)}
    return {name: FIRST + number for name, number in buckets.items() if number is not None}


def min_counts(features: Features) -> dict[str, int]:
    """Occurrences from which a value enters the vocabulary, by feature, the user's id included."""
    counts = {"user_id": features.ids.user.min_count}
    for side in sides(features):
        counts |= {side.label(f): f.min_count for f in side.features if not isinstance(f, NumericFeatureConfig)}
    return counts


def values_of(side: Side, snapshot: DataFrame, *, versions: bool = False) -> DataFrame | None:
    """Every (feature, value, count) of the snapshot's categorical features with a vocabulary; None where there are none.

    `versions`: an id may have several rows; a value that several of them have counts once.
    """
    parts = []
    for feature in side.features:
        label, once = F.lit(side.label(feature)).alias("feature"), F.lit(1).cast("long").alias("count")
        if isinstance(feature, NumericFeatureConfig) or feature.buckets is not None:
            continue
        value = F.col(feature.name)
        value = value.cast("string") if isinstance(feature, CategoricalFeatureConfig) else value.cast("array<string>")
        rows = snapshot
        if versions and feature.min_count > 1:
            rows = snapshot.groupBy(side.key).agg(_union_of(value, feature).alias(feature.name))
            parts.append(rows.select(label, F.explode(feature.name).alias("value"), once))
        elif isinstance(feature, CategoricalFeatureConfig):
            parts.append(rows.select(label, value.alias("value"), once))
        else:
            parts.append(rows.select(label, F.explode(value).alias("value"), once))
    return reduce(DataFrame.unionByName, parts) if parts else None


def _union_of(value: Column, feature: FeatureConfig) -> Column:
    """The distinct values of an id over its rows, as an array (an aggregate)."""
    collected = F.collect_set(value)
    return F.array_distinct(F.flatten(collected)) if isinstance(feature, MultiCategoricalFeatureConfig) else collected


def statistics_of(side: Side, snapshot: DataFrame, previous: Statistics) -> Statistics:
    """Mean and deviation of each standardised number. Fixed on the first night: a changed scale would change its meaning.

    Nine significant digits: the last bits of a sum of doubles depend on the order in which partitions arrive, and a
    float feature keeps seven.
    """
    names = [f.name for f in side.features if isinstance(f, NumericFeatureConfig) and f.boundaries is None]
    found = {f"{side.name}.{name}": previous.get(f"{side.name}.{name}") for name in names}
    # Statistics that are not finite are of no use to any night: an earlier version could write them.
    missing = [name for name in names if not _usable(found[f"{side.name}.{name}"])]
    if missing:
        aggregates = [F.mean(_finite(F.col(n))).alias(f"{n}_mean") for n in missing]
        aggregates += [F.stddev_pop(_finite(F.col(n))).alias(f"{n}_std") for n in missing]
        row = snapshot.agg(*aggregates).first()
        assert row is not None
        for name in missing:
            mean, spread = float(row[f"{name}_mean"] or 0.0), float(row[f"{name}_std"] or 1.0)
            found[f"{side.name}.{name}"] = {"mean": float(f"{mean:.9g}"), "std": float(f"{spread:.9g}")}
    return {name: value for name, value in found.items() if value is not None}


def encode(
    side: Side,
    snapshot: DataFrame,
    vocabulary: DataFrame,
    statistics: Statistics,
    keys: list[str],
    sizes: Mapping[str, int] | None = None,
    row: tuple[str, ...] = (),
) -> DataFrame:
    """The snapshot's `keys` columns and every feature encoded. A value that the vocabulary lacks becomes 1 (default).

    `row`: the columns that tell rows apart, where the id does not.
    `sizes`: number of indices by feature, as the manifest of the vocabularies has them; small vocabularies are broadcast.
    """
    frame = snapshot
    for feature in side.features:
        column, label = side.column(feature), side.label(feature)
        if isinstance(feature, MultiCategoricalFeatureConfig):
            frame = _encode_values(side, feature, frame, vocabulary, (sizes or {}).get(label), list(row or (side.key,)))
        elif isinstance(feature, CategoricalFeatureConfig) and feature.buckets is not None:
            bucket = bucket_of(label, F.col(feature.name).cast("string"), feature.buckets)
            frame = frame.withColumn(column, F.coalesce(bucket, F.lit(DEFAULT)))
        elif isinstance(feature, CategoricalFeatureConfig):
            known = lookup(vocabulary, label, "_value", column, (sizes or {}).get(label))
            frame = frame.join(known, on=F.col(feature.name).cast("string") == F.col("_value"), how="left")
            frame = frame.drop("_value").withColumn(column, F.coalesce(column, F.lit(DEFAULT)))
        elif feature.boundaries is not None:
            frame = frame.withColumn(column, _bucket(F.col(feature.name), feature.boundaries))
        else:
            number = F.coalesce(_finite(F.col(feature.name)), F.lit(statistics[label]["mean"]))
            frame = frame.withColumn(column, number.cast("float"))
    return frame.select(*keys, *side.encoded_columns())


def _finite(number: Column) -> Column:
    """The number as a double; null for NaN (a missing number) and for what the contract refuses (contracts.LARGEST)."""
    double = number.cast("double")
    return F.when(~F.isnan(double) & (F.abs(double) <= LARGEST), double)


def _usable(statistics: dict[str, float] | None) -> bool:
    return statistics is not None and all(math.isfinite(value) for value in statistics.values())


def _bucket(number: Column, boundaries: list[float]) -> Column:
    """1 where not known, else 2 + the number of boundaries at or below the number."""
    number = _finite(number)
    below = reduce(Column.__add__, [(number >= F.lit(edge)).cast("int") for edge in boundaries])
    return F.coalesce(F.lit(2) + below, F.lit(DEFAULT)).cast("int")


def _encode_values(
    side: Side,
    feature: MultiCategoricalFeatureConfig,
    frame: DataFrame,
    vocabulary: DataFrame,
    size: int | None,
    row: list[str],
) -> DataFrame:
    """An array of values as indices, cut and padded to max_values; its weights beside it."""
    column, length = side.column(feature), feature.max_values
    values = F.slice(F.col(feature.name).cast("array<string>"), 1, length)
    if feature.buckets is not None:
        number, label = feature.buckets, side.label(feature)
        indices = F.transform(values, lambda v: F.coalesce(bucket_of(label, v, number), F.lit(DEFAULT)))
        frame = frame.withColumn(column, pad(indices, length, "int"))
    else:
        known = lookup(vocabulary, side.label(feature), "_value", "_index", size)
        exploded = frame.select(*row, F.posexplode(values).alias("_place", "_value"))
        index = F.coalesce("_index", F.lit(DEFAULT)).alias("_index")
        gathered = (
            exploded.join(known, on="_value", how="left")
            .groupBy(*row)
            .agg(F.array_sort(F.collect_list(F.struct("_place", index))).alias("_values"))
        )
        frame = frame.join(gathered, on=row, how="left")
        frame = frame.withColumn(column, pad(F.col("_values._index"), length, "int")).drop("_values")
    if feature.weights:
        # One weight a value: where the list is shorter the rest weigh nothing, where there is none all weigh alike.
        given = F.transform(F.col(feature.weights).cast("array<float>"), lambda w: F.coalesce(w, F.lit(0.0)))
        alike = F.transform(values, lambda _: F.lit(1.0))
        weights = F.transform(values, lambda _, n: F.coalesce(F.get(given, n), F.lit(0.0)))
        chosen = F.when(F.col(feature.weights).isNull(), alike).otherwise(weights)
        frame = frame.withColumn(f"{column}_weights", pad(chosen, length, "float"))
    return frame


def pad(values: Column, length: int, element: str) -> Column:
    """An array (null: empty) with zeros behind it up to `length` elements: what the trainers read has one shape."""
    filled = F.concat(F.coalesce(values, F.array()), F.array_repeat(F.lit(PADDING), length))
    return F.slice(filled, 1, length).cast(f"array<{element}>")


def pad_left(values: Column, length: int) -> Column:
    """An array of indices (null: empty) as a history: its last `length`, oldest first, with zeros ahead of them."""
    filled = F.concat(F.array_repeat(F.lit(PADDING), length), F.coalesce(values, F.array().cast("array<int>")))
    return F.slice(filled, -length, length).cast("array<int>")


def without_snapshot(side: Side, statistics: Statistics) -> dict[str, Column]:
    """What each encoded column is for an id that no snapshot holds."""
    blank: dict[str, Column] = {}
    for feature in side.features:
        column = side.column(feature)
        if isinstance(feature, MultiCategoricalFeatureConfig):
            blank[column] = pad(F.array(), feature.max_values, "int")
            if feature.weights:
                blank[f"{column}_weights"] = pad(F.array(), feature.max_values, "float")
        elif isinstance(feature, NumericFeatureConfig) and feature.boundaries is None:
            blank[column] = F.lit(statistics[f"{side.name}.{feature.name}"]["mean"]).cast("float")
        else:
            blank[column] = F.lit(DEFAULT)
    return blank


def example_age(oldest_days: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """The schema's entry of example_age. `known`: facts of the vocabularies before; its scale is frozen on the first night."""
    before = known.get("schema", {}).get("example_age")
    return before or {"name": "example_age", "kind": "age", "column": "example_age", "days": float(oldest_days)}


def feature_schema(
    features: Features, sizes: dict[str, int], statistics: Statistics, age: dict[str, Any]
) -> dict[str, Any]:
    """The JSON object of docs/tables.md: all that the model room knows of the features. `age`: see `example_age`."""
    user, item = sides(features)

    def identity(side: Side) -> dict[str, Any]:
        base: dict[str, Any] = {"name": side.key, "kind": "id", "column": f"{side.name}_index"}
        base |= {"vocabulary": side.key, "size": sizes[side.key]}
        if side is user:
            return base
        buckets = features.ids.item.buckets
        rows = sizes[side.key] if buckets is None else FIRST + buckets
        return base | {"rows": {"column": ITEM_ROW, "size": rows, "hashed": buckets is not None}}

    def entry(side: Side, feature: FeatureConfig) -> dict[str, Any]:
        label, column = side.label(feature), side.column(feature)
        base: dict[str, Any] = {"name": feature.name, "kind": feature.kind, "column": column}
        if isinstance(feature, NumericFeatureConfig):
            if feature.boundaries is not None:
                return base | {"kind": "bucket", "size": len(feature.boundaries) + 3}
            return base | statistics[label]
        base |= {"vocabulary": label, "size": sizes[label]}
        if isinstance(feature, MultiCategoricalFeatureConfig):
            base |= {
                "length": feature.max_values,
                "weights_column": f"{column}_weights" if feature.weights else None,
            }
        return base

    history = None
    if features.history is not None:
        history = {
            "name": "history",
            "kind": "history",
            "column": "history",
            "vocabulary": "item_id",
            "size": sizes["item_id"],
            "length": features.history.length,
        }
    users = ([identity(user)] if features.user_id else []) + [entry(user, f) for f in user.features]
    return {
        "version": 1,
        "user": users,
        "item": [identity(item)] + [entry(item, f) for f in item.features],
        "history": history,
        "example_age": age if features.example_age else None,
    }


def request_fields(features: Features, types: Mapping[str, str], item_type: str) -> list[dict[str, Any]]:
    """What a server needs to encode a user as `encode` does: a JSON object for each field of a request (docs/serving.md).

    `types`: Spark types of user_id and of the columns of the users snapshot; `item_type`: of the ids of items.
    """
    side = sides(features)[0]
    buckets = features.ids.user.buckets
    user = {"name": side.key, "kind": "id", "column": "user_index", "vocabulary": side.key, "buckets": buckets}
    fields: list[dict[str, Any]] = [user | {"type": _request_type(types[side.key])}]
    for feature in side.features:
        base: dict[str, Any] = {"name": feature.name, "kind": feature.kind, "column": side.column(feature)}
        if isinstance(feature, NumericFeatureConfig):
            kind = _request_type(types[feature.name])
            fields.append(base | {"type": "double" if kind == "text" else kind, "boundaries": feature.boundaries})
            continue
        base |= {"type": _request_type(types[feature.name])}
        base |= {"vocabulary": side.label(feature), "buckets": feature.buckets}
        if isinstance(feature, MultiCategoricalFeatureConfig):
            base |= {"length": feature.max_values, "weights": feature.weights}
        fields.append(base)
    history: dict[str, Any] = {"name": "history", "kind": "history", "column": "history"}
    history |= {"vocabulary": "item_id", "buckets": None}
    history |= {"type": _request_type(item_type), "length": features.history.length if features.history else None}
    return [*fields, history | {"order": features.history.order if features.history else None}]


def _request_type(spark: str) -> str:
    """What a value (an element, of an array) is in a request. text: as Spark casts the column to a string."""
    element = spark.removeprefix("array<").removesuffix(">")
    if element in ("tinyint", "smallint", "int", "bigint") or re.fullmatch(r"decimal\(\d+,0\)", element):
        return "integer"
    return element if element in ("boolean", "float", "double") else "text"

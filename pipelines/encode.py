"""Features of users and items as indices and numbers, and the schema that tells the model room what they are."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.config import CategoricalFeature, Feature, Features, MultiCategoricalFeature, NumericFeature
from pipelines.errors import InputError
from pipelines.vocabulary import DEFAULT, PADDING, lookup

Statistics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Side:
    """One side of the model: which features, under which names, from which snapshot."""

    name: str  # "user" or "item"
    features: list[Feature]

    @property
    def key(self) -> str:
        """The id column of the snapshot."""
        return f"{self.name}_id"

    @property
    def table(self) -> str:
        """The input table."""
        return f"{self.name}s"

    def column(self, feature: Feature) -> str:
        """The encoded column of a feature."""
        return f"{self.name}_{feature.name}"

    def encoded_columns(self) -> list[str]:
        """Every encoded column, weights included, in order."""
        names = []
        for feature in self.features:
            names.append(self.column(feature))
            if isinstance(feature, MultiCategoricalFeature) and feature.weights:
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
        if isinstance(feature, MultiCategoricalFeature) and feature.weights:
            wanted.append(feature.weights)
        for name in wanted:
            if name not in types:
                raise InputError(
                    f"table {side.table}: feature column {name!r} is missing; it has {', '.join(sorted(types))}. "
                    f"Add it, or take it out of features.{side.name}"
                )
            is_array = types[name].startswith("array")
            if is_array != isinstance(feature, MultiCategoricalFeature):
                raise InputError(
                    f"table {side.table}, column {name!r}: its type is {types[name]}, but feature {feature.name!r} is "
                    f"declared {feature.kind}. Declare it {'multi_categorical' if is_array else 'categorical'} "
                    f"under features.{side.name}, or change the column"
                )


def values_of(side: Side, snapshot: DataFrame) -> DataFrame | None:
    """Every (feature, value) of the snapshot's categorical features; None where there are none."""
    parts = []
    for feature in side.features:
        label = F.lit(f"{side.name}.{feature.name}").alias("feature")
        value = F.col(feature.name)
        if isinstance(feature, CategoricalFeature):
            parts.append(snapshot.select(label, value.cast("string").alias("value")))
        elif isinstance(feature, MultiCategoricalFeature):
            parts.append(snapshot.select(label, F.explode(value.cast("array<string>")).alias("value")))
    return reduce(DataFrame.unionByName, parts) if parts else None


def statistics_of(side: Side, snapshot: DataFrame, previous: Statistics) -> Statistics:
    """Mean and deviation of each standardised number. Fixed on the first night: a changed scale would change its meaning."""
    names = [f.name for f in side.features if isinstance(f, NumericFeature) and f.boundaries is None]
    found = {f"{side.name}.{name}": previous.get(f"{side.name}.{name}") for name in names}
    missing = [name for name in names if found[f"{side.name}.{name}"] is None]
    if missing:
        aggregates = [F.mean(_finite(F.col(n))).alias(f"{n}_mean") for n in missing]
        aggregates += [F.stddev_pop(_finite(F.col(n))).alias(f"{n}_std") for n in missing]
        row = snapshot.agg(*aggregates).first()
        assert row is not None
        for name in missing:
            spread = row[f"{name}_std"]
            found[f"{side.name}.{name}"] = {"mean": float(row[f"{name}_mean"] or 0.0), "std": float(spread or 1.0)}
    return {name: value for name, value in found.items() if value is not None}


def encode(
    side: Side, snapshot: DataFrame, vocabulary: DataFrame, statistics: Statistics, keys: list[str]
) -> DataFrame:
    """The snapshot's `keys` columns and every feature encoded. A value that the vocabulary lacks becomes 1 (default)."""
    frame = snapshot
    for feature in side.features:
        column = side.column(feature)
        if isinstance(feature, CategoricalFeature):
            known = F.broadcast(lookup(vocabulary, f"{side.name}.{feature.name}", "_value", column))
            frame = frame.join(known, on=F.col(feature.name).cast("string") == F.col("_value"), how="left")
            frame = frame.drop("_value").withColumn(column, F.coalesce(column, F.lit(DEFAULT)))
        elif isinstance(feature, MultiCategoricalFeature):
            frame = _encode_values(side, feature, frame, vocabulary)
        elif feature.boundaries is not None:
            frame = frame.withColumn(column, _bucket(F.col(feature.name), feature.boundaries))
        else:
            mean = statistics[f"{side.name}.{feature.name}"]["mean"]
            number = F.coalesce(_finite(F.col(feature.name)), F.lit(mean))
            frame = frame.withColumn(column, number.cast("float"))
    return frame.select(*keys, *side.encoded_columns())


def _finite(number: Column) -> Column:
    """The number as a double; null for NaN and the infinities, which would spoil every mean."""
    double = number.cast("double")
    return F.when(~F.isnan(double) & (F.abs(double) < float("inf")), double)


def _bucket(number: Column, boundaries: list[float]) -> Column:
    """1 where not known, else 2 + the number of boundaries at or below the number."""
    number = _finite(number)
    below = reduce(Column.__add__, [(number >= F.lit(edge)).cast("int") for edge in boundaries])
    return F.coalesce(F.lit(2) + below, F.lit(DEFAULT)).cast("int")


def _encode_values(side: Side, feature: MultiCategoricalFeature, frame: DataFrame, vocabulary: DataFrame) -> DataFrame:
    """An array of values as indices, cut and padded to max_values; its weights beside it."""
    column = side.column(feature)
    alike = F.transform(F.col(feature.name), lambda _: F.lit(1.0))
    weights = F.coalesce(F.col(feature.weights).cast("array<double>"), alike) if feature.weights else alike
    pairs = F.arrays_zip(
        F.slice(F.col(feature.name), 1, feature.max_values).alias("value"),
        F.slice(weights, 1, feature.max_values).alias("weight"),
    )
    exploded = frame.select(side.key, F.posexplode(pairs).alias("place", "pair")).select(
        side.key, "place", F.col("pair.value").cast("string").alias("_value"), F.col("pair.weight").alias("_weight")
    )
    known = F.broadcast(lookup(vocabulary, f"{side.name}.{feature.name}", "_value", "_index"))
    gathered = (
        exploded.join(known, on="_value", how="left")
        .groupBy(side.key)
        .agg(
            F.array_sort(
                F.collect_list(
                    F.struct(
                        "place",
                        F.coalesce("_index", F.lit(DEFAULT)).alias("index"),
                        F.coalesce(F.col("_weight").cast("float"), F.lit(0.0)).alias("weight"),
                    )
                )
            ).alias("_values")
        )
    )
    frame = frame.join(gathered, on=side.key, how="left")
    frame = frame.withColumn(column, pad(F.col("_values.index"), feature.max_values, "int"))
    if feature.weights:
        frame = frame.withColumn(f"{column}_weights", pad(F.col("_values.weight"), feature.max_values, "float"))
    return frame.drop("_values")


def pad(values: Column, length: int, element: str) -> Column:
    """An array (null: empty) with zeros behind it up to `length` elements: what the trainers read has one shape."""
    filled = F.concat(F.coalesce(values, F.array()), F.array_repeat(F.lit(PADDING), length))
    return F.slice(filled, 1, length).cast(f"array<{element}>")


def without_snapshot(side: Side, statistics: Statistics) -> dict[str, Column]:
    """What each encoded column is for an id that no snapshot holds."""
    blank: dict[str, Column] = {}
    for feature in side.features:
        column = side.column(feature)
        if isinstance(feature, MultiCategoricalFeature):
            blank[column] = pad(F.array(), feature.max_values, "int")
            if feature.weights:
                blank[f"{column}_weights"] = pad(F.array(), feature.max_values, "float")
        elif isinstance(feature, NumericFeature) and feature.boundaries is None:
            blank[column] = F.lit(statistics[f"{side.name}.{feature.name}"]["mean"]).cast("float")
        else:
            blank[column] = F.lit(DEFAULT)
    return blank


def feature_schema(features: Features, sizes: dict[str, int], statistics: Statistics) -> dict[str, Any]:
    """The JSON object of docs/tables.md: all that the model room knows of the features."""
    user, item = sides(features)

    def identity(side: Side) -> dict[str, Any]:
        return {
            "name": side.key,
            "kind": "id",
            "column": f"{side.name}_index",
            "vocabulary": side.key,
            "size": sizes[side.key],
        }

    def entry(side: Side, feature: Feature) -> dict[str, Any]:
        label, column = f"{side.name}.{feature.name}", side.column(feature)
        base: dict[str, Any] = {"name": feature.name, "kind": feature.kind, "column": column}
        if isinstance(feature, NumericFeature):
            if feature.boundaries is not None:
                return base | {"kind": "bucket", "size": len(feature.boundaries) + 3}
            return base | statistics[label]
        base |= {"vocabulary": label, "size": sizes[label]}
        if isinstance(feature, MultiCategoricalFeature):
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
    age = {"name": "example_age", "kind": "numeric", "column": "example_age", "mean": 0.0, "std": 1.0}
    users = ([identity(user)] if features.user_id else []) + [entry(user, f) for f in user.features]
    return {
        "version": 1,
        "user": users,
        "item": [identity(item)] + [entry(item, f) for f in item.features],
        "history": history,
        "example_age": age if features.example_age else None,
    }

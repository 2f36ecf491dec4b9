"""Encodes features of users, items and requests: values become indices, numbers become floats."""

import math
from collections.abc import Mapping
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.contract.indices import DEFAULT, FIRST, PADDING
from pipelines.contract.limits import LARGEST
from pipelines.feature_config import (
    CategoricalFeatureConfig,
    ContextFeatureConfig,
    FeatureConfig,
    HourFeatureConfig,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
    TimeFeatureConfig,
    VectorFeatureConfig,
    VocabularyFeatureConfig,
)
from pipelines.features.side import Side
from pipelines.features.vocabulary import bucket_of, lookup

Statistics = dict[str, dict[str, float]]  # label of a standardised feature -> its mean and std


def values_of(side: Side, snapshot: DataFrame, *, versions: bool = False) -> DataFrame | None:
    """Values of all features that have a vocabulary: feature, value, count. None if there is no such feature.

    `versions`: an id may have several rows. A value is then counted once per id.
    """
    parts = []
    for feature in side.features:
        label, once = F.lit(side.label(feature)).alias("feature"), F.lit(1).cast("long").alias("count")
        if not isinstance(feature, VocabularyFeatureConfig) or feature.buckets is not None:
            continue
        value = side.input(feature.name)
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


def _union_of(value: Column, feature: FeatureConfig | ContextFeatureConfig) -> Column:
    """Aggregate: the distinct values of all rows of an id, as an array."""
    collected = F.collect_set(value)
    return F.array_distinct(F.flatten(collected)) if isinstance(feature, MultiCategoricalFeatureConfig) else collected


def statistics_of(side: Side, snapshot: DataFrame, previous: Statistics) -> Statistics:
    """Mean and standard deviation of each standardised feature.

    `previous`: statistics of the night before. They are reused, because a new scale would change the meaning of the
    feature; only missing ones are computed.

    Values have nine significant digits: the last bits of a sum of doubles depend on the order in which partitions
    arrive, and a float feature keeps only seven digits.
    """
    names = [f.name for f in side.features if isinstance(f, NumericFeatureConfig) and f.boundaries is None]
    statistics = {f"{side.name}.{name}": previous.get(f"{side.name}.{name}") for name in names}
    # An earlier version could write statistics that are not finite. Compute those anew.
    missing = [name for name in names if not _is_finite(statistics[f"{side.name}.{name}"])]
    if missing:
        aggregates = [F.mean(_finite(side.input(n))).alias(f"{n}_mean") for n in missing]
        aggregates += [F.stddev_pop(_finite(side.input(n))).alias(f"{n}_std") for n in missing]
        row = snapshot.agg(*aggregates).first()
        assert row is not None
        for name in missing:
            mean, std = float(row[f"{name}_mean"] or 0.0), float(row[f"{name}_std"] or 1.0)
            statistics[f"{side.name}.{name}"] = {"mean": float(f"{mean:.9g}"), "std": float(f"{std:.9g}")}
    return {name: value for name, value in statistics.items() if value is not None}


def encode(
    side: Side,
    snapshot: DataFrame,
    vocabulary: DataFrame,
    statistics: Statistics,
    keys: list[str],
    sizes: Mapping[str, int] | None = None,
    row: tuple[str, ...] = (),
) -> DataFrame:
    """Columns `keys` of the snapshot, then all features encoded. Values that the vocabulary lacks get index 1 (default).

    `sizes`: number of indices by feature, from the manifest of the vocabularies; small vocabularies are broadcast.
    `row`: columns that identify a row, if the id does not.
    """
    frame = snapshot
    for feature in side.features:
        column, label = side.column(feature), side.label(feature)
        if isinstance(feature, MultiCategoricalFeatureConfig):
            frame = _encode_values(side, feature, frame, vocabulary, (sizes or {}).get(label), list(row or (side.key,)))
        elif isinstance(feature, CategoricalFeatureConfig) and feature.buckets is not None:
            bucket = bucket_of(label, side.input(feature.name).cast("string"), feature.buckets)
            frame = frame.withColumn(column, F.coalesce(bucket, F.lit(DEFAULT)))
        elif isinstance(feature, CategoricalFeatureConfig):
            indices = lookup(vocabulary, label, "_value", column, (sizes or {}).get(label))
            frame = frame.join(indices, on=side.input(feature.name).cast("string") == F.col("_value"), how="left")
            frame = frame.drop("_value").withColumn(column, F.coalesce(column, F.lit(DEFAULT)))
        elif isinstance(feature, VectorFeatureConfig):
            vector = side.input(feature.name).cast("array<float>")
            frame = frame.withColumn(column, F.coalesce(vector, zeros(feature.length)))
        elif isinstance(feature, TimeFeatureConfig):
            frame = frame.withColumn(column, _part_of_time(feature))
        elif feature.boundaries is not None:
            frame = frame.withColumn(column, _bucket(side.input(feature.name), feature.boundaries))
        else:
            number = F.coalesce(_finite(side.input(feature.name)), F.lit(statistics[label]["mean"]))
            frame = frame.withColumn(column, number.cast("float"))
    return frame.select(*keys, *side.encoded_columns())


def _part_of_time(feature: TimeFeatureConfig) -> Column:
    """2 + the hour of event_time, or 2 + the days since Monday, in the zone of the feature."""
    local = F.from_utc_timestamp("event_time", str(feature.zone))
    part = F.hour(local) if isinstance(feature, HourFeatureConfig) else F.weekday(local)
    return (part + F.lit(FIRST)).cast("int")


def _finite(number: Column) -> Column:
    """The number as a double; null for NaN (a missing number) and for numbers beyond LARGEST, which are bad input."""
    double = number.cast("double")
    return F.when(~F.isnan(double) & (F.abs(double) <= LARGEST), double)


def _is_finite(statistics: dict[str, float] | None) -> bool:
    return statistics is not None and all(math.isfinite(value) for value in statistics.values())


def _bucket(number: Column, boundaries: list[float]) -> Column:
    """2 + the number of boundaries that are at or below the number; 1 for null."""
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
    """Adds the array of values as indices, cut or padded to `max_values`, and the array of their weights if any."""
    column, length = side.column(feature), feature.max_values
    values = F.slice(side.input(feature.name).cast("array<string>"), 1, length)
    if feature.buckets is not None:
        number, label = feature.buckets, side.label(feature)
        indices = F.transform(values, lambda v: F.coalesce(bucket_of(label, v, number), F.lit(DEFAULT)))
        frame = frame.withColumn(column, pad(indices, length, "int"))
    else:
        index_of = lookup(vocabulary, side.label(feature), "_value", "_index", size)
        exploded = frame.select(*row, F.posexplode(values).alias("_place", "_value"))
        index = F.coalesce("_index", F.lit(DEFAULT)).alias("_index")
        gathered = (
            exploded.join(index_of, on="_value", how="left")
            .groupBy(*row)
            .agg(F.array_sort(F.collect_list(F.struct("_place", index))).alias("_values"))
        )
        frame = frame.join(gathered, on=row, how="left")
        frame = frame.withColumn(column, pad(F.col("_values._index"), length, "int")).drop("_values")
    if feature.weights:
        # One weight per value. Values beyond a shorter list weigh 0. A null list gives all values weight 1.
        given = F.transform(side.input(feature.weights).cast("array<float>"), lambda w: F.coalesce(w, F.lit(0.0)))
        ones = F.transform(values, lambda _: F.lit(1.0))
        weights = F.transform(values, lambda _, n: F.coalesce(F.get(given, n), F.lit(0.0)))
        chosen = F.when(side.input(feature.weights).isNull(), ones).otherwise(weights)
        frame = frame.withColumn(f"{column}_weights", pad(chosen, length, "float"))
    return frame


def pad(values: Column, length: int, element: str) -> Column:
    """The first `length` elements of an array, with zeros appended up to `length`. Null counts as empty.

    `element`: the Spark type of the elements of the result.
    """
    filled = F.concat(F.coalesce(values, F.array()), F.array_repeat(F.lit(PADDING), length))
    return F.slice(filled, 1, length).cast(f"array<{element}>")


def pad_left(values: Column, length: int) -> Column:
    """The last `length` elements of an array of indices, with zeros ahead of them: a history. Null counts as empty."""
    filled = F.concat(F.array_repeat(F.lit(PADDING), length), F.coalesce(values, F.array().cast("array<int>")))
    return F.slice(filled, -length, length).cast("array<int>")


def zeros(length: int) -> Column:
    """A vector of zeros, which stands for a missing vector."""
    return F.array_repeat(F.lit(0.0).cast("float"), length)


def without_snapshot(side: Side, statistics: Statistics) -> dict[str, Column]:
    """The value of each encoded column for an id that is in no snapshot, or without a request."""
    blank: dict[str, Column] = {}
    for feature in side.features:
        column = side.column(feature)
        if isinstance(feature, MultiCategoricalFeatureConfig):
            blank[column] = pad(F.array(), feature.max_values, "int")
            if feature.weights:
                blank[f"{column}_weights"] = pad(F.array(), feature.max_values, "float")
        elif isinstance(feature, VectorFeatureConfig):
            blank[column] = zeros(feature.length)
        elif isinstance(feature, NumericFeatureConfig) and feature.boundaries is None:
            blank[column] = F.lit(statistics[f"{side.name}.{feature.name}"]["mean"]).cast("float")
        else:
            blank[column] = F.lit(DEFAULT)
    return blank

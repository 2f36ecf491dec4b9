"""Mutual information of item features: how much one feature of an item says about another, over the catalogue."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.contract.indices import PADDING
from pipelines.hashing import hashed

BINS = 10  # quantile bins of a standardised feature
MOST_ITEMS = 200_000  # a sample chosen by hash; a larger one would not improve a mask
MI = "mutual_information"
DIGITS = 9  # the last bits of a sum of doubles depend on the order in which partitions arrive


def mutual_information(items: DataFrame, features: Sequence[dict[str, Any]], seed: int) -> DataFrame:
    """Mutual information of all ordered pairs of item features: feature, other, mutual_information (nats).

    MI(U, V) = sum p(u, v) log(p(u, v) / (p(u) p(v))), with p the share of items. An item with several values of a feature
    counts for each of them with equal parts; "no value" counts as a value. The MI of a feature with itself is its entropy.
    The id determines all other features: MI(id, V) = H(V) - H(V | item). With few items and many values the estimate is
    too high, so use it only to compare pairs. Vectors have no rows: an estimate from their numbers would say little.

    `items`: item_features. `features`: the item side of the feature schema, as JSON.
    """
    chosen = items.orderBy(hashed("information", seed, F.col("item_index")), "item_index").limit(MOST_ITEMS)
    content = [feature for feature in features if feature["kind"] not in ("id", "vector")]
    identity = next(feature["name"] for feature in features if feature["kind"] == "id")
    parts = [_entropy_of_id(chosen, identity)]
    if content:
        values = [F.struct(F.lit(f["name"]).alias("name"), _values(f, chosen).alias("values")) for f in content]
        rows = chosen.select(F.array(*values).alias("features"))
        parts += [_from_entropies(_entropies(rows), identity), _both_ways(_pairs(rows))]
    # The MI of independent features is 0; rounding may make it negative.
    value = F.round(F.greatest(MI, F.lit(0.0)), DIGITS).alias(MI)
    return reduce(DataFrame.unionByName, parts).select("feature", "other", value)


def _both_ways(pairs: DataFrame) -> DataFrame:
    """Adds (other, feature) for each (feature, other)."""
    one, other = F.col("feature"), F.col("other")
    orders = F.array(*[F.struct(a.alias("feature"), b.alias("other")) for a, b in ((one, other), (other, one))])
    return pairs.select(F.explode(orders).alias("pair"), MI).select("pair.feature", "pair.other", MI)


def _from_entropies(singles: DataFrame, identity: str) -> DataFrame:
    """Rows of a feature with itself, H(V), and with the id in both orders, H(V) - H(V | item)."""
    feature, by_id = F.col("feature"), F.col("entropy") - F.col("within")
    triples = [
        (feature, feature, F.col("entropy")),
        (feature, F.lit(identity), by_id),
        (F.lit(identity), feature, by_id),
    ]
    rows = F.array(*[F.struct(a.alias("feature"), b.alias("other"), c.alias(MI)) for a, b, c in triples])
    return singles.select(F.explode(rows).alias("row")).select("row.feature", "row.other", f"row.{MI}")


def _entropy_of_id(items: DataFrame, name: str) -> DataFrame:
    """log of the number of items, because each item has a different id."""
    entropy = F.log(F.count(F.lit(1)).cast("double")).alias(MI)
    return items.agg(entropy).select(F.lit(name).alias("feature"), F.lit(name).alias("other"), MI)


def _entropies(rows: DataFrame) -> DataFrame:
    """feature, entropy: H(V), within: H(V | item), which is above 0 if items have several values.

    `rows`: one array `features` of (name, values) per item.
    """
    one = rows.select(F.explode("features").alias("one"))
    within = one.groupBy(F.col("one.name").alias("feature")).agg(
        F.avg(F.log(F.size("one.values").cast("double"))).alias("within"), F.count(F.lit(1)).alias("items")
    )
    values = one.select(
        F.col("one.name").alias("feature"),
        F.explode("one.values").alias("value"),
        (1 / F.size("one.values")).alias("share"),
    )
    counted = (
        values.groupBy("feature", "value").agg(F.sum("share").alias("share")).join(within, on="feature", how="inner")
    )
    p = F.col("share") / F.col("items")
    return counted.groupBy("feature").agg(F.sum(-p * F.log(p)).alias("entropy"), F.first("within").alias("within"))


def _pairs(rows: DataFrame) -> DataFrame:
    """feature, other, mutual_information for each unordered pair of different features. `rows`: as in `_entropies`."""
    both = (
        rows.select("features", F.explode("features").alias("one"))
        .select("one", F.explode("features").alias("other"))
        .where("one.name < other.name")
    )
    values = both.select(
        F.col("one.name").alias("feature"),
        F.col("other.name").alias("other"),
        F.explode("one.values").alias("u"),
        F.col("other.values").alias("vs"),
        (1 / F.size("one.values") / F.size("other.values")).alias("share"),
    ).select("feature", "other", "u", F.explode("vs").alias("v"), "share")
    joint = values.groupBy("feature", "other", "u", "v").agg(F.sum("share").alias("joint"))
    pair = ["feature", "other"]
    total = F.sum("joint").over(Window.partitionBy(*pair))
    of_u = F.sum("joint").over(Window.partitionBy(*pair, "u"))
    of_v = F.sum("joint").over(Window.partitionBy(*pair, "v"))
    term = F.col("joint") / total * F.log(F.col("joint") * total / (of_u * of_v))
    return joint.withColumn("term", term).groupBy(*pair).agg(F.sum("term").alias(MI))


def _values(feature: dict[str, Any], items: DataFrame) -> Column:
    """The values of a feature of an item, as an array of at least one number."""
    column = F.col(feature["column"])
    if feature["kind"] == "multi_categorical":
        values = F.array_distinct(F.filter(column, lambda value: value != PADDING).cast("array<double>"))
        return F.when(F.size(values) > 0, values).otherwise(F.array(F.lit(0.0)))
    if feature["kind"] == "numeric":
        edges = items.approxQuantile(feature["column"], [n / BINS for n in range(1, BINS)], 0.0)
        column = sum((column >= F.lit(edge)).cast("int") for edge in sorted(set(edges)))
    return F.array(column.cast("double"))

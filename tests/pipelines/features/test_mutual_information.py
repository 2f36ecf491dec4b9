"""Mutual information of item features, compared with a loop over the formula and with values computed by hand."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from pipelines.features.mutual_information import mutual_information

FEATURES = [
    {"name": "item_id", "kind": "id", "column": "item_index"},
    {"name": "colour", "kind": "categorical", "column": "item_colour"},
    {"name": "shape", "kind": "categorical", "column": "item_shape"},
    {"name": "tags", "kind": "multi_categorical", "column": "item_tags"},
    {"name": "price", "kind": "numeric", "column": "item_price"},
    {"name": "age", "kind": "bucket", "column": "item_age"},
]
SCHEMA = "item_index int, item_colour int, item_shape int, item_tags array<int>, item_price float, item_age int"


def items() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(2, 402):
        colour = int(rng.integers(2, 6))
        shape = colour if rng.random() < 0.7 else int(rng.integers(2, 6))
        tags = [colour + 10, *(int(tag) for tag in rng.integers(20, 25, rng.integers(0, 3)))] if shape != 3 else []
        row = {"item_index": index, "item_colour": colour, "item_shape": shape, "item_tags": [*tags, 0, 0]}
        rows.append(row | {"item_price": float(rng.normal()), "item_age": int(rng.integers(1, 4))})
    return rows


def table_of(spark: SparkSession, rows: list[dict[str, Any]], partitions: int = 2) -> dict[tuple[str, str], float]:
    frame = spark.createDataFrame([tuple(row.values()) for row in rows], SCHEMA).repartition(partitions)
    table = mutual_information(frame, FEATURES, seed=1).collect()
    assert len(table) == len({(row["feature"], row["other"]) for row in table}) == len(FEATURES) ** 2
    return {(row["feature"], row["other"]): row["mutual_information"] for row in table}


def test_a_vector_has_no_rows(spark: SparkSession) -> None:
    frame = spark.createDataFrame(
        [(2, 3, [0.5]), (3, 4, [1.0])], "item_index int, item_colour int, item_look array<float>"
    )
    features = [*FEATURES[:2], {"name": "look", "kind": "vector", "column": "item_look"}]
    rows = mutual_information(frame, features, seed=1).collect()
    assert {(row["feature"], row["other"]) for row in rows} == set(itertools.product(("item_id", "colour"), repeat=2))


def by_the_formula(one: list[list[float]], other: list[list[float]]) -> float:
    joint: Counter[tuple[float, float]] = Counter()
    for us, vs in zip(one, other, strict=True):
        for u, v in itertools.product(us, vs):
            joint[u, v] += 1 / len(us) / len(vs) / len(one)
    p_u, p_v = Counter(), Counter()  # type: ignore[var-annotated]
    for (u, v), p in joint.items():
        p_u[u] += p
        p_v[v] += p
    return sum(p * math.log(p / p_u[u] / p_v[v]) for (u, v), p in joint.items())


def test_mutual_information_equals_the_formula_with_any_partitions(spark: SparkSession) -> None:
    rows = items()
    table = table_of(spark, rows)
    assert table == table_of(spark, rows, partitions=1)
    deciles = np.quantile([row["item_price"] for row in rows], np.arange(1, 10) / 10)
    values = {
        "item_id": [[row["item_index"]] for row in rows],
        "colour": [[row["item_colour"]] for row in rows],
        "shape": [[row["item_shape"]] for row in rows],
        "tags": [sorted({tag for tag in row["item_tags"] if tag}) or [0] for row in rows],
        "price": [[int((row["item_price"] >= deciles).sum())] for row in rows],
        "age": [[row["item_age"]] for row in rows],
    }
    for one, other in itertools.permutations(values, 2):
        tolerance = 0.05 if "price" in (one, other) else 1e-8  # Spark and numpy may differ in a quantile by one value.
        assert table[one, other] == pytest.approx(by_the_formula(values[one], values[other]), abs=tolerance), (
            one,
            other,
        )
    counts = np.array(list(Counter(row["item_colour"] for row in rows).values())) / len(rows)
    assert table["colour", "colour"] == pytest.approx(-(counts * np.log(counts)).sum())
    assert table["item_id", "item_id"] == pytest.approx(math.log(len(rows)))
    assert table["colour", "shape"] > 5 * table["colour", "age"], (
        "correlated features have a higher value than independent ones"
    )


def test_two_equally_frequent_colours(spark: SparkSession) -> None:
    """Shape is determined by colour: log 2. Tags are the same for all items: 0."""
    columns = [name.split()[0] for name in SCHEMA.split(", ")]
    rows = [dict(zip(columns, (n, n % 2, 5 - n % 2, [7, 0], 0.0, n % 2), strict=True)) for n in range(2, 10)]
    table = table_of(spark, rows)
    assert table["colour", "shape"] == pytest.approx(math.log(2))
    assert table["colour", "tags"] == 0
    assert table["item_id", "colour"] == pytest.approx(math.log(2))

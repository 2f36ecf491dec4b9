"""A table with a repeated key is never moved into place."""

import pytest

from pipelines.contract.errors import InputError
from pipelines.storage.manifest import Recipe
from pipelines.storage.table_keys import KEYS
from pipelines.storage.warehouse import Warehouse

DS = "2024-03-01"
VOCABULARY = "feature string, value string, index int"


def test_a_table_with_a_repeated_key_is_refused_and_stays_unchanged(warehouse: Warehouse) -> None:
    spark = warehouse.spark
    good = spark.createDataFrame([(f"u{n}", n) for n in range(100)], "user_id string, user_index int")
    before = warehouse.write(good, "user_histories", DS, Recipe("", {}))
    repeated = good.unionByName(good.where("user_index >= 97"))
    with pytest.raises(InputError) as refused:
        warehouse.write(repeated, "user_histories", DS, Recipe("other", {}))
    message = str(refused.value)
    assert "table user_histories ds=2024-03-01: 3 values of (user_id) have 6 rows" in message
    assert '{"user_id":"u97"}' in message
    assert "please report this" in message
    assert warehouse.manifest("user_histories", DS) == before
    assert warehouse.read("user_histories", DS).count() == 100


def test_each_key_of_a_table_is_checked_separately(warehouse: Warehouse) -> None:
    spark = warehouse.spark
    # An index or a value may occur in two features, but only once in each.
    good = [("a", "x", 2), ("a", "y", 3), ("b", "x", 2), ("b", "2", 3)]
    warehouse.write(spark.createDataFrame(good, VOCABULARY), "vocabularies", DS, Recipe("", {}))
    for wrong, key in ((("a", "z", 3), r"\(feature, index\)"), (("b", "x", 4), r"\(feature, value\)")):
        with pytest.raises(InputError, match=rf"1 values of {key} have 2 rows"):
            warehouse.write(spark.createDataFrame([*good, wrong], VOCABULARY), "vocabularies", DS, Recipe("", {}))


def test_tables_of_a_night_have_their_key_columns(nights: Warehouse) -> None:
    for table in ("vocabularies", "user_histories", "item_stats", "item_features", "positives", "samples"):
        columns = nights.read(table, "2024-03-03").columns
        assert all(set(key) <= set(columns) for key in KEYS[table])

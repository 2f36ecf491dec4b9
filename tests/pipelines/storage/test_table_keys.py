"""No table is moved into place with a key twice."""

import pytest

from pipelines.contract.errors import InputError
from pipelines.storage.manifest import Recipe
from pipelines.storage.table_keys import KEYS
from pipelines.storage.warehouse import Warehouse

DS = "2024-03-01"
WORDS = "feature string, value string, index int"


def test_a_table_with_a_key_twice_is_refused_and_stays_as_it_was(warehouse: Warehouse) -> None:
    spark = warehouse.spark
    good = spark.createDataFrame([(f"u{n}", n) for n in range(100)], "user_id string, user_index int")
    before = warehouse.write(good, "user_histories", DS, Recipe("", {}))
    twice = good.unionByName(good.where("user_index >= 97"))
    with pytest.raises(InputError) as refused:
        warehouse.write(twice, "user_histories", DS, Recipe("other", {}))
    said = str(refused.value)
    assert "table user_histories ds=2024-03-01: 3 values of (user_id) have 6 rows" in said
    assert '{"user_id":"u97"}' in said
    assert "please report this" in said
    assert warehouse.manifest("user_histories", DS) == before
    assert warehouse.read("user_histories", DS).count() == 100


def test_each_key_of_a_table_counts_by_itself(warehouse: Warehouse) -> None:
    spark = warehouse.spark
    # An index may stand in two features, and a value; not twice in one.
    good = [("a", "x", 2), ("a", "y", 3), ("b", "x", 2), ("b", "2", 3)]
    warehouse.write(spark.createDataFrame(good, WORDS), "vocabularies", DS, Recipe("", {}))
    for wrong, key in ((("a", "z", 3), r"\(feature, index\)"), (("b", "x", 4), r"\(feature, value\)")):
        with pytest.raises(InputError, match=rf"1 values of {key} have 2 rows"):
            warehouse.write(spark.createDataFrame([*good, wrong], WORDS), "vocabularies", DS, Recipe("", {}))


def test_the_tables_of_a_night_have_the_columns_of_their_keys(nights: Warehouse) -> None:
    for table in ("vocabularies", "user_histories", "item_stats", "item_features", "positives", "samples"):
        columns = nights.read(table, "2024-03-03").columns
        assert all(set(key) <= set(columns) for key in KEYS[table])

"""Vocabularies: indices have no gaps, keep their meaning from night to night, and depend only on the values."""

import pytest
from pydantic import ValidationError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.feature_config import Features
from pipelines.features import encode, vocabulary
from pipelines.features.feature_schema import as_json, example_age, feature_schema
from pipelines.features.side import hashed_sizes, sides
from pipelines.hashing import hashed

pytestmark = pytest.mark.joins


def values(spark: SparkSession, *rows: tuple[str, str | None, int], partitions: int = 3) -> DataFrame:
    return spark.createDataFrame(list(rows), "feature string, value string, count long").repartition(partitions)


def append(
    previous: DataFrame | None, counted: DataFrame, min_counts: dict[str, int] | None = None
) -> tuple[dict[tuple[str, str], int], DataFrame, dict[str, int]]:
    unseen = vocabulary.unseen_values(previous, counted, min_counts)
    frame, sizes = vocabulary.append(previous, unseen)
    return {(row["feature"], row["value"]): row["index"] for row in frame.collect()}, frame, sizes


def test_new_values_are_numbered_by_hash_after_the_old_ones(spark: SparkSession) -> None:
    first_rows = [("item_id", f"i{n % 90}", 1) for n in range(120)] + [("item.tag", f"i{n}", 1) for n in range(40)]
    first, frame, sizes = append(None, values(spark, *first_rows, ("item_id", None, 1)))
    assert sizes == {"item_id": 92, "item.tag": 42}
    again, _, _ = append(None, values(spark, *reversed(first_rows), partitions=7))
    assert again == first

    second_rows = [("item_id", f"i{n}", 1) for n in range(60, 200)] + [("user_id", "u", 1)]
    second, _, sizes = append(spark.createDataFrame(frame.collect(), frame.schema), values(spark, *second_rows))
    assert first.items() <= second.items()
    assert sizes == {"item_id": 202, "item.tag": 42, "user_id": 3}
    for feature, size in sizes.items():
        assert sorted(i for (name, _), i in second.items() if name == feature) == list(range(2, size))
    # The new values of each night are in the order of their hashes, as unsigned numbers.
    labels = spark.createDataFrame(list(second), "feature string, value string")
    hashes = {
        tuple(r)[:2]: r[2] % 2**64 for r in labels.select("*", hashed("word", 0, *map(F.col, labels.columns))).collect()
    }
    for night in (first.keys(), second.keys() - first.keys()):
        by_index = sorted((value for value in night if value[0] == "item_id"), key=lambda value: second[value])
        assert by_index == sorted(by_index, key=lambda value: hashes[value])


def test_a_rare_value_gets_an_index_on_the_night_that_reads_it_often_enough(spark: SparkSession) -> None:
    least = {"user_id": 3}
    night = [("user_id", "often", 2), ("user_id", "often", 1), ("user_id", "rare", 2), ("item.tag", "rare", 1)]
    first, frame, _ = append(None, values(spark, *night), least)
    assert first == {("user_id", "often"): 2, ("item.tag", "rare"): 2}
    # Counts of earlier nights do not add up: only the vocabulary is carried from night to night.
    second, _, _ = append(frame, values(spark, ("user_id", "rare", 3), ("user_id", "often", 1)), least)
    assert second == {**first, ("user_id", "rare"): 3}


def test_hashed_features_need_no_vocabulary(spark: SparkSession) -> None:
    spec = {
        "user": [{"kind": "multi_categorical", "name": "likes", "max_values": 2, "buckets": 5}],
        "item": [{"kind": "categorical", "name": "brand", "buckets": 1000}, {"kind": "categorical", "name": "shop"}],
        "ids": {"user": {"buckets": 50}, "item": {"buckets": 7}},
    }
    features = Features.model_validate(spec)
    user, item = sides(features)
    rows = [(f"{n}", f"b{n}", "s", ["b1", None, "b3"]) for n in range(300)] + [("300", None, "s", None)]
    frame = spark.createDataFrame(rows, "item_id string, brand string, shop string, likes array<string>")
    frame = frame.withColumn("user_id", F.col("item_id"))
    labels = {row["feature"] for row in encode.values_of(item, frame).select("feature").distinct().collect()}  # type: ignore[union-attr]
    assert labels == {"item.shop"}
    assert encode.values_of(user, frame) is None

    vocab = spark.createDataFrame([("item.shop", "s", 2)], "feature string, value string, index int")
    brands = {r["item_id"]: r["item_brand"] for r in encode.encode(item, frame, vocab, {}, ["item_id"]).collect()}
    assert brands.pop("300") == 1
    assert min(brands.values()) >= 2
    assert max(brands.values()) < 1002
    assert len(set(brands.values())) > 200  # 300 values in 1,000 buckets: about 260 buckets are used
    likes = {tuple(row["user_likes"]) for row in encode.encode(user, frame, vocab, {}, ["user_id"]).collect()}
    assert likes == {(next(iter(likes - {(0, 0)}))[0], 1), (0, 0)}
    shop = vocabulary.bucket_of("item.shop", F.col("brand"), 1000)
    other = {
        r["item_id"]: r["shop"]
        for r in frame.where("brand is not null").select("item_id", shop.alias("shop")).collect()
    }
    assert sum(other[key] == brands[key] for key in brands) < 10

    sizes = {"user_id": 2, "item_id": 12, "user.likes": 2, "item.brand": 2, "item.shop": 3} | hashed_sizes(features)
    schema = as_json(feature_schema(features, sizes, {}, example_age(30, {})))
    assert [entry["size"] for entry in schema["user"]] == [52, 7]
    rows = {"column": "item_row", "size": 9, "hashed": True}
    assert schema["item"][0] | {"rows": rows, "size": 12} == schema["item"][0]
    assert schema["history"]["size"] == 12


def test_buckets_and_min_count_exclude_each_other(spark: SparkSession) -> None:
    with pytest.raises(ValidationError, match="buckets and min_count exclude each other"):
        Features.model_validate({"ids": {"user": {"buckets": 10, "min_count": 2}}})

"""Promises of the vocabularies: indices are dense, keep their meaning, and depend on nothing but the values."""

import pytest
from pydantic import ValidationError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.config import Features
from pipelines.features import encode, vocabulary
from pipelines.features.feature_schema import as_json, example_age, feature_schema
from pipelines.features.side import hashed_sizes, sides
from pipelines.hashing import hashed

pytestmark = pytest.mark.joins


def values(spark: SparkSession, *rows: tuple[str, str | None, int], partitions: int = 3) -> DataFrame:
    return spark.createDataFrame(list(rows), "feature string, value string, count long").repartition(partitions)


def grown(
    previous: DataFrame | None, found: DataFrame, min_counts: dict[str, int] | None = None
) -> tuple[dict[tuple[str, str], int], DataFrame, dict[str, int]]:
    unseen = vocabulary.unseen_values(previous, found, min_counts)
    frame, sizes = vocabulary.append(previous, unseen)
    return {(row["feature"], row["value"]): row["index"] for row in frame.collect()}, frame, sizes


def test_new_values_are_numbered_by_hash_behind_the_old_ones(spark: SparkSession) -> None:
    first_rows = [("item_id", f"i{n % 90}", 1) for n in range(120)] + [("item.tag", f"i{n}", 1) for n in range(40)]
    first, frame, sizes = grown(None, values(spark, *first_rows, ("item_id", None, 1)))
    assert sizes == {"item_id": 92, "item.tag": 42}
    again, _, _ = grown(None, values(spark, *reversed(first_rows), partitions=7))
    assert again == first

    second_rows = [("item_id", f"i{n}", 1) for n in range(60, 200)] + [("user_id", "u", 1)]
    second, _, sizes = grown(spark.createDataFrame(frame.collect(), frame.schema), values(spark, *second_rows))
    assert first.items() <= second.items()
    assert sizes == {"item_id": 202, "item.tag": 42, "user_id": 3}
    for feature, size in sizes.items():
        assert sorted(i for (name, _), i in second.items() if name == feature) == list(range(2, size))
    # The order of each night's new values is that of their hashes, read as numbers without a sign.
    words = spark.createDataFrame(list(second), "feature string, value string")
    hashes = {
        tuple(r)[:2]: r[2] % 2**64 for r in words.select("*", hashed("word", 0, *map(F.col, words.columns))).collect()
    }
    for night in (first.keys(), second.keys() - first.keys()):
        by_index = sorted((word for word in night if word[0] == "item_id"), key=lambda word: second[word])
        assert by_index == sorted(by_index, key=lambda word: hashes[word])


def test_a_rare_value_waits_for_the_night_that_reads_it_often_enough(spark: SparkSession) -> None:
    least = {"user_id": 3}
    night = [("user_id", "often", 2), ("user_id", "often", 1), ("user_id", "rare", 2), ("item.tag", "rare", 1)]
    first, frame, _ = grown(None, values(spark, *night), least)
    assert first == {("user_id", "often"): 2, ("item.tag", "rare"): 2}
    # What a value was read before does not add up: nothing but the vocabulary is carried from night to night.
    second, _, _ = grown(frame, values(spark, ("user_id", "rare", 3), ("user_id", "often", 1)), least)
    assert second == {**first, ("user_id", "rare"): 3}


def test_buckets_need_no_vocabulary_and_tell_features_apart(spark: SparkSession) -> None:
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

    words = spark.createDataFrame([("item.shop", "s", 2)], "feature string, value string, index int")
    brands = {r["item_id"]: r["item_brand"] for r in encode.encode(item, frame, words, {}, ["item_id"]).collect()}
    assert brands.pop("300") == 1
    assert min(brands.values()) >= 2
    assert max(brands.values()) < 1002
    assert len(set(brands.values())) > 200  # 300 values in 1,000 buckets: some 260 of them differ
    likes = {tuple(row["user_likes"]) for row in encode.encode(user, frame, words, {}, ["user_id"]).collect()}
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


def test_a_hashed_value_cannot_wait(spark: SparkSession) -> None:
    with pytest.raises(ValidationError, match="buckets and min_count exclude each other"):
        Features.model_validate({"ids": {"user": {"buckets": 10, "min_count": 2}}})

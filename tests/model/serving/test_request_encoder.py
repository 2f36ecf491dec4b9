"""Request encoding: a request gets the same columns as the user's row in the users table, and errors name the field."""

import math
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from model.serving.request_encoder import RequestEncoder
from model.serving.request_values import RequestError
from model.serving.vocabulary import bucket_of, read_vocabularies
from pipelines.contract.request_fields import RequestFields
from pipelines.feature_config import Features, VocabularyFeatureConfig
from pipelines.features import encode, vocabulary
from pipelines.features.feature_schema import example_age, feature_schema
from pipelines.features.request_fields import request_fields
from pipelines.features.side import context_side, hashed_sizes, sides
from pipelines.inputs.contracts import CONTEXT_STRUCT

Encoded = tuple[list[dict[str, Any]], RequestEncoder]

FEATURES = Features.model_validate(
    {
        "user": [
            {"kind": "categorical", "name": "city"},
            {"kind": "categorical", "name": "plan"},
            {"kind": "categorical", "name": "paying"},
            {"kind": "categorical", "name": "device", "buckets": 7},
            {"kind": "multi_categorical", "name": "tags", "max_values": 3, "weights": "tag_weights"},
            {"kind": "multi_categorical", "name": "shops", "max_values": 2},
            {"kind": "multi_categorical", "name": "words", "max_values": 4, "buckets": 1000},
            {"kind": "numeric", "name": "income"},
            {"kind": "numeric", "name": "member"},
            {"kind": "numeric", "name": "years", "boundaries": [0.3, 0.7, 10.0]},
            {"kind": "numeric", "name": "visits", "boundaries": [1.0, 5.0]},
            {"kind": "vector", "name": "taste", "length": 2},
        ],
        "context": [
            {"kind": "categorical", "name": "surface"},
            {"kind": "vector", "name": "query", "length": 3},
            {"kind": "hour"},
            {"kind": "weekday", "zone": "Asia/Tokyo"},
        ],
        "context_zone": "America/New_York",
        "history": {"length": 3},
        "ids": {"user": {"buckets": 50}},
    }
)
COLUMNS = (
    "user_id string, city string, plan bigint, paying boolean, device string, tags array<string>, "
    "tag_weights array<double>, shops array<int>, words array<string>, income double, member boolean, years float, "
    "visits int, taste array<double>"
)
REQUESTS = "user_id string, surface string, query array<float>, event_time timestamp"
NAN = float("nan")
NOW = datetime(2024, 3, 3, 18, 30, tzinfo=timezone.utc)  # 13:30 on Sunday in New York, 3:30 on Monday in Tokyo
ROWS: list[tuple[Any, ...]] = [
    ("u1", "Köln", 3, True, "phone", ["a", "b"], [1.0, 0.5], [7, 8], ["x", "y"], 3.5, True, 0.3, 1, [0.1, 2.0]),
    ("u2", "köln", -3, False, "tv", ["a", "zzz", "b", "a"], [1.0], [8], ["", "x"], -1e12, False, 0.7, 5, [1e19, -0.0]),
    ("u3", None, None, None, None, None, None, None, None, None, None, None, None, None),
    ("u4", "", 2**60, True, "", [], [], [], [], NAN, True, NAN, 0, None),
    (
        "u5",
        "東京",
        4,
        None,
        "phöne",
        [None, "b"],
        [None, 2.0],
        [None, 9],
        [None, "ж"],
        1e19,
        None,
        -1e19,
        -9,
        [1 / 3, 1e-40],
    ),
    ("u6", "new", 99, False, "tablet", ["b"], None, [1, 2, 3], ["w"] * 6, 0.1, False, 9.999, 4, [16777217.0, 5.0]),
    (
        "17",
        "a b",
        0,
        True,
        "x" * 70,
        ["b", "a"],
        [0.25, 0.5, 9.0],
        [8, 7],
        ["long " * 20],
        1.0,
        True,
        10.0,
        2**30,
        [0.0, 0.0],
    ),
]


@pytest.fixture(scope="module")
def encoded(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """ROWS as encoded by Spark, and a request encoder with the same vocabularies, which lack the values of user u6."""
    snapshot = spark.createDataFrame(ROWS, COLUMNS)
    side = sides(FEATURES)[0]
    values = encode.values_of(side, snapshot.where("user_id != 'u6'"))
    assert values is not None
    items = spark.createDataFrame([("item_id", str(n), 1) for n in range(9)], values.schema)
    grown, sizes = vocabulary.append(None, vocabulary.unseen_values(None, values.unionByName(items)))
    statistics = encode.statistics_of(side, snapshot, {})
    rows = encode.encode(side, snapshot, grown, statistics, ["user_id"])
    bucket = vocabulary.bucket_of("user_id", rows["user_id"], 50)
    encoded_rows = [row.asDict() for row in rows.withColumn("user_index", bucket).collect()]
    folder = tmp_path_factory.mktemp("release") / "vocabularies"
    grown.write.parquet(str(folder))
    request = context_side(FEATURES)
    names = ["user_id", "item_id"]
    names += [s.label(f) for s in (side, request) for f in s.features if isinstance(f, VocabularyFeatureConfig)]
    sizes = dict.fromkeys(names, 2) | sizes | hashed_sizes(FEATURES)
    schema = feature_schema(FEATURES, sizes, statistics, example_age(1, {}))
    types = dict(snapshot.dtypes), "bigint", {"surface": "string", "query": "array<float>"}
    fields = RequestFields.validate_python(request_fields(FEATURES, *types))
    urls = sorted(str(path) for path in folder.glob("*.parquet"))
    names = {f.vocabulary for f in fields if getattr(f, "vocabulary", None)}  # type: ignore[union-attr]
    return encoded_rows, RequestEncoder(fields, schema, read_vocabularies(urls, names), lambda: NOW)


def request_of(row: tuple[Any, ...]) -> dict[str, Any]:
    names = [column.strip().split(" ")[0] for column in COLUMNS.split(",")]
    return dict(zip(names, row, strict=True))


def test_a_request_is_encoded_like_the_row_of_the_users_table(
    encoded: Encoded,
) -> None:
    encoded_rows, encoder = encoded
    by_user = {row["user_id"]: row for row in encoded_rows}
    requests = [request_of(row) for row in ROWS]
    columns, _ = encoder.encode(requests)
    of_request = set(context_side(FEATURES).encoded_columns())
    assert columns.keys() == {*(encoded_rows[0].keys() - {"user_id"}), *of_request, "history"}
    for place, request in enumerate(requests):
        for column, values in columns.items():
            if column not in {"history", *of_request}:
                expected = np.array(by_user[request["user_id"]][column], values.dtype)
                np.testing.assert_array_equal(values[place], expected, err_msg=f"{request['user_id']}, {column}")
    # The table has many different values, so the equality is not only one of default indices.
    assert len(np.unique(columns["user_city"])) >= 5
    assert set(columns["user_paying"]) == {1, 2, 3}
    assert set(columns["user_years"]) == {1, 2, 3, 4, 5}


def test_a_missing_field_is_encoded_like_null(encoded: Encoded) -> None:
    _, encoder = encoded
    nothing = dict.fromkeys(encoder.names)
    columns, known_items = encoder.encode([{}, nothing])
    assert [columns.pop(name).tolist() for name in ("context_hour", "context_weekday")] == [[15, 1], [2, 1]]
    for values in columns.values():
        np.testing.assert_array_equal(values[0], values[1])
    assert columns["user_index"][0] == columns["user_city"][0] == columns["user_years"][0] == 1
    assert [len(items) for items in known_items] == [0, 0]


def test_the_context_of_a_request_is_encoded_like_that_of_an_interaction(spark: SparkSession, encoded: Encoded) -> None:
    encoder, times = encoded[1], [datetime(2024, 7, 1, hour, 59) for hour in (0, 3, 4, 15, 23)]
    rows = [(f"u{n}", ["app", None][n % 2], [n / 3, 0.0, 1.0] if n else None, time) for n, time in enumerate(times)]
    frame = spark.createDataFrame(rows, REQUESTS)
    frame = frame.select("user_id", "event_time", F.struct("surface", "query").alias(CONTEXT_STRUCT))
    vocabulary_of_requests = spark.createDataFrame([], "feature string, value string, index int")
    table = encode.encode(context_side(FEATURES), frame, vocabulary_of_requests, {}, ["user_id"])
    expected = [row.asDict() for row in table.orderBy("user_id").collect()]
    requests = [
        {
            "surface": surface,
            "query": query,
            "hour": time.replace(tzinfo=timezone.utc).astimezone(ZoneInfo("America/New_York")).hour,
            "weekday": time.replace(tzinfo=timezone.utc).astimezone(ZoneInfo("Asia/Tokyo")).isoweekday(),
        }
        for _, surface, query, time in rows
    ]
    columns, _ = encoder.encode(requests)
    for place, row in enumerate(expected):
        for name in context_side(FEATURES).encoded_columns():
            np.testing.assert_array_equal(columns[name][place], np.array(row[name], columns[name].dtype))
    assert len(set(columns["context_hour"])) == 5
    assert set(columns["context_weekday"]) == {2, 3}


def test_a_history_keeps_its_newest_items_and_is_padded_at_the_start(encoded: Encoded) -> None:
    _, encoder = encoded
    index = encoder._vocabularies["item_id"].index
    requests = [{"history": [1]}, {"history": [4, 5, 6, 7]}, {"history": [5, 777, 5]}]
    columns, known_items = encoder.encode(requests)
    five = index("5")
    expected = [[0, 0, index("1")], [five, index("6"), index("7")], [five, 1, five]]
    assert columns["history"].tolist() == expected
    assert known_items[1].tolist() == [index(str(n)) for n in (4, 5, 6, 7)]
    assert known_items[2].tolist() == [five, five]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"city": 3}, "field 'city' is of type int, expected a string"),
        ({"plan": "3"}, "field 'plan' is of type str, expected a whole number"),
        ({"plan": True}, "field 'plan' is of type bool, expected a whole number"),
        ({"plan": 2.0**60}, "expected a whole number"),
        ({"paying": 1}, "field 'paying' is of type int, expected true or false"),
        ({"income": "3"}, "field 'income' is of type str, expected a number"),
        ({"tags": "a"}, "field 'tags' is of type str, expected a list, each of its elements a string"),
        ({"tags": ["a", 1]}, "field 'tags' is of type int, expected a string"),
        (
            {"tags": ["a"], "tag_weights": [NAN]},
            "field 'tag_weights' holds NaN or a number that is too large at place 0, expected finite numbers",
        ),
        (
            {"tags": ["a", "b"], "tag_weights": [1.0, 1e13]},
            "'tag_weights' holds NaN or a number that is too large at place 1",
        ),
        ({"income": 1e300}, "field 'income' is infinite or beyond 1e+19"),
        ({"income": -math.inf}, "field 'income' is infinite or beyond 1e+19"),
        ({"years": 10**400}, "field 'years' is infinite or beyond 1e+19"),
        ({"history": [1, None]}, "field 'history' holds null at place 1, expected ids of items"),
        ({"taste": [1.0]}, "field 'taste' holds 1 numbers, expected 2"),
        ({"taste": [1.0, NAN]}, "field 'taste' holds NaN at place 1, expected finite numbers"),
        ({"taste": [1.0, None]}, "field 'taste' is of type NoneType, expected a number"),
        ({"query": 1.0}, "field 'query' is of type float, expected a list, each of its elements a number"),
        ({"query": [0.0, 0.0, math.inf]}, "field 'query' is infinite or beyond 1e+19"),
        ({"surface": 1}, "field 'surface' is of type int, expected a string"),
        ({"hour": 24}, "field 'hour' is a number outside 0 to 23, expected the hour"),
        ({"hour": "7"}, "field 'hour' is of type str, expected a whole number"),
        ({"weekday": 0}, "field 'weekday' is a number outside 1 to 7"),
        ({"citi": "x"}, "unknown field 'citi'; did you mean 'city'?"),
        ("x", "is of type str, expected an object of fields and values"),
    ],
)
def test_an_error_names_the_request_and_the_field(encoded: Encoded, request_: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        encoded[1].encode([{"city": "x"}, request_])
    assert str(error.value).startswith("request 1")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "user_id",
        "city",
        "plan",
        "paying",
        "tags",
        "tag_weights",
        "income",
        "years",
        "taste",
        "query",
        "hour",
        "history",
    ],
)
def test_no_error_message_contains_a_value_of_the_request(encoded: Encoded, name: str) -> None:
    """Messages go to logs and through proxies, where the data of a user must not appear."""
    secret = "anna@example.org"
    bodies = [
        {name: {secret: secret}},
        {name: [[secret]]},
        {name: [{secret: 1}]},
        {name: secret},
        {name: [secret, 4711]},
    ]
    bodies += [{name: 4711}, {name: 4711.5}, secret]
    messages = []
    for body in bodies:
        if isinstance(body, dict) and name == "tag_weights":
            body = body | {"tags": ["a", "b"]}
        try:
            encoded[1].encode([body])
        except RequestError as error:
            messages.append(str(error))
    assert len(messages) > 3
    assert not any(secret in message or "4711" in message for message in messages), messages


def test_integers_may_be_sent_as_floats(encoded: Encoded) -> None:
    columns, _ = encoded[1].encode([{"plan": 3}, {"plan": 3.0}])
    assert columns["user_plan"][0] == columns["user_plan"][1] > 1


def test_hashed_indices_equal_those_of_spark(spark: SparkSession) -> None:
    texts = ["", "a", "ü", "x" * 31, "x" * 32, "x" * 33, "0", "long " * 50] + [str(n) for n in range(500)]
    frame = spark.createDataFrame([(text,) for text in texts], "text string")
    rows = frame.select("text", vocabulary.bucket_of("item_id", frame["text"], 999).alias("bucket")).collect()
    assert {row["text"]: row["bucket"] for row in rows} == {text: bucket_of("item_id", text, 999) for text in texts}

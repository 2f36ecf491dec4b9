"""Queries of a later night, embedded by the model of an earlier night."""

from pyspark.sql import SparkSession

from jobs.inference.embed import within_model
from tests.model import toy_night


def test_indices_that_the_model_does_not_have_become_default(spark: SparkSession) -> None:
    device = {"name": "device", "kind": "categorical", "column": "context_device", "vocabulary": "context.device"}
    tags = {"name": "tags", "kind": "multi_categorical", "column": "user_tags", "vocabulary": "user.tags", "size": 6}
    user = [*toy_night.SCHEMA["user"], tags | {"length": 3}, toy_night.VECTORS["user"]]
    schema = toy_night.schema(user=user, context=[device | {"size": 4}], history=toy_night.FULL_HISTORY)
    rows = [
        (toy_night.USERS + 1, 5, 4, 1.5, [5, 6, 0], [0, 2, toy_night.ITEMS + 1], [9.0, 9.0, 9.0], 3, [0, 1, 4]),
        (toy_night.USERS + 2, 6, 1, 9.0, [2, 3, 4], [0] * 3, [0.0, 0.0, 7.5], 4, [0, 2, 5]),
    ]
    columns = (
        "user_index int, user_age int, user_tenure int, user_income float, user_tags array<int>, history array<int>, "
        "user_taste array<float>, context_device int, history_actions array<int>"
    )
    known = within_model(spark.createDataFrame(rows, columns), schema).collect()
    first = (toy_night.USERS + 1, 5, 4, 1.5, [5, 1, 0], [0, 2, toy_night.ITEMS + 1], [9.0] * 3, 3, [0, 1, 4])
    assert tuple(known[0]) == first
    assert tuple(known[1]) == (1, 1, 1, 9.0, [2, 3, 4], [0] * 3, [0.0, 0.0, 7.5], 1, [0, 2, 1])

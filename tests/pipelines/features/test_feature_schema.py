"""The JSON of the feature schema in manifests: later versions must read the manifests of earlier ones."""

from pipelines.contract.schema import FeatureSchema
from pipelines.feature_config import Features, History
from pipelines.features.feature_schema import as_json, example_age, feature_schema
from pipelines.features.request_fields import request_fields

FEATURES = Features.model_validate(
    {
        "user": [
            {"kind": "categorical", "name": "age"},
            {"kind": "multi_categorical", "name": "likes", "weights": "w"},
        ],
        "item": [{"kind": "numeric", "name": "price"}, {"kind": "numeric", "name": "size", "boundaries": [1.0, 2.0]}],
        "history": {"length": 20},
    }
)
SIZES = {"user_id": 7, "item_id": 9, "user.age": 4, "user.likes": 5}
STATISTICS = {"item.price": {"mean": 1.5, "std": 2.5}}


def test_the_json_in_manifests_does_not_change() -> None:
    schema = feature_schema(FEATURES, SIZES, STATISTICS, example_age(30, {}))
    age = {"name": "age", "kind": "categorical", "column": "user_age", "vocabulary": "user.age", "size": 4}
    likes = {
        "name": "likes",
        "kind": "multi_categorical",
        "column": "user_likes",
        "vocabulary": "user.likes",
        "size": 5,
    }
    item_id = {"name": "item_id", "kind": "id", "column": "item_index", "vocabulary": "item_id", "size": 9}
    history = {"name": "history", "kind": "history", "column": "history", "vocabulary": "item_id", "size": 9}
    assert as_json(schema) == {
        "version": 1,
        "user": [
            {"name": "user_id", "kind": "id", "column": "user_index", "vocabulary": "user_id", "size": 7},
            age,
            likes | {"length": 8, "weights_column": "user_likes_weights"},
        ],
        "item": [
            item_id | {"rows": {"column": "item_row", "size": 9, "hashed": False}},
            {"name": "price", "kind": "numeric", "column": "item_price", "mean": 1.5, "std": 2.5},
            {"name": "size", "kind": "bucket", "column": "item_size", "size": 5},
        ],
        "history": history | {"length": 20},
        "example_age": None,
    }
    assert FeatureSchema.model_validate(as_json(schema)) == schema


def test_optional_features_are_null_or_absent_when_switched_off() -> None:
    off = {"history": None, "user_id": False, "example_age": True, "ids": {"item": {"buckets": 3}}}
    schema = as_json(feature_schema(Features.model_validate(off), SIZES, {}, example_age(30, {})))
    assert (schema["user"], schema["history"]) == ([], None)
    assert schema["item"][0]["rows"] == {"column": "item_row", "size": 5, "hashed": True}
    assert schema["example_age"] == {"name": "example_age", "kind": "age", "column": "example_age", "days": 30.0}


def test_ages_and_actions_of_the_history_are_in_the_schema_and_in_requests_only_if_they_are_on() -> None:
    types = {"user_id": "string", "age": "string", "likes": "array<string>"}
    aged = FEATURES.model_copy(update={"history": History(length=20, ages=True)})
    for features, column in ((FEATURES, None), (aged, "history_ages")):
        schema = feature_schema(features, SIZES, STATISTICS, example_age(30, {}))
        assert schema.history is not None
        assert schema.history.ages_column == column
        assert ("history_ages" in schema.user_columns) == (column is not None)
        assert request_fields(features, types, "int")[-1].get("ages") == column
    acting = FEATURES.model_copy(update={"history": History(length=20, actions=True)})
    for features, columns in ((FEATURES, []), (acting, ["history_actions"])):
        schema = feature_schema(features, SIZES | {"action": 4}, STATISTICS, example_age(30, {}))
        assert schema.history is not None
        assert [name for name in schema.user_columns if name.startswith("history_")] == columns
        assert (schema.history.actions is not None and schema.history.actions.size == 4) == bool(columns)
        field = request_fields(features, types, "int")[-1].get("actions", {})
        assert field.get("name") == (columns[0] if columns else None)
        assert FeatureSchema.model_validate(as_json(schema)) == schema

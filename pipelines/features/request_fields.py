"""Lists the fields of a request, so that a server can encode a user as `pipelines.features.encode` does."""

import re
from collections.abc import Mapping
from typing import Any

from pipelines.feature_config import (
    Features,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
    TimeFeatureConfig,
    VectorFeatureConfig,
)
from pipelines.features.feature_schema import ACTION, HISTORY_ACTIONS, HISTORY_AGES
from pipelines.features.side import Side, context_side, sides


def request_fields(
    features: Features, types: Mapping[str, str], item_type: str, context_types: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One JSON object per field of a request (pipelines/contract/request_fields.py, docs/serving.md).

    `types`: Spark types of user_id and of the columns of the users snapshot. `item_type`: Spark type of item_id.
    `context_types`: Spark types of the columns of interactions. The history is the last field.
    """
    side = sides(features)[0]
    buckets = features.ids.user.buckets
    user = {"name": side.key, "kind": "id", "column": "user_index", "vocabulary": side.key, "buckets": buckets}
    fields: list[dict[str, Any]] = [user | {"type": _request_type(types[side.key])}]
    fields += _of_side(side, types)
    fields += _of_side(context_side(features), context_types or {})
    history: dict[str, Any] = {"name": "history", "kind": "history", "column": "history"}
    history |= {"vocabulary": "item_id", "buckets": None}
    history |= {"type": _request_type(item_type), "length": features.history.length if features.history else None}
    if features.history and features.history.ages:
        history["ages"] = HISTORY_AGES
    if features.history and features.history.actions:
        history["actions"] = {"name": HISTORY_ACTIONS, "column": HISTORY_ACTIONS, "type": "text", "vocabulary": ACTION}
    return [*fields, history | {"order": features.history_order}]


def _of_side(side: Side, types: Mapping[str, str]) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = []
    for feature in side.features:
        base: dict[str, Any] = {"name": feature.name, "kind": feature.kind, "column": side.column(feature)}
        if isinstance(feature, TimeFeatureConfig):
            fields.append(base | {"type": "integer", "zone": feature.zone})
            continue
        if isinstance(feature, NumericFeatureConfig):
            kind = _request_type(types[feature.name])
            fields.append(base | {"type": "double" if kind == "text" else kind, "boundaries": feature.boundaries})
            continue
        base |= {"type": _request_type(types[feature.name])}
        if isinstance(feature, VectorFeatureConfig):
            fields.append(base | {"length": feature.length})
            continue
        base |= {"vocabulary": side.label(feature), "buckets": feature.buckets}
        if isinstance(feature, MultiCategoricalFeatureConfig):
            base |= {"length": feature.max_values, "weights": feature.weights}
        fields.append(base)
    return fields


def _request_type(spark_type: str) -> str:
    """The JSON type of a value, or of the elements of an array. "text": the value that Spark's cast to string gives."""
    element = spark_type.removeprefix("array<").removesuffix(">")
    if element in ("tinyint", "smallint", "int", "bigint") or re.fullmatch(r"decimal\(\d+,0\)", element):
        return "integer"
    return element if element in ("boolean", "float", "double") else "text"

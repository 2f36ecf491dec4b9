"""Builds the feature schema (pipelines/contract/schema.py) from the config and the vocabularies of a night."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from pipelines.contract.indices import FIRST
from pipelines.contract.schema import (
    BucketFeature,
    CategoricalFeature,
    ExampleAge,
    Feature,
    FeatureSchema,
    HistoryFeature,
    IdFeature,
    ItemRows,
    MultiCategoricalFeature,
    NumericFeature,
    VectorFeature,
)
from pipelines.feature_config import (
    ContextFeatureConfig,
    FeatureConfig,
    Features,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
    TimeFeatureConfig,
    VectorFeatureConfig,
)
from pipelines.features.encode import Statistics
from pipelines.features.side import Side, context_side, sides

VALUES_OF_TIME = {"hour": 24, "weekday": 7}
HISTORY_AGES = "history_ages"  # column of samples: seconds from each item of the history to the cut
HISTORY_ACTIONS = "history_actions"  # column of samples and user_histories: the action of each item of the history
ACTION = "action"  # vocabulary of the actions of positives
ACTION_INDEX = "action_index"  # column of positives
ITEM_ROW = "item_row"  # column of item_features: the row of the item in the embedding table


def example_age(oldest_days: int, facts: Mapping[str, Any]) -> ExampleAge:
    """The schema's entry for the example age.

    `facts`: those of the vocabularies of the night before, or {}. The first night sets the scale, `oldest_days`; all later
    nights keep it.
    """
    before = facts.get("schema", {}).get("example_age")
    entry = before or {"name": "example_age", "kind": "age", "column": "example_age", "days": float(oldest_days)}
    return TypeAdapter[ExampleAge](ExampleAge).validate_python(entry)


def feature_schema(
    features: Features, sizes: Mapping[str, int], statistics: Statistics, age: ExampleAge
) -> FeatureSchema:
    """The schema of the features of the config (docs/tables.md).

    `sizes`: number of indices by feature. `statistics`: mean and std of the standardised features. `age`: from
    `example_age`; ignored if the config switches the example age off.
    """
    user, item = sides(features)
    history = None
    if features.history is not None:
        history = HistoryFeature(
            kind="history",
            name="history",
            column="history",
            vocabulary="item_id",
            size=sizes["item_id"],
            length=features.history.length,
            **({"ages_column": HISTORY_AGES} if features.history.ages else {}),
            **({"actions": _history_actions(sizes)} if features.history.actions else {}),
        )
    user_id: list[Feature] = []
    if features.user_id:
        user_id = [
            IdFeature(kind="id", name="user_id", column="user_index", vocabulary="user_id", size=sizes["user_id"])
        ]
    item_id = IdFeature(
        kind="id",
        name="item_id",
        column="item_index",
        vocabulary="item_id",
        size=sizes["item_id"],
        rows=_item_rows(features, sizes),
    )
    request = context_side(features)
    context = [_feature(request, feature, sizes, statistics) for feature in request.features]
    return FeatureSchema(
        version=1,
        user=[*user_id, *(_feature(user, feature, sizes, statistics) for feature in user.features)],
        item=[item_id, *(_feature(item, feature, sizes, statistics) for feature in item.features)],
        history=history,
        example_age=age if features.example_age else None,
        **({"context": context} if context else {}),
    )


def _history_actions(sizes: Mapping[str, int]) -> CategoricalFeature:
    name = HISTORY_ACTIONS
    return CategoricalFeature(kind="categorical", name=name, column=name, vocabulary=ACTION, size=sizes[ACTION])


def as_json(schema: FeatureSchema) -> dict[str, Any]:
    """The schema as manifests store it: fields that nobody set are left out."""
    return schema.model_dump(mode="json", exclude_unset=True)


def _item_rows(features: Features, sizes: Mapping[str, int]) -> ItemRows:
    buckets = features.ids.item.buckets
    rows = sizes["item_id"] if buckets is None else FIRST + buckets
    return ItemRows(column=ITEM_ROW, size=rows, hashed=buckets is not None)


def _feature(
    side: Side, feature: FeatureConfig | ContextFeatureConfig, sizes: Mapping[str, int], statistics: Statistics
) -> Feature:
    label, column, name = side.label(feature), side.column(feature), feature.name
    if isinstance(feature, TimeFeatureConfig):
        return BucketFeature(kind="bucket", name=name, column=column, size=FIRST + VALUES_OF_TIME[feature.kind])
    if isinstance(feature, NumericFeatureConfig):
        if feature.boundaries is not None:
            # Padding, default, and one bucket more than there are boundaries.
            return BucketFeature(kind="bucket", name=name, column=column, size=len(feature.boundaries) + 3)
        return NumericFeature(kind="numeric", name=name, column=column, **statistics[label])
    if isinstance(feature, VectorFeatureConfig):
        return VectorFeature(
            kind="vector",
            name=name,
            column=column,
            length=feature.length,
            width=feature.width,
            dropout=feature.dropout,
        )
    if isinstance(feature, MultiCategoricalFeatureConfig):
        return MultiCategoricalFeature(
            kind="multi_categorical",
            name=name,
            column=column,
            vocabulary=label,
            size=sizes[label],
            length=feature.max_values,
            weights_column=f"{column}_weights" if feature.weights else None,
        )
    return CategoricalFeature(kind="categorical", name=name, column=column, vocabulary=label, size=sizes[label])

"""Writes `vocabularies`: the index of each value, with sizes, statistics and the feature schema as facts."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contract.indices import FIRST
from pipelines.feature_config import VocabularyFeatureConfig
from pipelines.features import encode, item_versions, vocabulary
from pipelines.features.feature_schema import ACTION, as_json, example_age, feature_schema
from pipelines.features.request_fields import request_fields
from pipelines.features.side import all_sides, hashed_sizes, min_counts
from pipelines.histories import user_histories
from pipelines.positives.step import PositivesStep, persisted


@dataclass(frozen=True)
class Vocabularies:
    """The written vocabularies, and the facts of their manifest that the other tables need."""

    table: DataFrame
    sizes: dict[str, int]
    statistics: encode.Statistics
    schema: dict[str, Any]  # the feature schema as JSON

    def lookup(self, feature: str, value: str, index: str) -> DataFrame:
        """Values and indices of one feature, for a join. `value`, `index`: names of the two columns."""
        return vocabulary.lookup(self.table, feature, value, index, self.sizes.get(feature))

    def item_indices(self) -> DataFrame:
        """item_id, item_index of all items."""
        return self.lookup("item_id", "item_id", "item_index")


def write_vocabularies(step: PositivesStep, previous_facts: dict[str, Any]) -> Vocabularies:
    """Write yesterday's vocabulary with the unseen values of this night appended.

    `previous_facts`: facts of the vocabularies of the night before; {} in a bootstrap.
    """
    features, night = step.config.features, step.night
    statistics = _statistics(step, previous_facts.get("numeric", {}))
    hashed = hashed_sizes(features)
    names = ["user_id", "item_id", *([ACTION] if _has_actions(step) else [])]
    sides = all_sides(features)
    names += [side.label(f) for side in sides for f in side.features if isinstance(f, VocabularyFeatureConfig)]

    previous = step.read_previous("vocabularies")
    with persisted(vocabulary.unseen_values(previous, _values(step), min_counts(features))) as unseen:
        appended, appended_sizes = vocabulary.append(previous, unseen)
        sizes = dict.fromkeys(names, FIRST) | appended_sizes | hashed
        age = example_age(night.bootstrap_days or step.config.positives.window_days, previous_facts)
        schema = as_json(feature_schema(features, sizes, statistics, age))
        facts = {"sizes": sizes, "numeric": statistics, "schema": schema, "hashed": hashed, "request": _request(step)}
        step.write(appended, "vocabularies", facts=facts)
    return Vocabularies(step.read("vocabularies"), sizes, statistics, schema)


def _statistics(step: PositivesStep, previous: encode.Statistics) -> encode.Statistics:
    """Statistics of the standardised features: of items from the newest snapshot, of users from the oldest one, of requests
    from the events of the night."""
    served = item_versions.current(step.inputs.items, step.days.items.newest)
    statistics = encode.statistics_of(step.item_side, served, previous)
    for snapshot in step.inputs.users.values():
        statistics |= encode.statistics_of(step.user_side, snapshot, previous | statistics)
    return statistics | encode.statistics_of(step.context_side, step.inputs.events, previous)


def _request(step: PositivesStep) -> list[dict[str, Any]]:
    """The fields of a request, with the types of the newest users snapshot and of the interactions."""
    inputs, days = step.night.inputs, step.days
    newest = days.user_snapshots[-1] if days.user_snapshots else None
    types = dict(step.inputs.users[newest].dtypes) if newest in step.inputs.users else {}
    table, day = ("users", newest) if newest else ("interactions", days.interactions[-1])
    types["user_id"] = inputs.id_type(table, day)
    context_types = inputs.types("interactions", days.interactions)
    return request_fields(step.config.features, types, inputs.id_type("items", days.items.newest), context_types)


def _has_actions(step: PositivesStep) -> bool:
    history = step.config.features.history
    return history is not None and history.actions


def _values(step: PositivesStep) -> DataFrame:
    """All values that may need an index: feature, value, count."""
    inputs = step.inputs
    has_versions = len(step.days.items.to_read) > 1

    def ids(name: str, counted: DataFrame) -> DataFrame:
        return counted.select(F.lit(name).alias("feature"), F.col(name).alias("value"), F.col("count").cast("long"))

    held_out = [] if inputs.held_out is None else [inputs.held_out]
    parts = [ids("item_id", step.item_days)]
    listed = inputs.items.select("item_id").distinct() if has_versions else inputs.items
    parts += [ids("item_id", frame.withColumn("count", F.lit(1))) for frame in (*held_out, listed)]
    if step.config.features.ids.user.buckets is None:
        parts += [ids("user_id", frame.groupBy(*user_histories.USER).count()) for frame in (inputs.events, *held_out)]
    if _has_actions(step):  # all of the config, so that their indices do not depend on the events of the night
        actions = [(ACTION, action, 1) for action in step.config.positives.actions]
        spark = step.night.warehouse.spark
        parts.append(spark.createDataFrame(actions, "feature string, value string, count long"))
    of_features = [encode.values_of(step.item_side, inputs.items, versions=has_versions)]
    of_features += [encode.values_of(step.user_side, snapshot) for snapshot in inputs.users.values()]
    of_features += [encode.values_of(step.context_side, inputs.events)]
    return reduce(DataFrame.unionByName, [*parts, *(part for part in of_features if part is not None)])

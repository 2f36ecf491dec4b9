"""Users in build_positives: their indices and features, and the tables `user_histories` and `holdout`."""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contract.indices import DEFAULT
from pipelines.features import encode, vocabulary
from pipelines.features.feature_schema import ACTION, ACTION_INDEX
from pipelines.histories import user_histories
from pipelines.joins import broadcast_few
from pipelines.positives.step import PositivesStep
from pipelines.positives.vocabularies import Vocabularies


def write_histories(step: PositivesStep, vocabularies: Vocabularies) -> None:
    """Write `user_histories`: yesterday's histories with the positives of this night appended."""
    features = step.config.features
    length = features.history.length if features.history else 1
    known_items = step.config.positives.known_items
    indexed = step.inputs.events.join(vocabularies.item_indices(), on="item_id", how="inner")
    indexed = with_action_index(indexed, vocabularies)
    today = with_user_index(user_histories.last_of_users(indexed, length, known_items), step, vocabularies)
    rolled = user_histories.roll_histories(today, step.read_previous("user_histories"), length, known_items)
    step.write(rolled, "user_histories")


def write_holdout(step: PositivesStep, vocabularies: Vocabularies) -> None:
    """Write `holdout`, the last positive of each user, if the config keeps it out of training."""
    if step.inputs.held_out is None:
        return
    rows = step.inputs.held_out.join(vocabularies.item_indices(), on="item_id", how="inner")
    user_index = F.coalesce("user_index", F.lit(DEFAULT)).alias("user_index")
    rows = with_user_index(rows, step, vocabularies)
    step.write(rows.select("user_id", user_index, "item_id", "item_index", "event_time"), "holdout")


def with_user_index(rows: DataFrame, step: PositivesStep, vocabularies: Vocabularies) -> DataFrame:
    """Adds user_index: from the vocabulary (null for users that it lacks), or by hash. `rows`: user_id, ..."""
    buckets = step.config.features.ids.user.buckets
    if buckets is not None:
        return rows.withColumn("user_index", vocabulary.bucket_of("user_id", F.col("user_id"), buckets))
    indices = vocabularies.lookup("user_id", "user_id", "user_index")
    if "user_key" in rows.columns:
        return rows.join(indices.select("*", user_histories.user_key()), on=user_histories.USER, how="left")
    return rows.join(indices, on="user_id", how="left")


def with_action_index(rows: DataFrame, vocabularies: Vocabularies) -> DataFrame:
    """Adds action_index, if the rows have an action (select.reward_events)."""
    if "action" not in rows.columns:
        return rows
    rows = rows.join(vocabularies.lookup(ACTION, "action", ACTION_INDEX), on="action", how="left")
    return rows.withColumn(ACTION_INDEX, F.coalesce(ACTION_INDEX, F.lit(DEFAULT)))


def with_user_features(rows: DataFrame, step: PositivesStep, vocabularies: Vocabularies) -> DataFrame:
    """Adds the user's features from the newest snapshot before the day of the row's event. `rows`: user_key, user_id, ds."""
    side, days = step.user_side, step.days
    if not side.features:
        return rows
    keys, encoded = list(user_histories.USER), []
    for day, snapshot in step.inputs.users.items():
        part = encode.encode(
            side, snapshot, vocabularies.table, vocabularies.statistics, ["user_id"], vocabularies.sizes
        )
        encoded.append(part.select("*", user_histories.user_key(), F.lit(day).alias("snapshot")))
    if set(days.users.values()) == set(days.user_snapshots) and len(encoded) == 1:
        encoded = [encoded[0].drop("snapshot")]  # all days use the same snapshot
    else:
        keys.append("snapshot")
        pairs = [(day, snapshot) for day, snapshot in days.users.items()]
        snapshot_of = step.night.warehouse.spark.createDataFrame(pairs, "ds string, snapshot string")
        rows = rows.join(broadcast_few(snapshot_of), on="ds", how="left")
    rows = rows.join(reduce(DataFrame.unionByName, encoded), on=keys, how="left").drop("snapshot")
    blanks = encode.without_snapshot(side, vocabularies.statistics)
    return rows.withColumns({column: F.coalesce(column, blank) for column, blank in blanks.items()})

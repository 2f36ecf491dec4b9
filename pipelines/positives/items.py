"""Writes `item_features` and `item_versions`: the items of the newest snapshot, and their versions in earlier ones."""

from contextlib import nullcontext

from pyspark.sql import functions as F

from pipelines.contract.indices import DEFAULT
from pipelines.features import encode, item_versions, vocabulary
from pipelines.features.feature_schema import ITEM_ROW
from pipelines.positives.step import PositivesStep, persisted
from pipelines.positives.vocabularies import Vocabularies


def write_items(step: PositivesStep, vocabularies: Vocabularies) -> None:
    """Write both tables. Requires item_stats of this ds.

    An item gets its own row of the embedding table once it has been the item of a training row, tonight or earlier. Until
    then it has the default row: a row that is trained only as a negative would learn that nobody likes the item.
    """
    side, snapshots = step.item_side, step.days.items
    keys = ["item_id", "publish_time", "first", "last", "since"]
    encoded = encode.encode(
        side,
        step.inputs.items,
        vocabularies.table,
        vocabularies.statistics,
        keys,
        vocabularies.sizes,
        ("item_id", "first"),
    )
    rows = encoded.join(vocabularies.item_indices(), on="item_id", how="inner")
    trained = step.read("item_stats").where("first_trained is not null").select("item_index")
    rows = rows.join(trained.withColumn("_trained", F.lit(True)), on="item_index", how="left")
    buckets = step.config.features.ids.item.buckets
    own = F.col("item_index") if buckets is None else vocabulary.bucket_of("item_id", F.col("item_id"), buckets)
    rows = rows.select(
        "item_index",
        "item_id",
        F.when(F.col("_trained"), own).otherwise(F.lit(DEFAULT)).alias(ITEM_ROW),
        "publish_time",
        item_versions.available_from(rows, snapshots.to_read[0]).alias("available_from"),
        "first",
        "last",
        *side.encoded_columns(),
    )
    with persisted(rows) if len(snapshots.to_read) > 1 else nullcontext(rows):
        served = item_versions.current(rows, snapshots.newest).drop("first", "last").sort("item_index")
        step.write(served, "item_features", facts={"schema": vocabularies.schema, "snapshot": snapshots.newest})
        versions = item_versions.earlier(rows, side.encoded_columns(), snapshots.newest)
        versions = versions.drop("available_from", "last").withColumnRenamed("first", "snapshot")
        step.write(versions.sort("item_index", "snapshot"), "item_versions", may_be_empty=True)

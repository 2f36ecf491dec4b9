"""Users as the user tower wants them at the end of a day, and what they then went on to do."""

from functools import reduce

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from pipelines.config import Features, Positives
from pipelines.contract.indices import DEFAULT
from pipelines.features import encode, vocabulary
from pipelines.hashing import hashed
from pipelines.night import Night
from pipelines.positives import select
from pipelines.storage.dates import shift


def user_queries(night: Night, features: Features, users: DataFrame | None = None) -> DataFrame:
    """One row a user at the end of ds: user_id, user_index, user_NAME…, history (padded left), known_items.

    `users`: user_id (string) of those wanted, whether known or not; default: everyone in the state or the newest
    snapshot. A user that nothing is known of gets defaults: index 1, an empty history.
    """
    read = night.warehouse.read
    vocab = read("vocabularies", night.ds)
    facts = night.warehouse.require("vocabularies", night.ds, f"run build_positives for ds={night.ds} first").facts
    state = read("user_histories", night.ds)
    side = encode.sides(features)[0]
    snapshot_day = night.inputs.snapshot_at("users", night.ds, strictly_before=False)
    snapshot = night.inputs.snapshot("users", snapshot_day) if snapshot_day else None
    if users is None:
        users = known_users(night)
    rows = users.join(state.drop("user_index", "history_times"), on="user_id", how="left")
    buckets = features.ids.user.buckets
    if buckets is None:
        words = vocabulary.lookup(vocab, "user_id", "user_id", "user_index", facts["sizes"]["user_id"])
        rows = rows.join(words, on="user_id", how="left")
    else:
        rows = rows.withColumn("user_index", vocabulary.bucket_of("user_id", F.col("user_id"), buckets))
    if side.features and snapshot is not None:
        encoded = encode.encode(side, snapshot, vocab, facts["numeric"], ["user_id"], facts["sizes"])
        rows = rows.join(encoded, on="user_id", how="left")
    for column, blank in encode.without_snapshot(side, facts["numeric"]).items():
        rows = rows.withColumn(column, F.coalesce(column, blank) if column in rows.columns else blank)
    length = features.history.length if features.history else 1
    # Where order means nothing, a user is what the user has, each item once: as the training rows had it.
    past = "known_items" if features.history and features.history.order == "leave_one_out" else "history_items"
    return rows.select(
        "user_id",
        F.coalesce("user_index", F.lit(DEFAULT)).alias("user_index"),
        *side.encoded_columns(),
        encode.pad_left(F.col(past), length).alias("history"),
        F.coalesce("known_items", F.array().cast("array<int>")).alias("known_items"),
    )


def known_users(night: Night) -> DataFrame:
    """user_id of everyone in the state of ds or in the newest users snapshot, each once."""
    users = night.warehouse.read("user_histories", night.ds).select("user_id")
    snapshot_day = night.inputs.snapshot_at("users", night.ds, strictly_before=False)
    if snapshot_day is None:
        return users
    return users.unionByName(night.inputs.snapshot("users", snapshot_day).select("user_id")).distinct()


def with_held_out_items(rows: DataFrame, night: Night) -> DataFrame:
    """Queries whose known_items also hold what `holdout` keeps out of training and state: the users have these items.

    Reads `holdout` of ds and of the nights before it, back to the bootstrap.
    """
    held, ds = [], night.ds
    lineage = night.warehouse.require("user_histories", ds, f"run build_positives for ds={ds} first").lineage
    while (state := night.warehouse.manifest("user_histories", ds)) is not None and state.lineage == lineage:
        if night.warehouse.manifest("holdout", ds):
            held.append(night.warehouse.read("holdout", ds).select("user_id", "item_index"))
        ds = shift(ds, -1)
    if not held:
        return rows
    by_user = reduce(DataFrame.unionByName, held).groupBy("user_id").agg(F.collect_set("item_index").alias("_held"))
    had = F.coalesce("_held", F.array().cast("array<int>"))
    rows = rows.join(by_user, on="user_id", how="left")
    return rows.withColumn("known_items", F.array_union("known_items", had)).drop("_held")


def next_positives(night: Night, config: Positives, days: list[str]) -> DataFrame:
    """Positives of later days: user_id, item_id, item_index (null for an item that ds did not know).

    An event counts only with a reward above 0, as in training.
    """
    interactions = night.inputs.events("interactions", days)
    events = interactions.where(select.is_positive(config))
    vocab = night.warehouse.read("vocabularies", night.ds)
    items = vocabulary.lookup(vocab, "item_id", "item_id", "item_index")
    return events.select("user_id", "item_id").distinct().join(items, on="item_id", how="left")


def held_out(night: Night) -> DataFrame:
    """Each user's last positive, as build_positives put it aside: user_id, item_id, item_index."""
    return night.warehouse.read("holdout", night.ds).select("user_id", "item_id", "item_index")


def targets(
    found: DataFrame, night: Night, *, new_items_only: bool, max_users: int
) -> tuple[DataFrame, dict[str, float]]:
    """Targets by user (user_id, targets: array<int>), of at most `max_users` users chosen by hash, and what was left out.

    Only items that ds could have recalled count: the share of the others is reported, not hidden in the recall.
    """
    live = night.warehouse.read("item_features", night.ds).select("item_index", F.lit(True).alias("live"))
    marked = found.join(live, on="item_index", how="left").withColumn("live", F.coalesce("live", F.lit(False)))
    known = F.lit(False).alias("known")
    if new_items_only:
        had = night.warehouse.read("user_histories", night.ds).select(
            "user_id", F.explode("known_items").alias("item_index"), F.lit(True).alias("known")
        )
        marked = marked.join(had, on=["user_id", "item_index"], how="left")
        known = F.coalesce("known", F.lit(False)).alias("known")
    marked = marked.select("user_id", "item_index", "live", known)
    counted = marked.agg(
        F.count(F.lit(1)).alias("all"),
        F.count(F.when(~F.col("live"), 1)).alias("unreachable"),
        F.count(F.when(F.col("known"), 1)).alias("known"),
    ).first()
    assert counted is not None
    everything = max(1, counted["all"])
    shares = {"share_unreachable": counted["unreachable"] / everything, "share_known": counted["known"] / everything}
    by_user = (
        marked.where("live and not known")
        .groupBy("user_id")
        .agg(F.array_sort(F.collect_set("item_index")).alias("targets"))
    )
    chosen = by_user.orderBy(hashed("evaluated", night.seed, F.col("user_id")), "user_id").limit(max_users)
    return chosen, shares


def co_occurrence(night: Night, items_a_user: int, neighbours: int) -> DataFrame:
    """Item-item collaborative filtering from what users have: item_index, neighbours (array<int>), similarities.

    sim(i, j) = n_ij / sqrt(n_i n_j) over users' latest known items (Linden, Smith and York, IEEE Internet Computing
    2003). A user brings a bounded number of items, so pairs grow with users, not with the heaviest user squared.
    """
    state = night.warehouse.read("user_histories", night.ds)
    pairs = state.select("user_id", F.explode(F.slice(F.reverse("known_items"), 1, items_a_user)).alias("item_index"))
    counts = pairs.groupBy("item_index").agg(F.count(F.lit(1)).alias("n"))
    other = pairs.withColumnRenamed("item_index", "neighbour")
    together = (
        pairs.join(other, on="user_id", how="inner")
        .where("item_index != neighbour")
        .groupBy("item_index", "neighbour")
        .agg(F.count(F.lit(1)).alias("together"))
    )
    similar = (
        together.join(counts, on="item_index", how="inner")
        .join(counts.select(F.col("item_index").alias("neighbour"), F.col("n").alias("m")), on="neighbour", how="inner")
        .withColumn("similarity", (F.col("together") / F.sqrt(F.col("n") * F.col("m"))).cast("float"))
    )
    best = Window.partitionBy("item_index").orderBy(F.desc("similarity"), "neighbour")
    kept = similar.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= neighbours)
    ordered = kept.groupBy("item_index").agg(
        F.array_sort(F.collect_list(F.struct("rank", "neighbour", "similarity"))).alias("found")
    )
    return ordered.select(
        "item_index",
        F.col("found.neighbour").alias("neighbours"),
        F.col("found.similarity").alias("similarities"),
    )

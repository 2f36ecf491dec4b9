"""Queries: users as the user tower reads them at the end of a day, and their positives of later days as targets."""

from functools import reduce

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from pipelines.config import Positives
from pipelines.contract.indices import DEFAULT
from pipelines.feature_config import Features
from pipelines.features import encode, vocabulary
from pipelines.features.feature_schema import HISTORY_ACTIONS, HISTORY_AGES
from pipelines.features.side import context_side, sides
from pipelines.hashing import hashed
from pipelines.histories.cuts import ages_at
from pipelines.histories.user_histories import actions_of
from pipelines.night import Night
from pipelines.positives import select
from pipelines.storage.dates import shift


def user_queries(night: Night, features: Features, users: DataFrame | None = None) -> DataFrame:
    """One row per user at the end of ds: user_id, user_index, user_NAME..., context_NAME..., history (padded left),
    known_items.

    With features.history.ages also history_ages: seconds from each item of the history to the end of ds. With
    features.history.actions also history_actions: the action of each item.

    `users`: user_id (string) of the requested users, known or not; default: all users in the state or the newest snapshot.
    An unknown user gets the defaults: index 1, an empty history. There is no request, so its features have their defaults.
    """
    read = night.warehouse.read
    vocab = read("vocabularies", night.ds)
    facts = night.warehouse.require("vocabularies", night.ds, f"run build_positives for ds={night.ds} first").facts
    state = read("user_histories", night.ds)
    side, request = sides(features)[0], context_side(features)
    snapshot_day = night.inputs.snapshot_at("users", night.ds, strictly_before=False)
    snapshot = night.inputs.snapshot("users", snapshot_day) if snapshot_day else None
    if users is None:
        users = known_users(night)
    history = features.history
    unread = ["user_index"] if history and history.ages else ["user_index", "history_times"]
    if history and history.actions:
        state = state.withColumn(HISTORY_ACTIONS, actions_of(state))
    rows = users.join(state.drop(*unread), on="user_id", how="left")
    buckets = features.ids.user.buckets
    if buckets is None:
        indices = vocabulary.lookup(vocab, "user_id", "user_id", "user_index", facts["sizes"]["user_id"])
        rows = rows.join(indices, on="user_id", how="left")
    else:
        rows = rows.withColumn("user_index", vocabulary.bucket_of("user_id", F.col("user_id"), buckets))
    if side.features and snapshot is not None:
        encoded = encode.encode(side, snapshot, vocab, facts["numeric"], ["user_id"], facts["sizes"])
        rows = rows.join(encoded, on="user_id", how="left")
    for column, blank in encode.without_snapshot(side, facts["numeric"]).items():
        rows = rows.withColumn(column, F.coalesce(column, blank) if column in rows.columns else blank)
    length = history.length if history else 1
    # leave_one_out ignores order: the history is all known items, each once, as in the training rows.
    past = "known_items" if history and history.order == "leave_one_out" else "history_items"
    ages, actions = [], []
    if history and history.actions:
        actions = [encode.pad_left(F.col(HISTORY_ACTIONS), length).alias(HISTORY_ACTIONS)]
    if history and history.ages:
        midnight = F.timestamp_micros(F.unix_micros(F.lit(night.end).cast("timestamp")) + 1)  # the end is inclusive
        ages = [ages_at(midnight, F.col("history_times"), length).alias(HISTORY_AGES)]
    return rows.select(
        "user_id",
        F.coalesce("user_index", F.lit(DEFAULT)).alias("user_index"),
        *side.encoded_columns(),
        *[blank.alias(column) for column, blank in encode.without_snapshot(request, facts["numeric"]).items()],
        encode.pad_left(F.col(past), length).alias("history"),
        *ages,
        *actions,
        F.coalesce("known_items", F.array().cast("array<int>")).alias("known_items"),
    )


def known_users(night: Night) -> DataFrame:
    """user_id of all users in the state of ds or in the newest users snapshot, without repeats."""
    users = night.warehouse.read("user_histories", night.ds).select("user_id")
    snapshot_day = night.inputs.snapshot_at("users", night.ds, strictly_before=False)
    if snapshot_day is None:
        return users
    return users.unionByName(night.inputs.snapshot("users", snapshot_day).select("user_id")).distinct()


def with_held_out_items(rows: DataFrame, night: Night) -> DataFrame:
    """Adds the items of `holdout` to known_items: training and state lack them, but the users have them.

    Reads `holdout` of ds and of the nights before it, back to the bootstrap.
    """
    holdouts, ds = [], night.ds
    lineage = night.warehouse.require("user_histories", ds, f"run build_positives for ds={ds} first").lineage
    while (state := night.warehouse.manifest("user_histories", ds)) is not None and state.lineage == lineage:
        if night.warehouse.manifest("holdout", ds):
            holdouts.append(night.warehouse.read("holdout", ds).select("user_id", "item_index"))
        ds = shift(ds, -1)
    if not holdouts:
        return rows
    by_user = (
        reduce(DataFrame.unionByName, holdouts).groupBy("user_id").agg(F.collect_set("item_index").alias("_held_out"))
    )
    held_out_items = F.coalesce("_held_out", F.array().cast("array<int>"))
    rows = rows.join(by_user, on="user_id", how="left")
    return rows.withColumn("known_items", F.array_union("known_items", held_out_items)).drop("_held_out")


def next_positives(night: Night, config: Positives, days: list[str]) -> DataFrame:
    """Positives of later days: user_id, item_id, item_index (null if the vocabulary of ds lacks the item).

    As in training, an event with a reward of 0 is not a positive.
    """
    interactions = night.inputs.events("interactions", days)
    events = interactions.where(select.is_positive(config))
    vocab = night.warehouse.read("vocabularies", night.ds)
    items = vocabulary.lookup(vocab, "item_id", "item_id", "item_index")
    return events.select("user_id", "item_id").distinct().join(items, on="item_id", how="left")


def held_out(night: Night) -> DataFrame:
    """The last positive of each user, from `holdout`: user_id, item_id, item_index."""
    return night.warehouse.read("holdout", night.ds).select("user_id", "item_id", "item_index")


def targets(
    positives: DataFrame, night: Night, *, new_items_only: bool, max_users: int
) -> tuple[DataFrame, dict[str, float]]:
    """(targets per user: user_id, targets (array<int>), the shares of positives that are not targets).

    Only items that ds could recall are targets. The share of the others is reported, because it would lower the recall.
    With `new_items_only`, items that the user had are not targets either. `positives`: from next_positives or held_out.
    `max_users`: choose at most this many users, by hash.
    """
    live = night.warehouse.read("item_features", night.ds).select("item_index", F.lit(True).alias("live"))
    marked = positives.join(live, on="item_index", how="left").withColumn("live", F.coalesce("live", F.lit(False)))
    is_known = F.lit(False).alias("known")
    if new_items_only:
        known_items = night.warehouse.read("user_histories", night.ds).select(
            "user_id", F.explode("known_items").alias("item_index"), F.lit(True).alias("known")
        )
        marked = marked.join(known_items, on=["user_id", "item_index"], how="left")
        is_known = F.coalesce("known", F.lit(False)).alias("known")
    marked = marked.select("user_id", "item_index", "live", is_known)
    counted = marked.agg(
        F.count(F.lit(1)).alias("all"),
        F.count(F.when(~F.col("live"), 1)).alias("unreachable"),
        F.count(F.when(F.col("known"), 1)).alias("known"),
    ).first()
    assert counted is not None
    total = max(1, counted["all"])
    shares = {"share_unreachable": counted["unreachable"] / total, "share_known": counted["known"] / total}
    by_user = (
        marked.where("live and not known")
        .groupBy("user_id")
        .agg(F.array_sort(F.collect_set("item_index")).alias("targets"))
    )
    chosen = by_user.orderBy(hashed("evaluated", night.seed, F.col("user_id")), "user_id").limit(max_users)
    return chosen, shares


def known_items(night: Night, items_per_user: int, most_users: int, since: str | None) -> DataFrame:
    """The last items that users took: user_id, items (array<int>), for at most `most_users` users, chosen by hash.

    `since` (UTC): positives of ds at or after it do not count; None: all of `known_items` do.
    """
    state = night.warehouse.read("user_histories", night.ds).where(F.size("known_items") > 0)
    # One task chooses: it gets ids only, not the items of all users.
    order = [hashed("known pairs", night.seed, F.col("user_id")), F.col("user_id")]
    chosen = state.select("user_id").orderBy(*order).limit(most_users)
    last_items = F.slice(F.reverse("known_items"), 1, items_per_user).alias("items")
    users = state.select("user_id", last_items).join(chosen, on="user_id", how="left_semi")
    if since is None:
        return users
    late = night.warehouse.read("positives", night.ds).where(F.col("event_time") >= F.lit(since).cast("timestamp"))
    late = late.groupBy("user_id").agg(F.collect_set("item_index").alias("late"))
    left = F.array_except("items", F.coalesce("late", F.array().cast("array<int>")))
    return users.join(late, on="user_id", how="left").select("user_id", left.alias("items"))


def co_occurrence(night: Night, items_per_user: int, neighbours: int) -> DataFrame:
    """Item-item collaborative filtering on known items: item_index, neighbours (array<int>), similarities (array<float>).

    sim(i, j) = n_ij / sqrt(n_i n_j) over the latest known items of users (Linden, Smith and York, IEEE Internet Computing
    2003). At most `items_per_user` items of a user count, so the number of pairs grows with the number of users and not
    with the square of the heaviest user's items.
    """
    state = night.warehouse.read("user_histories", night.ds)
    pairs = state.select("user_id", F.explode(F.slice(F.reverse("known_items"), 1, items_per_user)).alias("item_index"))
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
    nearest = similar.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= neighbours)
    ordered = nearest.groupBy("item_index").agg(
        F.array_sort(F.collect_list(F.struct("rank", "neighbour", "similarity"))).alias("neighbours")
    )
    return ordered.select(
        "item_index",
        F.col("neighbours.neighbour").alias("neighbours"),
        F.col("neighbours.similarity").alias("similarities"),
    )

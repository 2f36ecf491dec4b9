"""Selects the interactions that become training rows, and computes their weight, age and split."""

from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.config import Positives
from pipelines.hashing import hashed, unit
from pipelines.histories.user_histories import USER, WITHIN, user_key
from pipelines.histories.user_stream import key_of
from pipelines.inputs.contracts import CONTEXT_STRUCT
from pipelines.joins import broadcast_small
from pipelines.positives.popularity import keep_probability

COUNTS, REPEATED, DEDUPLICATED, UNREWARDED = range(4)  # whether an interaction is a positive, and if not, why
# Why a positive does not train.
NOT_LIVE, KNOWN_ITEM, DOWNSAMPLED, OVER_CAP = DROPPED = ("item_not_live", "known_item", "downsampled", "over_cap")
LIGHTEST = 1e-30  # the smallest weight: a half-life must not round the weight of old rows to 0


def reward_events(interactions: DataFrame, config: Positives, *, with_action: bool = False) -> DataFrame:
    """Interactions whose action is in the config: ds, user_key, user_id, item_key, item_id, request_id, event_time, reward,
    row_key, `worth`, the configured reward of the action, and CONTEXT_STRUCT if the interactions have it.

    `with_action`: also the action. The row key is a hash of user, item, time, action and request: rows with the same key are
    copies of one event.
    """
    return interactions.where(F.col("action").isin(*config.actions)).select(
        "ds",
        user_key(),
        "user_id",
        key_of("item_id").alias("item_key"),
        "item_id",
        "request_id",
        "event_time",
        _reward(config).alias("reward"),
        # xxhash64 skips nulls, so replace a missing request by a value.
        F.xxhash64("user_id", "item_id", "event_time", "action", F.coalesce("request_id", F.lit(""))).alias("row_key"),
        _worth(config).alias("worth"),
        *(["action"] if with_action else []),
        *[name for name in interactions.columns if name == CONTEXT_STRUCT],
    )


def is_positive(config: Positives) -> Column:
    """Whether an interaction is a positive or a copy of one. Never null. Known items of a user are those of positives."""
    return F.col("action").isin(*config.actions) & (_reward(config) > 0)


def _worth(config: Positives) -> Column:
    return F.create_map(*[F.lit(part) for pair in config.actions.items() for part in pair])[F.col("action")]


def _reward(config: Positives) -> Column:
    return (_worth(config) * F.coalesce("reward", F.lit(1.0))).cast("float")


def select_events(events: DataFrame, config: Positives) -> DataFrame:
    """Adds `reason` to rewarded events: COUNTS for positives, else why the event is not a positive.

    - REPEATED: another row has the same row key.
    - UNREWARDED: the reward is 0.
    - DEDUPLICATED: `deduplicate` is on, and another row of the same user, item and day counts.

    With `deduplicate`, the row that counts keeps its own time. It is the last row of the day (`day_reward: last`, `sum`)
    or the row with the highest reward (`max`; of equal ones the last). At the same instant the action with the highest
    configured reward comes last. With `sum` the row that counts gets the sum of all rewards of the day.

    All rows of a user are in one partition, sorted by (event_time, row_key), so that Spark need not shuffle them again for
    work by user. A join may still shuffle them, so no code relies on the order.
    """
    worthless = F.col("reward") == 0
    # Compare hashes first: nearly all comparisons end there. The ids separate rows whose hashes collide.
    latest = Window.partitionBy("user_key", "item_key", "user_id", "item_id", "ds").orderBy(
        worthless, F.desc("event_time"), F.desc("worth"), "row_key", F.desc("reward")
    )
    whole = latest.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)  # the same sort serves both
    later = F.lag("row_key").over(latest)
    marked = events.repartition(*USER).withColumns(
        {"later": later, "repeated": F.coalesce(later == F.col("row_key"), F.lit(False))}
    )
    reason = F.when(worthless, UNREWARDED).when(F.col("repeated"), REPEATED)
    if config.deduplicate:
        counts = F.col("later").isNull()
        if config.day_reward == "max":
            order = F.struct("reward", "event_time", "worth", F.bitwise_not("row_key"))
            marked = marked.withColumn("best", F.max(order).over(whole))
            counts = order == F.col("best")
        elif config.day_reward == "sum":
            once = F.when(F.col("repeated"), 0.0).otherwise(F.col("reward").cast("double"))
            marked = marked.withColumn("total", F.sum(once).over(whole).cast("float"))
            marked = marked.withColumn("reward", F.when(counts, F.col("total")).otherwise(F.col("reward")))
        reason = reason.when(~counts, DEDUPLICATED)
    marked = marked.withColumn("reason", reason.otherwise(COUNTS))
    marked = marked.drop("worth", "item_key", "later", "repeated", "best", "total")
    return marked.sortWithinPartitions(*USER, *WITHIN)


def count_selected(events: DataFrame) -> dict[str, int]:
    """Number of rewarded events, and how many of them are not positives, by reason."""
    row = events.agg(
        F.count(F.lit(1)).alias("interactions"),
        F.count(F.when(F.col("reason") == REPEATED, 1)).alias("dropped_repeated"),
        F.count(F.when(F.col("reason") == DEDUPLICATED, 1)).alias("dropped_deduplicated"),
        F.count(F.when(F.col("reason") == UNREWARDED, 1)).alias("dropped_unrewarded"),
    ).first()
    assert row is not None
    return {name: int(value) for name, value in row.asDict().items()}


def split_last(events: DataFrame) -> tuple[DataFrame, DataFrame]:
    """(training events, held-out events): the last event of each user that has at least two is held out."""
    order = Window.partitionBy(*USER).orderBy(F.desc("event_time"), F.desc("row_key"))
    ranked = events.withColumn("rank", F.row_number().over(order)).withColumn(
        "last", (F.col("rank") == 1) & (F.count(F.lit(1)).over(Window.partitionBy(*USER)) > 1)
    )
    return ranked.where(~F.col("last")).drop("rank", "last"), ranked.where("last").drop("rank", "last")


def item_chances(items: DataFrame, counts: DataFrame, live_days: DataFrame, config: Positives) -> DataFrame:
    """Per item and day, what decides whether its positives train: item_id, ds, item_index, live, keep_probability (float).

    `items`: item_id, item_index of the vocabulary. `counts`: item_index, ds, window_count, total, over the window that
    ends with ds. The probability only weights the sampling, so the row's own day may count, but no later one.
    `live_days`: item_id, ds, live for each day on which the item has a positive.
    """
    chance = keep_probability(F.col("window_count"), F.col("total"), config.downsample).cast("float")
    return (
        items.join(counts, on="item_index", how="inner")
        .join(live_days.select("item_id", "ds", "live"), on=["item_id", "ds"], how="inner")
        .select("item_id", "ds", "item_index", "live", chance.alias("keep_probability"))
    )


def flag(events: DataFrame, chances: DataFrame, config: Positives, seed: int, state: DataFrame | None) -> DataFrame:
    """Adds item_index, live, keep_probability, `known` (_mark_known; false with config.repeats), and survives: the result of
    down-sampling, decided by the hash of the row. `state`: user_histories of the night before; None in a bootstrap.
    """
    survives = unit("keep", seed, F.col("row_key")) < F.col("keep_probability")
    flagged = events.join(chances, on=["item_id", "ds"], how="inner").withColumn("survives", survives)
    return flagged.withColumn("known", F.lit(False)) if config.repeats else _mark_known(flagged, state)


def _mark_known(flagged: DataFrame, state: DataFrame | None) -> DataFrame:
    """Adds `known`: whether the user had the item before, in an earlier event of the night or in known_items of the state."""
    earlier = F.row_number().over(Window.partitionBy(*USER, "item_id").orderBy(*WITHIN)) > 1
    if state is None:
        return flagged.withColumn("known", earlier)
    had = flagged.join(state.select("user_id", "known_items"), on="user_id", how="left")
    before = F.coalesce(F.array_contains("known_items", F.col("item_index")), F.lit(False))
    return had.withColumn("known", earlier | before).drop("known_items")


def _may_train() -> Column:
    """Whether a flagged event trains if its user and day are below the cap."""
    return F.col("live") & ~F.col("known") & F.col("survives")


def heavy_days(flagged: DataFrame, config: Positives) -> tuple[dict[str, Any], int]:
    """(the user with the most positives as user_id and user_rows, the number of (user, day) pairs over the cap)."""
    remaining = F.count(F.when(_may_train(), 1))
    over = F.lit(0) if config.per_user_cap is None else F.when(remaining > config.per_user_cap, 1).otherwise(0)
    days = flagged.groupBy(*USER, "ds").agg(F.count(F.lit(1)).alias("rows"), over.alias("over"))
    users = days.groupBy(*USER).agg(F.sum("rows").alias("rows"), F.sum("over").alias("over"))
    row = users.agg(F.max(F.struct("rows", "user_id")).alias("heaviest"), F.sum("over").alias("over")).first()
    assert row is not None
    return {"user_id": row["heaviest"]["user_id"], "user_rows": int(row["heaviest"]["rows"])}, int(row["over"])


def heaviest_item(item_days: DataFrame) -> dict[str, Any]:
    """The item with the most positives of the night: item_id and item_rows. `item_days`: from popularity.count_days."""
    by_item = item_days.groupBy("item_id").agg(F.sum("count").alias("rows"))
    row = by_item.agg(F.max(F.struct("rows", "item_id")).alias("heaviest")).first()
    assert row is not None
    return {"item_id": row["heaviest"]["item_id"], "item_rows": int(row["heaviest"]["rows"])}


def skew(positives: int, heaviest: dict[str, Any]) -> dict[str, Any]:
    """The rows and shares of the heaviest user and the heaviest item among the positives, before the cap."""
    return {
        "heaviest_user": heaviest["user_id"],
        "heaviest_user_rows": heaviest["user_rows"],
        "heaviest_user_share": heaviest["user_rows"] / positives,
        "heaviest_item": heaviest["item_id"],
        "heaviest_item_rows": heaviest["item_rows"],
        "heaviest_item_share": heaviest["item_rows"] / positives,
    }


def choose(flagged: DataFrame, config: Positives, seed: int, over_cap: int) -> DataFrame:
    """Adds `dropped` to flagged events: why the positive does not train (one of DROPPED); null if it trains.

    `over_cap`: number of (user, day) pairs over the cap (heavy_days). Their rows with the lowest hashes are kept.
    """
    reason = F.when(~F.col("live"), NOT_LIVE).when(F.col("known"), KNOWN_ITEM).when(~F.col("survives"), DOWNSAMPLED)
    if over_cap:
        # The cap counts rows that survive down-sampling, so that popular items do not use up the cap of a user.
        order = F.struct(hashed("cap", seed, F.col("row_key")).alias("hash"), "row_key")
        days = flagged.where(_may_train()).groupBy(*USER, "ds")
        last = days.agg(F.sort_array(F.collect_list(order)).alias("order"))
        last = last.where(F.size("order") > config.per_user_cap)
        last = last.select(*USER, "ds", F.col("order")[F.lit(config.per_user_cap) - 1].alias("last"))
        flagged = flagged.join(broadcast_small(last, over_cap), on=[*USER, "ds"], how="left")
        reason = reason.when(order > F.col("last"), OVER_CAP)
    return flagged.withColumn("dropped", reason).drop("live", "known", "survives", "last")


def carry(held_back: DataFrame, described: DataFrame, config: Positives, ds: str) -> DataFrame:
    """The positives that an earlier night held back from training (split valid), as training rows of ds.

    Their age and weight are updated to the end of ds. The decisions of the earlier night stand (liveness, down-sampling,
    cap): an item that was live on their day trains, as in a bootstrap, even if it has left the catalogue since.

    `described`: item_id, without repeats, of the items that some snapshot of this night describes. Rows of other items are
    dropped as NOT_LIVE.
    """
    described = described.select("item_id", F.lit(True).alias("described"))
    rows = held_back.join(described, on="item_id", how="left")
    days = F.lit(0.0) if config.half_life_days is None else _age(ds) - F.col("example_age")
    decay = F.pow(F.lit(0.5), days / F.lit(config.half_life_days or 1.0))
    return rows.withColumns(
        {
            "example_age": _age(ds).cast("float"),
            "weight": F.greatest(F.col("weight") * decay, F.lit(LIGHTEST)).cast("float"),
            "dropped": F.when(F.col("described").isNull(), NOT_LIVE),
            "split": F.when(F.col("described").isNotNull(), "train"),
            "carried": F.lit(True),
        }
    ).drop("described")


def _age(ds: str) -> Column:
    """Days from the event to the end of ds."""
    end = F.unix_timestamp(F.lit(f"{ds} 00:00:00")) + F.lit(86_400)
    return (end - F.unix_timestamp("event_time")) / F.lit(86_400.0)


def finish(rows: DataFrame, config: Positives, ds: str) -> DataFrame:
    """Adds example_age (days from the event to the end of ds), weight (reward x recency) and split (null if dropped)."""
    end = F.unix_timestamp(F.lit(f"{ds} 00:00:00")) + F.lit(86_400)
    seconds = end - F.unix_timestamp("event_time")
    age = seconds / F.lit(86_400.0)
    recency = F.lit(1.0) if config.half_life_days is None else F.pow(F.lit(0.5), age / F.lit(config.half_life_days))
    valid = seconds <= F.lit(int(config.valid_hours * 3600))
    return (
        rows.withColumn("example_age", age.cast("float"))
        .withColumn("weight", F.greatest(F.col("reward") * recency, F.lit(LIGHTEST)).cast("float"))
        .withColumn("split", F.when(valid & F.lit(config.valid_hours > 0), "valid").otherwise("train"))
        .withColumn("split", F.when(F.col("dropped").isNull(), F.col("split")))
    )

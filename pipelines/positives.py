"""Which interactions become training rows, with everything as it was at the time of the event."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from pipelines.config import Positives
from pipelines.hashing import hashed, unit
from pipelines.popularity import keep_probability


def select_events(interactions: DataFrame, config: Positives) -> DataFrame:
    """Interactions whose action counts, with `reward` and `row_key`; one a user, item and day where configured.

    Returns ds, user_id, item_id, request_id, event_time, reward, row_key.
    """
    actions = F.create_map(*[F.lit(part) for pair in config.actions.items() for part in pair])
    events = interactions.where(F.col("action").isin(*config.actions)).select(
        "ds",
        "user_id",
        "item_id",
        "request_id",
        "event_time",
        (actions[F.col("action")] * F.coalesce("reward", F.lit(1.0))).cast("float").alias("reward"),
        F.xxhash64("user_id", "item_id", "event_time", "action").alias("row_key"),
    )
    if not config.deduplicate:
        return events
    latest = Window.partitionBy("user_id", "item_id", "ds").orderBy(
        F.desc("event_time"), F.desc("reward"), "row_key", "request_id"
    )
    return events.withColumn("rank", F.row_number().over(latest)).where("rank = 1").drop("rank")


def split_last(events: DataFrame) -> tuple[DataFrame, DataFrame]:
    """(the rest, each user's last event), for users with at least two: their last one is kept out of everything."""
    order = Window.partitionBy("user_id").orderBy(F.desc("event_time"), F.desc("row_key"))
    ranked = events.withColumn("rank", F.row_number().over(order)).withColumn(
        "last", (F.col("rank") == 1) & (F.count(F.lit(1)).over(Window.partitionBy("user_id")) > 1)
    )
    return ranked.where(~F.col("last")).drop("rank", "last"), ranked.where("last").drop("rank", "last")


def flag(events: DataFrame, counts: DataFrame, live: DataFrame, config: Positives, seed: int) -> DataFrame:
    """Events with the reasons to keep or drop them as columns, so that they can be counted before they are filtered.

    `counts`: item_index, window_count. `live`: item_index of items that can be recalled. Adds `live`, `within_cap`,
    `keep_probability`, `survives` and `kept` (all of them together).
    """
    total = counts.agg(F.sum("window_count").alias("total"))
    events = (
        events.join(counts.select("item_index", "window_count"), on="item_index", how="left")
        .crossJoin(F.broadcast(total))
        .join(live.select("item_index", F.lit(True).alias("live")), on="item_index", how="left")
        .withColumn("live", F.coalesce("live", F.lit(False)))
        .withColumn(
            "keep_probability",
            keep_probability(F.col("window_count"), F.col("total"), config.downsample).cast("float"),
        )
        .withColumn("survives", unit("keep", seed, F.col("row_key")) < F.col("keep_probability"))
    )
    within = F.lit(True)
    if config.per_user_cap is not None:
        # The cap counts what is left after down-sampling: popular items must not use up a user's places.
        chosen = Window.partitionBy("user_id", "ds").orderBy(
            F.desc(F.col("live") & F.col("survives")), hashed("cap", seed, F.col("row_key")), "row_key"
        )
        within = F.row_number().over(chosen) <= config.per_user_cap
    events = events.withColumn("within_cap", within)
    return events.withColumn("kept", F.col("live") & F.col("survives") & F.col("within_cap")).drop(
        "window_count", "total"
    )


def count_reasons(flagged: DataFrame) -> dict[str, int]:
    """How many positives there were and why the others went, for the manifest: no row vanishes uncounted."""

    def number(condition: F.Column) -> F.Column:
        return F.count(F.when(condition, 1))

    live, survives = F.col("live"), F.col("survives")
    row = flagged.agg(
        F.count(F.lit(1)).alias("positives"),
        number(~live).alias("dropped_item_not_live"),
        number(live & ~survives).alias("dropped_downsampled"),
        number(live & survives & ~F.col("within_cap")).alias("dropped_over_cap"),
        number(F.col("kept")).alias("kept"),
    ).first()
    assert row is not None
    return {name: int(value) for name, value in row.asDict().items()}


def finish(rows: DataFrame, config: Positives, ds: str) -> DataFrame:
    """Adds example_age (days from the event to the end of ds), weight (reward x recency) and split."""
    end = F.unix_timestamp(F.lit(f"{ds} 00:00:00")) + F.lit(86_400)
    seconds = end - F.unix_timestamp("event_time")
    age = seconds / F.lit(86_400.0)
    recency = F.lit(1.0) if config.half_life_days is None else F.pow(F.lit(0.5), age / F.lit(config.half_life_days))
    valid = seconds <= F.lit(int(config.valid_hours * 3600))
    return (
        rows.withColumn("example_age", age.cast("float"))
        .withColumn("weight", (F.col("reward") * recency).cast("float"))
        .withColumn("split", F.when(valid & F.lit(config.valid_hours > 0), "valid").otherwise("train"))
    )

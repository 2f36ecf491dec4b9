"""The step build_positives: yesterday's state and today's log in; vocabularies, item_features, user_histories, positives
and item_stats out."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines import encode, histories, popularity, positives, vocabulary
from pipelines.errors import InputError
from pipelines.night import POSITIVE_TABLES, Night, SampleConfig, is_done, log
from pipelines.storage import Manifest, Recipe


@dataclass(frozen=True)
class Logs:
    """What the step reads of the users' tables."""

    days: list[str]  # days of interactions
    items: str  # day of the items snapshot
    users: dict[str, str | None]  # day of events -> day of the newest users snapshot strictly before it

    @property
    def user_snapshots(self) -> list[str]:
        """The users snapshots needed, oldest first."""
        return sorted({day for day in self.users.values() if day})


def build_positives(
    night: Night, config: SampleConfig, config_hash: str, *, keep_last_out: bool = False, force: bool = False
) -> tuple[Manifest, bool]:
    """Write the tables of this step. Returns the manifest of `positives` and whether anything was done.

    `keep_last_out`: each user's last positive goes to `holdout` and nowhere else (for data where users come once).
    Raises InputError where an input breaks its contract or there is nothing to roll forward.
    """
    before = night.state()
    logs = _find_logs(night)
    fingerprints = {
        "interactions": night.inputs.fingerprint("interactions", logs.days),
        "items": night.inputs.fingerprint("items", [logs.items]),
        "users": night.inputs.fingerprint("users", logs.user_snapshots),
    }
    fingerprints |= {f"{table}@{night.yesterday}": manifest.fingerprint for table, manifest in before.items()}
    recipe = Recipe(config_hash, fingerprints)
    tables = (*POSITIVE_TABLES, "holdout") if keep_last_out else POSITIVE_TABLES
    if is_done(night, tables, recipe, force):
        return night.warehouse.require("positives", night.ds, ""), False

    night.warehouse.retract(tables, night.ds)
    events = positives.select_events(night.inputs.events("interactions", logs.days), config.positives).persist()
    if events.isEmpty():
        raise InputError(
            f"table interactions, column action: no row of ds={night.ds} has an action among "
            f"{sorted(config.positives.actions)}. Name the actions that count under positives.actions"
        )
    known = before["vocabularies"].facts["numeric"] if before else {}
    words = _write_meanings(night, config, recipe, events, logs, known)
    vocab = night.warehouse.read("vocabularies", night.ds).persist()
    indexed = _index(events, vocab).persist()
    if keep_last_out:
        indexed, held = positives.split_last(indexed)
        columns = ["user_id", "user_index", "item_id", "item_index", "event_time"]
        night.warehouse.write(held.select(*columns), "holdout", night.ds, recipe)
        indexed.persist()
    manifest = _write_rows(night, config, recipe, indexed, vocab, words, logs)
    for frame in (events, vocab, indexed):
        frame.unpersist()
    return manifest, True


def _find_logs(night: Night) -> Logs:
    days = night.log_days()
    item_day = night.inputs.snapshot_at("items", night.ds, strictly_before=False)
    if item_day is None:
        raise InputError(
            f"table items ({night.inputs.uri('items')}) has no snapshot at or before ds={night.ds}: write one as "
            "items/ds=YYYY-MM-DD/, or point inputs.items.path at it"
        )
    users = {day: night.inputs.snapshot_at("users", day, strictly_before=True) for day in days}
    return Logs(days, item_day, users)


def _index(events: DataFrame, vocab: DataFrame) -> DataFrame:
    """Events with user_index and item_index."""
    users = vocabulary.lookup(vocab, "user_id", "user_id", "user_index")
    items = vocabulary.lookup(vocab, "item_id", "item_id", "item_index")
    return events.join(users, on="user_id", how="inner").join(items, on="item_id", how="inner")


def _write_meanings(
    night: Night, config: SampleConfig, recipe: Recipe, events: DataFrame, logs: Logs, known: encode.Statistics
) -> dict[str, Any]:
    """vocabularies and item_features. Returns the facts: sizes, numeric statistics, feature schema."""
    user_side, item_side = encode.sides(config.features)
    items = night.inputs.snapshot("items", logs.items)
    end_of_day = F.lit(f"{night.ds} 23:59:59.999999").cast("timestamp")
    items = items.where(F.col("publish_time").isNull() | (F.col("publish_time") <= end_of_day)).persist()
    encode.check_columns(item_side, items)
    statistics = encode.statistics_of(item_side, items, known)
    values = [
        events.select(F.lit("user_id").alias("feature"), F.col("user_id").alias("value")),
        events.select(F.lit("item_id").alias("feature"), F.col("item_id").alias("value")),
        items.select(F.lit("item_id").alias("feature"), F.col("item_id").alias("value")),
        encode.values_of(item_side, items),
    ]
    if user_side.features and not logs.user_snapshots:
        raise InputError(
            f"table users ({night.inputs.uri('users')}) has no snapshot before the events of ds={night.ds}: features are "
            "taken from the newest snapshot strictly before the day of an event. Write users/ds= for an earlier day"
        )
    for day in logs.user_snapshots if user_side.features else []:
        snapshot = night.inputs.snapshot("users", day)
        encode.check_columns(user_side, snapshot)
        statistics |= encode.statistics_of(user_side, snapshot, known | statistics)
        values.append(encode.values_of(user_side, snapshot))
    names = ["user_id", "item_id"]
    names += [f"{side.name}.{f.name}" for side in (user_side, item_side) for f in side.features if f.kind != "numeric"]

    def describe(staged: DataFrame, _: str) -> dict[str, Any]:
        sizes = vocabulary.sizes_of(staged, names)
        schema = encode.feature_schema(config.features, sizes, statistics)
        return {"sizes": sizes, "numeric": statistics, "schema": schema}

    previous = night.warehouse.read("vocabularies", night.yesterday) if night.yesterday else None
    grown = vocabulary.grow(previous, reduce(DataFrame.unionByName, [part for part in values if part is not None]))
    facts = night.warehouse.write(grown, "vocabularies", night.ds, recipe, facts=describe).facts

    vocab = night.warehouse.read("vocabularies", night.ds)
    encoded = encode.encode(item_side, items, vocab, statistics, ["item_id", "publish_time"])
    rows = encoded.join(vocabulary.lookup(vocab, "item_id", "item_id", "item_index"), on="item_id", how="inner").select(
        "item_index",
        F.col("item_id").cast(night.inputs.id_type("items", logs.items)).alias("item_id"),
        "publish_time",
        *item_side.encoded_columns(),
    )
    night.warehouse.write(rows.sort("item_index"), "item_features", night.ds, recipe, facts={"schema": facts["schema"]})
    items.unpersist()
    return facts


def _write_rows(
    night: Night,
    config: SampleConfig,
    recipe: Recipe,
    indexed: DataFrame,
    vocab: DataFrame,
    words: dict[str, Any],
    logs: Logs,
) -> Manifest:
    """user_histories, positives and item_stats."""
    read = night.warehouse.read
    state = read("user_histories", night.yesterday) if night.yesterday else None
    stats = read("item_stats", night.yesterday) if night.yesterday else None
    live = read("item_features", night.ds).select("item_index")
    length = config.features.history.length if config.features.history else 1

    rolled = histories.roll_histories(indexed, state, length, config.positives.known_items)
    night.warehouse.write(rolled, "user_histories", night.ds, recipe)

    counts = popularity.roll_counts(indexed, stats, night.ds, config.positives.window_days).persist()
    flagged = positives.flag(indexed, counts, live, config.positives, night.seed).persist()
    reasons = positives.count_reasons(flagged)
    log.info("positives %s: %s", night.ds, ", ".join(f"{name} {value:,}" for name, value in reasons.items()))
    rows = histories.attach_histories(flagged.drop("live", "survives", "within_cap"), state, length)
    rows = _with_user_features(rows, night, config, vocab, words["numeric"], logs)
    rows = positives.finish(rows, config.positives, night.ds)
    columns = ["row_key", "user_id", "item_id", "request_id", "event_time", "user_index", "item_index"]
    columns += encode.sides(config.features)[0].encoded_columns()
    columns += ["history", "example_age", "weight", "keep_probability", "split"]
    facts = {"counts": reasons, "schema": words["schema"], "bootstrap_days": night.bootstrap_days}
    manifest = night.warehouse.write(rows.select(*columns), "positives", night.ds, recipe, facts=facts)

    trained = read("positives", night.ds).where("split = 'train'")
    ids = vocabulary.lookup(vocab, "item_id", "item_id", "item_index")
    item_stats = popularity.describe_items(
        ids, counts, trained, live, config.positives.downsample, config.negatives.popularity_exponent
    )
    night.warehouse.write(item_stats, "item_stats", night.ds, recipe)
    for frame in (counts, flagged):
        frame.unpersist()
    return manifest


def _with_user_features(
    rows: DataFrame, night: Night, config: SampleConfig, vocab: DataFrame, statistics: encode.Statistics, logs: Logs
) -> DataFrame:
    """Each row with the user's features from the newest snapshot before the day of its event."""
    side = encode.sides(config.features)[0]
    if not side.features:
        return rows
    encoded = [
        encode.encode(side, night.inputs.snapshot("users", day), vocab, statistics, ["user_id"]).withColumn(
            "snapshot", F.lit(day)
        )
        for day in logs.user_snapshots
    ]
    pairs = [(day, snapshot) for day, snapshot in logs.users.items()]
    snapshot_of = night.warehouse.spark.createDataFrame(pairs, "ds string, snapshot string")
    rows = rows.join(F.broadcast(snapshot_of), on="ds", how="left")
    rows = rows.join(reduce(DataFrame.unionByName, encoded), on=["user_id", "snapshot"], how="left")
    for column, blank in encode.without_snapshot(side, statistics).items():
        rows = rows.withColumn(column, F.coalesce(column, blank))
    return rows

"""The step build_positives: yesterday's state and today's log in; vocabularies, item_features, item_versions, user_histories,
positives and item_stats out."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import MultiCategoricalFeatureConfig
from pipelines.contract.indices import DEFAULT, FIRST
from pipelines.features import encode, item_versions, vocabulary
from pipelines.histories import user_histories
from pipelines.joins import broadcast_few, broadcast_small
from pipelines.night import POSITIVE_TABLES, Night, SampleConfig, is_done, log
from pipelines.positives import checks, popularity, select
from pipelines.positives.read import Inputs, Logs, find_logs, read_inputs, refuse_new_meanings, refuse_other_items
from pipelines.storage.lineage import lineage_of_night
from pipelines.storage.manifest import Manifest, Recipe, digest


@dataclass(frozen=True)
class Words:
    """The vocabularies of the night, and the facts of their manifest."""

    table: DataFrame
    sizes: dict[str, int]
    numeric: encode.Statistics
    schema: dict[str, Any]

    def lookup(self, feature: str, value: str, index: str) -> DataFrame:
        """One feature's values and indices, to join."""
        return vocabulary.lookup(self.table, feature, value, index, self.sizes.get(feature))


def build_positives(
    night: Night, config: SampleConfig, config_hash: str, *, keep_last_out: bool = False, force: bool = False
) -> tuple[Manifest, bool]:
    """Write the tables of this step. Returns the manifest of `positives` and whether anything was done.

    `keep_last_out`: each user's last positive goes to `holdout` and nowhere else (for data where users come once).
    Raises InputError where an input breaks its contract or there is nothing to roll forward; the tables are then as they
    were.
    """
    before = night.state()
    logs = find_logs(night, config)
    fingerprints = {
        "interactions": night.inputs.fingerprint("interactions", logs.days),
        "items": night.inputs.fingerprint("items", logs.items.snapshots),
        "users": night.inputs.fingerprint("users", logs.user_snapshots),
    }
    if night.warehouse.update:
        fingerprints["update"] = digest(asdict(night.warehouse.update))
    held_back = _held_back(night)
    if held_back:
        before = before | {"positives": held_back}
    fingerprints |= {f"{table}@{night.yesterday}": manifest.fingerprint for table, manifest in before.items()}
    recipe = Recipe(config_hash, fingerprints)
    recipe = replace(recipe, lineage=lineage_of_night(night.warehouse, night.ds, before.values(), recipe))
    tables = (*POSITIVE_TABLES, "holdout") if keep_last_out else POSITIVE_TABLES
    if is_done(night, tables, recipe, force):
        return night.warehouse.require("positives", night.ds, ""), False

    known = before["vocabularies"].facts if before else {}
    refuse_new_meanings(night, config.features, known)
    inputs = read_inputs(night, config, logs, keep_last_out)
    try:
        with _kept(popularity.count_days(inputs.events)) as item_days:
            refuse_other_items(night, inputs, item_days, logs)
            # Only now: a night that is refused leaves the tables as they were.
            night.inputs.write_quarantine(night.ds, recipe, ("interactions", "items", "users"))
            night.warehouse.retract(tables, night.ds)
            words = _write_meanings(night, config, recipe, inputs, logs, known, item_days)
            if inputs.held is not None:
                _write_holdout(night, config, recipe, inputs.held, words)
            manifest = _write_rows(night, config, recipe, inputs, words, logs, item_days, held_back)
            _write_items(night, config, recipe, inputs, words, logs)
            return manifest, True
    finally:
        for frame in inputs.persisted:
            frame.unpersist()


@contextmanager
def _kept(frame: DataFrame) -> Iterator[DataFrame]:
    """A frame that stays in memory (or on disk) while it is needed."""
    frame.persist()
    try:
        yield frame
    finally:
        frame.unpersist()


# -- what indices mean ----------------------------------------------------------------------------------------------


def _write_meanings(
    night: Night,
    config: SampleConfig,
    recipe: Recipe,
    inputs: Inputs,
    logs: Logs,
    known: dict[str, Any],
    item_days: DataFrame,
) -> Words:
    """vocabularies."""
    user_side, item_side = encode.sides(config.features)
    served = item_versions.current(inputs.items, logs.items.newest)
    statistics = encode.statistics_of(item_side, served, known.get("numeric", {}))
    for snapshot in inputs.users.values():
        statistics |= encode.statistics_of(user_side, snapshot, known.get("numeric", {}) | statistics)
    hashed = encode.hashed_sizes(config.features)
    names = ["user_id", "item_id"]
    names += [side.label(f) for side in (user_side, item_side) for f in side.features if f.kind != "numeric"]

    previous = night.warehouse.read("vocabularies", night.yesterday) if night.yesterday else None
    values = _values(config, inputs, logs, item_days)
    with _kept(vocabulary.unseen_values(previous, values, encode.min_counts(config.features))) as unseen:
        grown, grown_sizes = vocabulary.append(previous, unseen)
        sizes = dict.fromkeys(names, FIRST) | grown_sizes | hashed
        age = encode.example_age(night.bootstrap_days or config.positives.window_days, known)
        schema = encode.feature_schema(config.features, sizes, statistics, age)
        facts = {"sizes": sizes, "numeric": statistics, "schema": schema, "hashed": hashed}
        facts["request"] = _request(night, config, inputs, logs)
        night.warehouse.write(grown, "vocabularies", night.ds, recipe, facts=facts)

    words = Words(night.warehouse.read("vocabularies", night.ds), sizes, statistics, schema)
    return words


def _write_items(night: Night, config: SampleConfig, recipe: Recipe, inputs: Inputs, words: Words, logs: Logs) -> None:
    """item_features and item_versions: the items of the newest snapshot, and what rows of earlier ones see instead.

    An item has a row of the embedding table once a training row has had it, tonight or before: one that is only ever a
    negative would learn that nobody likes it.
    """
    side, newest = encode.sides(config.features)[1], logs.items.newest
    keys = ["item_id", "publish_time", "first", "last", "since"]
    encoded = encode.encode(side, inputs.items, words.table, words.numeric, keys, words.sizes, ("item_id", "first"))
    ids = words.lookup("item_id", "item_id", "item_index")
    rows = encoded.join(ids, on="item_id", how="inner")
    trained = night.warehouse.read("item_stats", night.ds).where("first_trained is not null").select("item_index")
    rows = rows.join(trained.withColumn("_trained", F.lit(True)), on="item_index", how="left")
    buckets = config.features.ids.item.buckets
    own = F.col("item_index") if buckets is None else vocabulary.bucket_of("item_id", F.col("item_id"), buckets)
    rows = rows.select(
        "item_index",
        F.col("item_id").cast(night.inputs.id_type("items", newest)).alias("item_id"),
        F.when(F.col("_trained"), own).otherwise(F.lit(DEFAULT)).alias(encode.ITEM_ROW),
        "publish_time",
        item_versions.available_from(rows, logs.items.snapshots[0]).alias("available_from"),
        "first",
        "last",
        *side.encoded_columns(),
    )
    several = len(logs.items.snapshots) > 1
    with _kept(rows) if several else nullcontext(rows):
        serving = item_versions.current(rows, newest).drop("first", "last").sort("item_index")
        facts = {"schema": words.schema, "snapshot": newest}
        night.warehouse.write(serving, "item_features", night.ds, recipe, facts=facts)
        versions = item_versions.earlier(rows, side.encoded_columns(), newest).drop("available_from", "last")
        versions = versions.withColumnRenamed("first", "snapshot").sort("item_index", "snapshot")
        night.warehouse.write(versions, "item_versions", night.ds, recipe, may_be_empty=True)


def _request(night: Night, config: SampleConfig, inputs: Inputs, logs: Logs) -> list[dict[str, Any]]:
    """What a request must say of a user, in the types of the newest snapshot."""
    newest = logs.user_snapshots[-1] if logs.user_snapshots else None
    types = dict(inputs.users[newest].dtypes) if newest in inputs.users else {}
    table, day = ("users", newest) if newest else ("interactions", logs.days[-1])
    types["user_id"] = night.inputs.id_type(table, day)
    return encode.request_fields(config.features, types, night.inputs.id_type("items", logs.items.newest))


def _values(config: SampleConfig, inputs: Inputs, logs: Logs, item_days: DataFrame) -> DataFrame:
    """Every value that may need an index: feature, value, count."""
    several = len(logs.items.snapshots) > 1
    user_side, item_side = encode.sides(config.features)

    def ids(name: str, counted: DataFrame) -> DataFrame:
        return counted.select(F.lit(name).alias("feature"), F.col(name).alias("value"), F.col("count").cast("long"))

    held = [] if inputs.held is None else [inputs.held]
    parts = [ids("item_id", item_days)]
    listed = inputs.items.select("item_id").distinct() if several else inputs.items
    parts += [ids("item_id", frame.withColumn("count", F.lit(1))) for frame in (*held, listed)]
    if config.features.ids.user.buckets is None:
        parts += [ids("user_id", frame.groupBy(*user_histories.USER).count()) for frame in (inputs.events, *held)]
    found = [encode.values_of(item_side, inputs.items, versions=several)]
    found += [encode.values_of(user_side, snapshot) for snapshot in inputs.users.values()]
    return reduce(DataFrame.unionByName, [*parts, *(part for part in found if part is not None)])


def _with_user_index(rows: DataFrame, config: SampleConfig, words: Words) -> DataFrame:
    """Rows (user_id, …) with user_index: by vocabulary (null where it lacks the user), or by hash."""
    buckets = config.features.ids.user.buckets
    if buckets is not None:
        return rows.withColumn("user_index", vocabulary.bucket_of("user_id", F.col("user_id"), buckets))
    found = words.lookup("user_id", "user_id", "user_index")
    if "user_key" in rows.columns:
        return rows.join(found.select("*", user_histories.user_key()), on=user_histories.USER, how="left")
    return rows.join(found, on="user_id", how="left")


# -- rows -----------------------------------------------------------------------------------------------------------


def _write_holdout(night: Night, config: SampleConfig, recipe: Recipe, held: DataFrame, words: Words) -> None:
    rows = held.join(words.lookup("item_id", "item_id", "item_index"), on="item_id", how="inner")
    user = F.coalesce("user_index", F.lit(DEFAULT)).alias("user_index")
    rows = _with_user_index(rows, config, words).select("user_id", user, "item_id", "item_index", "event_time")
    night.warehouse.write(rows, "holdout", night.ds, recipe)


def _write_rows(
    night: Night,
    config: SampleConfig,
    recipe: Recipe,
    inputs: Inputs,
    words: Words,
    logs: Logs,
    item_days: DataFrame,
    held_back: Manifest | None,
) -> Manifest:
    """user_histories, positives and item_stats."""
    read = night.warehouse.read
    ids = words.lookup("item_id", "item_id", "item_index")
    indexed = inputs.events.join(ids, on="item_id", how="inner")
    _write_state(night, config, recipe, indexed, words)

    stats = read("item_stats", night.yesterday) if night.yesterday else None
    listed = item_versions.current(inputs.items, logs.items.newest).join(ids, on="item_id", how="inner")
    available = item_versions.available_from(listed, logs.items.snapshots[0]).alias("available_from")
    live = listed.select("item_index", available)
    today = item_days.join(ids, on="item_id", how="inner")
    rolled = popularity.roll_counts(today, stats, night.ds, config.positives.window_days)
    alive = item_versions.live_days(item_days, inputs.items, logs.items)
    with _kept(rolled) as counts, _kept(alive) as live_days:
        if night.yesterday:
            total = counts.agg(F.sum("window_count").alias("total"))
            window = counts.select("item_index", F.lit(night.ds).alias("ds"), "window_count")
            of_days, rows = window.crossJoin(broadcast_few(total)), words.sizes["item_id"]
        else:
            of_days, rows = popularity.counts_of_days(today, config.positives.window_days), item_days.count()
        chances = broadcast_small(select.item_chances(ids, of_days, live_days, config.positives), rows)
        flagged = select.flag(inputs.events, chances, night.seed)
        heaviest, over_cap = select.heavy_days(flagged, config.positives)
        heaviest |= select.heaviest_item(item_days)
        chosen = select.choose(flagged, config.positives, night.seed, over_cap)
        chosen = chosen.withColumn("item_snapshot", logs.items.snapshot_of(F.col("ds")))
        facts = item_versions.facts_of(live_days, logs.items)
        manifest = _write_positives(night, config, recipe, chosen, inputs, words, logs, heaviest, facts, held_back)
        trained = read("positives", night.ds).where("split = 'train'")
        item_stats = popularity.describe_items(
            ids, counts, trained, live, config.positives.downsample, config.negatives.popularity_exponent, night.ds
        )
        night.warehouse.write(item_stats, "item_stats", night.ds, recipe)
    return manifest


def _write_state(night: Night, config: SampleConfig, recipe: Recipe, indexed: DataFrame, words: Words) -> None:
    """user_histories."""
    state = night.warehouse.read("user_histories", night.yesterday) if night.yesterday else None
    length, known = _history_length(config), config.positives.known_items
    today = _with_user_index(user_histories.last_of_users(indexed, length, known), config, words)
    rolled = user_histories.roll_histories(today, state, length, known)
    night.warehouse.write(rolled, "user_histories", night.ds, recipe)


def _write_positives(
    night: Night,
    config: SampleConfig,
    recipe: Recipe,
    chosen: DataFrame,
    inputs: Inputs,
    words: Words,
    logs: Logs,
    heaviest: dict[str, Any],
    facts: dict[str, Any],
    held_back: Manifest | None,
) -> Manifest:
    """positives, checked before they are moved into place."""
    rows = _with_user_features(chosen, night, config, inputs, words, logs)
    index = F.coalesce("user_index", F.lit(DEFAULT))
    rows = _with_user_index(rows, config, words).withColumn("user_index", index)
    columns = ["row_key", "user_id", "item_id", "request_id", "event_time", "user_index", "item_index"]
    columns += encode.sides(config.features)[0].encoded_columns()
    columns += ["item_snapshot", "example_age", "weight", "keep_probability", "dropped", "split", "carried"]
    finished = select.finish(rows, config.positives, night.ds).withColumn("carried", F.lit(False)).select(*columns)
    expected = inputs.counts
    if held_back:
        known = held_back.facts.get("counts", {}).get("held_back")
        expected = expected if known is None else expected | {"held_back_before": int(known)}
        finished = finished.unionByName(_carried(night, config, words, logs, finished, inputs.items, known))

    def check(staged: DataFrame, _: str) -> dict[str, Any]:
        counts = inputs.counts | checks.check_rows(staged, expected)
        log.info("positives %s: %s", night.ds, ", ".join(f"{name} {value:,}" for name, value in counts.items()))
        return {
            "counts": counts,
            "skew": select.skew(counts["positives"], heaviest),
            "schema": words.schema,
            "bootstrap_days": night.bootstrap_days,
            "input": night.inputs.facts(),
            **facts,
        }

    return night.warehouse.write(finished, "positives", night.ds, recipe, facts=check)


def _held_back(night: Night) -> Manifest | None:
    """The positives of the night before, if it held rows back from training that tonight trains on; else None.

    Updates within the day carry nothing: they learn what happened since the one before, in the order of time.
    """
    if night.yesterday is None or night.warehouse.update:
        return None
    manifest = night.warehouse.require(
        "positives",
        night.yesterday,
        f"its last hours are trained on tonight. Run build_positives for ds={night.yesterday}",
    )
    held_back = manifest.facts.get("counts", {}).get("held_back")
    if held_back is None:  # written by an earlier version
        held_back = night.warehouse.read("positives", night.yesterday).where("split = 'valid'").count()
    return manifest if held_back else None


def _carried(
    night: Night,
    config: SampleConfig,
    words: Words,
    logs: Logs,
    tonight: DataFrame,
    items: DataFrame,
    held_back: int | None,
) -> DataFrame:
    """The rows that the night before held back (their number, if known), with the columns of tonight.

    `items`: of item_versions.spans. It has the snapshots that the rows' own day sees, so also items that have left since.

    Features are as they were encoded then. A feature that is new or has another type since is that of a user without a
    snapshot; lists get tonight's length.
    """
    assert night.yesterday is not None
    rows = night.warehouse.read("positives", night.yesterday).where("split = 'valid'")
    if "item_snapshot" not in rows.columns:  # written by an earlier version
        rows = rows.withColumn("item_snapshot", logs.items.snapshot_of(F.lit(night.ds)))
    wanted = broadcast_small(rows.select("item_id").distinct(), held_back)
    described = items.select("item_id").join(wanted, on="item_id", how="left_semi").distinct()
    rows = select.carry(rows, described, config.positives, night.ds)
    blanks = encode.without_snapshot(encode.sides(config.features)[0], words.numeric)
    types, now = dict(rows.dtypes), dict(tonight.dtypes)
    for column, blank in blanks.items():
        if types.get(column) != now[column]:
            rows = rows.withColumn(column, blank)
        elif now[column].startswith("array"):
            length = next(
                f.max_values
                for f in config.features.user
                if isinstance(f, MultiCategoricalFeatureConfig)
                and column in (f"user_{f.name}", f"user_{f.name}_weights")
            )
            rows = rows.withColumn(column, encode.pad(F.col(column), length, now[column][6:-1]))
    return rows.select(*tonight.columns)


def _history_length(config: SampleConfig) -> int:
    return config.features.history.length if config.features.history else 1


def _with_user_features(
    rows: DataFrame, night: Night, config: SampleConfig, inputs: Inputs, words: Words, logs: Logs
) -> DataFrame:
    """Each row with the user's features from the newest snapshot before the day of its event."""
    side = encode.sides(config.features)[0]
    if not side.features:
        return rows
    keys, encoded = list(user_histories.USER), []
    for day, snapshot in inputs.users.items():
        part = encode.encode(side, snapshot, words.table, words.numeric, ["user_id"], words.sizes)
        encoded.append(part.select("*", user_histories.user_key(), F.lit(day).alias("snapshot")))
    if set(logs.users.values()) == set(logs.user_snapshots) and len(encoded) == 1:
        encoded = [encoded[0].drop("snapshot")]  # one snapshot for all: nothing to tell apart
    else:
        keys.append("snapshot")
        pairs = [(day, snapshot) for day, snapshot in logs.users.items()]
        snapshot_of = night.warehouse.spark.createDataFrame(pairs, "ds string, snapshot string")
        rows = rows.join(broadcast_few(snapshot_of), on="ds", how="left")
    rows = rows.join(reduce(DataFrame.unionByName, encoded), on=keys, how="left").drop("snapshot")
    blanks = encode.without_snapshot(side, words.numeric)
    return rows.withColumns({column: F.coalesce(column, blank) for column, blank in blanks.items()})

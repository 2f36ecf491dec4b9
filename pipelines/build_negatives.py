"""The step build_negatives: positives and ranking logs in, model-ready samples out."""

from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines import negatives, samplers, shuffle
from pipelines.checks import compare_with_before
from pipelines.draws import POPULARITY, UNIFORM
from pipelines.encode import sides
from pipelines.funnel import requests_of
from pipelines.night import Night, SampleConfig, is_done, log
from pipelines.samples_checks import check_samples
from pipelines.storage import Manifest, Recipe, days_back

# Users of a night up to this many are broadcast to cut the state and the logs down to them (8 bytes each).
BROADCAST_USERS = 2_000_000


def build_negatives(
    night: Night, config: SampleConfig, config_hash: str, *, keep_last_out: bool = False, force: bool = False
) -> tuple[Manifest, bool]:
    """Write `samples`. Returns its manifest and whether anything was done.

    `keep_last_out`: what build_positives put in `holdout` may be drawn like any item that the user never met.

    Without ranking logs there are no hard negatives: easy ones take their places, and the log and manifest say so.
    Raises InputError where positives are missing or a check on the written rows fails.
    """
    remedy = f"run build_positives for ds={night.ds} first"
    made = {t: night.warehouse.require(t, night.ds, remedy) for t in ("positives", "item_stats", "user_histories")}
    log_days = night.log_days()
    window = sorted({*night.window, *days_back(night.ds, config.negatives.exposed_days)})
    ranking_days = night.inputs.present("ranking_logs", window)
    fingerprints = {table: manifest.fingerprint for table, manifest in made.items()}
    fingerprints["interactions"] = night.inputs.fingerprint("interactions", log_days)
    fingerprints["ranking_logs"] = night.inputs.fingerprint("ranking_logs", ranking_days)
    if keep_last_out:
        fingerprints["holdout"] = night.warehouse.require("holdout", night.ds, remedy).fingerprint
    recipe = Recipe(config_hash, fingerprints)
    if is_done(night, ("samples",), recipe, force):
        return night.warehouse.require("samples", night.ds, ""), False

    positives = night.warehouse.read("positives", night.ds)
    stats = night.warehouse.read("item_stats", night.ds)
    width = int(stats.agg(F.max("item_index")).first()[0]) + 1
    broadcast = made["item_stats"].rows <= config.negatives.broadcast_items
    tables = samplers.alias_tables(stats) if broadcast else {}
    setting = negatives.Setting(config.negatives, night.seed, width, tables)

    # build_positives has checked these interactions; the ranking logs are checked here.
    seen = night.inputs.events("interactions", log_days, check=False)
    logs = _ranking_logs(night, ranking_days, config)
    told = {name: facts for name, facts in night.inputs.facts().items() if name == "ranking_logs"}
    compare_with_before(night, "samples", told, config.checks)
    night.inputs.write_quarantine(night.ds, recipe, ("ranking_logs",))

    requests, excluded = _contexts(night, positives, stats, seen, logs, keep_last_out)
    layout = shuffle.layout_of(positives, night.seed, config.samples.row_group_rows, config.samples.trainers)
    drawn = _draw(positives, excluded, requests, setting, layout, stats)
    table = _join(positives, drawn, layout, config)

    def describe(staged: DataFrame, folder: str) -> dict[str, Any]:
        checked = check_samples(staged, excluded, setting, config)
        log.info(
            "samples %s: negatives by kind: %s", night.ds, ", ".join(f"{k} {v:,}" for k, v in checked["kinds"].items())
        )
        return {
            "schema": made["positives"].facts["schema"],
            "negatives": config.negatives.total,
            "quotas": {kind: getattr(config.negatives, kind) for kind in ("uniform", "popularity", "coarse", "fine")},
            **checked,
            "input": told,
            "ranking_logs": bool(ranking_days),
            "bootstrap_days": night.bootstrap_days,
            "sampler": "broadcast" if broadcast else "shuffle",
            "splits": _files(night, staged, folder),
        }

    try:
        partitions = ("split", "group")
        manifest = night.warehouse.write(table, "samples", night.ds, recipe, partition_by=partitions, facts=describe)
    finally:
        for frame in (requests, excluded):
            if frame is not None:
                frame.unpersist()
    return manifest, True


def _contexts(
    night: Night, positives: DataFrame, stats: DataFrame, seen: DataFrame, logs: DataFrame | None, keep_last_out: bool
) -> tuple[DataFrame | None, DataFrame]:
    """Requests (None without ranking logs) and exclusions of the users that have positives tonight."""
    items = stats.select("item_id", "item_index")
    users = positives.select(F.xxhash64("user_id").alias("user_key")).distinct()
    if users.count() <= BROADCAST_USERS:
        users = F.broadcast(users)
    if keep_last_out:
        # Never drawing the held-out item against its own user would tell the model which one it is.
        held = night.warehouse.read("holdout", night.ds).select("user_id", "item_id")
        seen = seen.join(held, on=["user_id", "item_id"], how="left_anti")
        logs = logs.join(held, on=["user_id", "item_id"], how="left_anti") if logs is not None else None
    requests = None
    if logs is not None:
        requests = requests_of(logs, items).join(users, on="user_key", how="left_semi").persist()
    did = seen.select(F.xxhash64("user_id").alias("user_key"), "item_id").join(users, on="user_key", how="left_semi")
    did = did.join(items, on="item_id", how="inner")
    known = night.warehouse.read("user_histories", night.ds)
    known = known.select(F.xxhash64("user_id").alias("user_key"), "known_items").join(
        users, on="user_key", how="left_semi"
    )
    return requests, negatives.exclusions(known, did, requests).persist()


def _ranking_logs(night: Night, days: list[str], config: SampleConfig) -> DataFrame | None:
    """The logs of these days, with `own`: hard candidates come from the days of this night's positives alone."""
    wants_hard = config.negatives.coarse + config.negatives.fine > 0
    if not days:
        if wants_hard:
            log.info(
                "ranking_logs (%s) has nothing for %s: going on without hard negatives; easy ones take their places",
                night.inputs.uri("ranking_logs"),
                night.ds,
            )
        return None
    own = F.col("ds").isin(night.window) & F.lit(wants_hard)
    return night.inputs.events("ranking_logs", days).withColumn("own", own)


def _draw(
    positives: DataFrame,
    excluded: DataFrame,
    requests: DataFrame | None,
    setting: negatives.Setting,
    layout: shuffle.Layout,
    stats: DataFrame,
) -> DataFrame:
    """The negatives of every row, on narrow rows: row_key and its place in the table, and the three arrays."""
    narrow = layout.place(positives.select("row_key", "user_id", "request_id", "event_time", "item_index", "split"))
    rows = narrow.select(
        "row_key",
        "cell",
        "place",
        F.xxhash64("user_id").alias("user_key"),
        F.when(F.col("request_id").isNotNull(), F.xxhash64("request_id")).alias("request_key"),
        F.to_date("event_time").alias("day"),
        "item_index",
    )
    if not setting.tables:
        places = {kind: setting.places(kind) for kind in (UNIFORM, POPULARITY)}
        rows = samplers.with_written_draws(rows, stats, places, setting.seed)
    return negatives.draw_negatives(rows, excluded, requests, ["row_key", "cell", "place"], setting)


def _join(positives: DataFrame, drawn: DataFrame, layout: shuffle.Layout, config: SampleConfig) -> DataFrame:
    """The wide rows, moved once: to the task that writes their group, where their negatives meet them in order."""
    columns = ["row_key", "user_id", "item_id", "event_time", "user_index"]
    columns += [*sides(config.features)[0].encoded_columns(), "history", "item_index", "example_age", "weight"]
    wide = layout.place(positives.select(*columns, "split")).repartition(layout.tasks, "cell")
    narrow = drawn.repartition(layout.tasks, "cell")
    # A merge join keeps both sides where they are and hands the rows out in order of `place`.
    joined = wide.hint("merge").join(narrow, on=["place", "row_key", "cell"], how="inner").sortWithinPartitions("place")
    return joined.select(*columns, "negatives", "negative_kinds", "negative_log_q", "split", "group")


def _files(night: Night, staged: DataFrame, folder: str) -> dict[str, Any]:
    """Row groups of each split in order: what the trainers shard by, agreed before anyone opens a file."""
    rows = {(r["split"], r["group"]): int(r["count"]) for r in staged.groupBy("split", "group").count().collect()}
    splits: dict[str, Any] = {}
    for uri in night.warehouse.data_files(folder):
        path = uri.removeprefix(folder).lstrip("/")
        split, group = (part.partition("=")[2] for part in path.split("/")[:2])
        entry = splits.setdefault(split, {"rows": 0, "groups": []})
        if (split, group) not in rows:
            raise AssertionError(
                f"row group {split}/{group} was written by two tasks: the rows were moved after they were placed"
            )
        entry["groups"].append({"path": path, "rows": rows.pop((split, group))})
        entry["rows"] += entry["groups"][-1]["rows"]
    return splits

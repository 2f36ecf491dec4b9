"""The step build_negatives: positives and ranking logs in, model-ready samples out."""

from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines import negatives, shuffle
from pipelines.draws import KINDS, POPULARITY, UNIFORM, AliasTable
from pipelines.encode import sides
from pipelines.errors import InputError
from pipelines.night import Night, SampleConfig, is_done, log
from pipelines.storage import Manifest, Recipe, days_back


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

    read = night.warehouse.read
    positives = read("positives", night.ds)
    stats = read("item_stats", night.ds)
    items = stats.select("item_id", "item_index")
    users = positives.select("user_id").distinct().persist()
    logs = _ranking_logs(night, ranking_days, users, config)
    seen = night.inputs.events("interactions", log_days).join(users, on="user_id", how="left_semi")
    exposed = logs.where("stage = 'exposed'") if logs is not None else None
    if keep_last_out:
        # Never drawing the held-out item against its own user would tell the model which one it is.
        held = read("holdout", night.ds).select("user_id", "item_id")
        seen = seen.join(held, on=["user_id", "item_id"], how="left_anti")
        exposed = exposed.join(held, on=["user_id", "item_id"], how="left_anti") if exposed is not None else None
    known = read("user_histories", night.ds).join(users, on="user_id", how="left_semi")
    excluded = negatives.exclusions(known, seen, exposed, items).persist()
    # Hard candidates come from the days of this night's positives alone; exposures may reach further back.
    own_logs = logs.where(F.col("ds").isin(night.window)) if logs is not None else None
    wants_hard = config.negatives.coarse + config.negatives.fine > 0
    hard = None
    if own_logs is not None and wants_hard:
        hard = negatives.hard_candidates(own_logs, items, config.negatives, night.seed)

    placed, groups = shuffle.assign_groups(
        positives, night.seed, config.samples.row_group_rows, config.samples.trainers
    )
    rows = negatives.with_candidates(placed, hard)
    width = int(stats.agg(F.max("item_index")).first()[0]) + 1
    drawn = negatives.draw_negatives(rows, excluded, _samplers(stats), config.negatives, night.seed, width)
    columns = [
        "row_key",
        "user_id",
        "item_id",
        "event_time",
        "user_index",
        *sides(config.features)[0].encoded_columns(),
    ]
    columns += ["history", "item_index", "example_age", "weight", "negatives", "negative_kinds", "negative_log_q"]
    table = shuffle.gather_groups(drawn.select(*columns, "split", "group", "place"), sum(groups.values()))

    def describe(staged: DataFrame, folder: str) -> dict[str, Any]:
        _refuse_bad_negatives(staged, excluded)
        kinds = _count_kinds(staged)
        log.info("samples %s: negatives by kind: %s", night.ds, ", ".join(f"{k} {v:,}" for k, v in kinds.items()))
        return {
            "schema": made["positives"].facts["schema"],
            "negatives": config.negatives.total,
            "quotas": {kind: getattr(config.negatives, kind) for kind in ("uniform", "popularity", "coarse", "fine")},
            "kinds": kinds,
            "ranking_logs": bool(ranking_days),
            "bootstrap_days": night.bootstrap_days,
            "splits": _layout(night, staged, folder),
        }

    partitions = ("split", "group")
    manifest = night.warehouse.write(table, "samples", night.ds, recipe, partition_by=partitions, facts=describe)
    for frame in (users, excluded):
        frame.unpersist()
    return manifest, True


def _ranking_logs(night: Night, days: list[str], users: DataFrame, config: SampleConfig) -> DataFrame | None:
    if not days:
        if config.negatives.coarse + config.negatives.fine > 0:
            log.info(
                "ranking_logs (%s) has nothing for %s: going on without hard negatives; easy ones take their places",
                night.inputs.uri("ranking_logs"),
                night.ds,
            )
        return None
    return night.inputs.events("ranking_logs", days).join(users, on="user_id", how="left_semi")


def _samplers(stats: DataFrame) -> dict[int, AliasTable]:
    """Alias tables over live items; the only columns that ever come to the driver, to be broadcast."""
    live = stats.where("live").select("item_index", "q_uniform", "q_popularity").orderBy("item_index").toPandas()
    if live.empty:
        raise InputError(
            "table items: no item is live (published, in the newest snapshot), so there is nothing to draw"
        )
    index = live["item_index"].to_numpy(np.int64)
    tables = {UNIFORM: AliasTable.build(index, live["q_uniform"].to_numpy())}
    popular = live["q_popularity"].to_numpy()
    tables[POPULARITY] = AliasTable.build(index, popular) if popular.sum() > 0 else tables[UNIFORM]
    return tables


def _refuse_bad_negatives(staged: DataFrame, excluded: DataFrame) -> None:
    """Promise 4, checked on what was written: no negative that its user has, did or was shown."""
    pairs = staged.select("user_id", "item_index", F.explode("negatives").alias("negative")).where("negative > 0")
    own = pairs.where("negative = item_index")
    forbidden = excluded.select("user_id", F.explode("excluded").alias("negative"))
    for what, frame in (
        ("are the row's own positive", own),
        (
            "are items that the user has, did or was shown",
            pairs.join(forbidden, on=["user_id", "negative"], how="left_semi"),
        ),
    ):
        if example := frame.first():
            raise InputError(
                f"table samples, column negatives: {frame.count()} negatives {what}, for example item index "
                f"{example['negative']} of user {example['user_id']!r}. Nothing was written; please report this"
            )


def _count_kinds(staged: DataFrame) -> dict[str, int]:
    counted = staged.select(F.explode("negative_kinds").alias("kind")).groupBy("kind").count().collect()
    found = {int(row["kind"]): int(row["count"]) for row in counted}
    return {name: found.get(kind, 0) for kind, name in KINDS.items()}


def _layout(night: Night, staged: DataFrame, folder: str) -> dict[str, Any]:
    """Row groups of each split in order: what the trainers shard by, agreed before anyone opens a file."""
    rows = {(r["split"], r["group"]): int(r["count"]) for r in staged.groupBy("split", "group").count().collect()}
    splits: dict[str, Any] = {}
    for uri in night.warehouse.data_files(folder):
        path = uri.removeprefix(folder).lstrip("/")
        split, group = (part.partition("=")[2] for part in path.split("/")[:2])
        entry = splits.setdefault(split, {"rows": 0, "groups": []})
        entry["groups"].append({"path": path, "rows": rows.pop((split, group))})
        entry["rows"] += entry["groups"][-1]["rows"]
    return splits

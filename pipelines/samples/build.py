"""The step build_negatives: positives and ranking logs in, model-ready samples out."""

from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contract.negative_kinds import POPULARITY, UNIFORM
from pipelines.drift import compare_with_before
from pipelines.features.encode import sides
from pipelines.histories.user_stream import key_of
from pipelines.inputs.matching_ids import Ids, refuse_other_ids
from pipelines.joins import broadcast_small
from pipelines.lost_day import carried_from
from pipelines.night import Night, SampleConfig, is_done, log
from pipelines.positives.select import is_positive
from pipelines.samples import make, row_groups, samplers, user_context
from pipelines.samples.availability import availability
from pipelines.samples.carried_rows import CarriedDay
from pipelines.samples.checks import check_samples
from pipelines.samples.exclusions import Known
from pipelines.storage.dates import days_back, shift
from pipelines.storage.lineage import one_lineage
from pipelines.storage.manifest import Manifest, Recipe


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
    # A click after midnight names a request that was logged on the day before.
    earlier_days = [shift(night.window[0], -1)]
    if night.yesterday and (day := carried_from(night.warehouse.manifest("user_histories", night.yesterday))):
        earlier_days.append(day)  # Rows of that day waited over days without data.
    before_days = night.inputs.present("ranking_logs", earlier_days)
    carried_day = CarriedDay.of(night, made["positives"], config.negatives.exposed_days, ranking_days)
    fingerprints = {table: manifest.fingerprint for table, manifest in made.items()}
    before = {f"{t}@{night.yesterday}": m for t, m in night.state().items() if t == "user_histories"}
    fingerprints |= {table: manifest.fingerprint for table, manifest in before.items()}
    lineage = one_lineage({**made, **before}, f"run build_positives for ds={night.ds} again")
    fingerprints["interactions"] = night.inputs.fingerprint("interactions", [*carried_day.interaction_days, *log_days])
    all_days = sorted({*carried_day.ranking_days, *before_days, *ranking_days})
    fingerprints["ranking_logs"] = night.inputs.fingerprint("ranking_logs", all_days)
    if keep_last_out:
        fingerprints["holdout"] = night.warehouse.require("holdout", night.ds, remedy).fingerprint
    recipe = Recipe(config_hash, fingerprints, lineage)
    if is_done(night, ("samples",), recipe, force):
        return night.warehouse.require("samples", night.ds, ""), False

    positives = night.warehouse.read("positives", night.ds)
    if "carried" not in positives.columns:  # written by an earlier version
        positives = positives.withColumn("carried", F.lit(False))
    stats = night.warehouse.read("item_stats", night.ds)
    broadcast = made["item_stats"].rows <= config.negatives.broadcast_items
    # Rows that the night before held back are of an earlier day.
    first_day = min(made["positives"].facts.get("item_snapshots", log_days))
    width = int(stats.agg(F.max("item_index")).first()[0]) + 1
    setting = user_context.Setting(
        config.negatives,
        night.seed,
        width=width,
        tables=samplers.alias_tables(stats) if broadcast else {},
        history=config.features.history.length if config.features.history else 1,
        others=config.features.history is not None and config.features.history.order == "leave_one_out",
        availability=availability(stats, night.warehouse.read("item_features", night.ds), first_day, width),
    )

    # build_positives has checked these interactions; the ranking logs are checked here.
    seen = night.inputs.events("interactions", log_days, check=False)
    seen = reduce(DataFrame.unionByName, carried_day.interactions(night, positives), seen)
    logs = _ranking_logs(night, ranking_days, before_days, carried_day, positives, config)
    told = {name: facts for name, facts in night.inputs.facts().items() if name == "ranking_logs"}
    compare_with_before(night, "samples", told, config.checks)
    if logs is not None and ranking_days:
        newest = Ids("ranking_logs", logs.where(F.col("ds") == ranking_days[-1]))
        items = min(made["item_stats"].rows, told["ranking_logs"]["by_day"][ranking_days[-1]])
        refuse_other_ids(newest, Ids("interactions", positives), "user_id", made["positives"].rows, config.checks)
        refuse_other_ids(newest, Ids("items", stats), "item_id", items, config.checks)
    night.inputs.write_quarantine(night.ds, recipe, ("ranking_logs",))

    known = _known(night, config, setting, positives, stats, seen, logs, keep_last_out)
    update = night.warehouse.update
    place = row_groups.by_time(update.since, update.until) if update else row_groups.by_hash(night.seed)
    layout = row_groups.layout_of(positives, place, config.samples.row_group_rows, config.samples.trainers)
    columns = ["user_id", "item_id", "user_index", *sides(config.features)[0].encoded_columns()]
    columns += ["item_index", "item_snapshot", "example_age", "weight"]
    rows = _rows(positives, columns, setting, layout, stats)
    samples = make.make_samples(rows, known.contexts(), ["key", "at", *columns, "cell"], setting)
    samples = samples.withColumn("at", F.timestamp_micros("at"))
    samples = samples.withColumnsRenamed({"key": "row_key", "at": "event_time"})
    table = layout.gather(samples).drop("cell")

    def describe(staged: DataFrame, folder: str) -> dict[str, Any]:
        checked = check_samples(staged, known, setting, config)
        log.info(
            "samples %s: negatives by kind: %s", night.ds, ", ".join(f"{k} {v:,}" for k, v in checked["kinds"].items())
        )
        return {
            "schema": made["positives"].facts["schema"],
            "negatives": config.negatives.total,
            "quotas": {kind: getattr(config.negatives, kind) for kind in ("uniform", "popularity", "coarse", "fine")},
            **checked,
            "history": config.features.history.order if config.features.history else None,
            "input": told,
            "ranking_logs": logs is not None,
            "bootstrap_days": night.bootstrap_days,
            "sampler": "broadcast" if broadcast else "shuffle",
            "splits": _files(night, staged, folder),
        }

    return night.warehouse.write(
        table, "samples", night.ds, recipe, partition_by=("split", "group"), facts=describe
    ), True


def _known(
    night: Night,
    config: SampleConfig,
    setting: user_context.Setting,
    positives: DataFrame,
    stats: DataFrame,
    seen: DataFrame,
    logs: DataFrame | None,
    keep_last_out: bool,
) -> Known:
    """What is known of the users that have positives tonight."""
    if keep_last_out:
        # Never drawing the held-out item against its own user would tell the model which one it is.
        held = night.warehouse.read("holdout", night.ds).select("user_id", "item_id")
        seen = seen.join(held, on=["user_id", "item_id"], how="left_anti")
        logs = logs.join(held, on=["user_id", "item_id"], how="left_anti") if logs is not None else None
    tonight = night.warehouse.read("user_histories", night.ds)
    before = night.warehouse.read("user_histories", night.yesterday) if night.yesterday else None
    users = positives.select(key_of("user_id").alias("user_key")).distinct()
    # Broadcast, they cut the state and the logs down where these lie.
    users = broadcast_small(users, users.count(), narrow=True)
    items = stats.select(key_of("item_id").alias("item_key"), "item_index")
    items = broadcast_small(items, setting.width, narrow=True)
    positive = is_positive(config.positives)
    return Known(setting, config.positives.known_items, users, positives, items, tonight, before, seen, positive, logs)


def _ranking_logs(
    night: Night,
    days: list[str],
    before_days: list[str],
    carried_day: CarriedDay,
    positives: DataFrame,
    config: SampleConfig,
) -> DataFrame | None:
    """The logs of `days`, of `before_days` (the day before the window) the requests that positives name, and what the users
    of carried rows were shown on `carried_day`; with `own`.

    `own`: hard candidates come from the days of this night's positives and from the requests that these name, and only
    from the stages of their kinds.
    """
    wants_hard = config.negatives.coarse + config.negatives.fine > 0
    if not days and not before_days and not carried_day.ranking_days:
        if wants_hard:
            log.info(
                "ranking_logs (%s) has nothing for %s: going on without hard negatives; easy ones take their places",
                night.inputs.uri("ranking_logs"),
                night.ds,
            )
        return None
    night.inputs.report.missing_days("ranking_logs", night.window)
    stages = [*config.negatives.coarse_stages, *config.negatives.fine_stages]
    candidate = F.col("stage").isin(stages) & F.lit(wants_hard)
    logs = []
    if days:
        read = night.inputs.events("ranking_logs", days)
        logs.append(read.withColumn("own", F.col("ds").isin(night.window) & candidate))
    if before_days:
        # The night of that day has checked and counted these rows.
        read = night.inputs.events("ranking_logs", before_days, check=False)
        logs.append(_named_by(positives, read).withColumn("own", candidate))
    logs += [shown.withColumn("own", F.lit(False)) for shown in carried_day.exposures(night, positives)]
    return reduce(DataFrame.unionByName, logs)


def _named_by(positives: DataFrame, logs: DataFrame) -> DataFrame:
    """The log rows whose request some positive of a split names."""
    named = positives.where("split IS NOT NULL AND request_id IS NOT NULL")
    named = named.select(key_of("request_id").alias("request_key")).distinct()
    named = broadcast_small(named, named.count(), narrow=True)
    keyed = logs.withColumn("request_key", key_of("request_id"))
    return keyed.join(named, on="request_key", how="left_semi").drop("request_key")


def _rows(
    positives: DataFrame, columns: list[str], setting: user_context.Setting, layout: row_groups.Layout, stats: DataFrame
) -> DataFrame:
    """The rows of the stream (make_samples): every positive of the night, those to be written with their cell."""
    rows = layout.place(positives).select(
        key_of("user_id").alias("user_key"),
        F.unix_micros("event_time").alias("at"),
        F.col("row_key").alias("key"),
        F.when(F.col("request_id").isNotNull(), key_of("request_id")).alias("request_key"),
        *columns,
        "carried",
        "cell",
    )
    if setting.tables:
        return rows
    places = {kind: setting.written(kind) for kind in (UNIFORM, POPULARITY)}
    return samplers.with_written_draws(rows, stats, places, setting.seed)


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

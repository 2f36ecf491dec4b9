"""The step build_negatives: reads positives and ranking logs, writes the table `samples` that training reads."""

from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import COARSE, FINE, KINDS, POPULARITY, QUOTAS, UNIFORM
from pipelines.drift import compare_with_before
from pipelines.features.feature_schema import ACTION_INDEX
from pipelines.features.side import context_side, sides
from pipelines.histories.cuts import ahead_of, cut_micros
from pipelines.histories.user_histories import action_of
from pipelines.histories.user_stream import key_of
from pipelines.inputs.matching_ids import TableIds, refuse_mismatched_ids
from pipelines.joins import broadcast_small
from pipelines.night import Night, SampleConfig, is_done, log
from pipelines.positives.select import is_positive
from pipelines.samples import row_groups, samplers
from pipelines.samples.availability import availability
from pipelines.samples.checks import check_samples
from pipelines.samples.context_tables import ContextTables
from pipelines.samples.logs import LogDays
from pipelines.samples.make import make_samples
from pipelines.samples.packing import is_packed, pack_samples
from pipelines.samples.user_context import SamplingSettings
from pipelines.samples.user_groups import layout_by_user
from pipelines.storage.lineage import one_lineage
from pipelines.storage.manifest import Manifest, Recipe


@dataclass(frozen=True)
class SampleInputs:
    """The input tables of the step."""

    manifests: dict[str, Manifest]  # of the tables that build_positives wrote
    positives: DataFrame
    item_stats: DataFrame
    interactions: DataFrame
    ranking_logs: DataFrame | None  # None if no day has data
    ranking_facts: dict[str, Any]  # row counts of the checked days of ranking_logs, as in the manifest
    mined: DataFrame | None = None  # mined_candidates; None if there are none


def build_negatives(
    night: Night,
    config: SampleConfig,
    config_hash: str,
    *,
    mined: Manifest | None = None,
    keep_last_out: bool = False,
    force: bool = False,
) -> tuple[Manifest, bool]:
    """Write `samples`. Returns its manifest, and False if an earlier run with the same recipe had written it.

    `mined`: of mined_candidates of ds; None: no release has ranked candidates, and easy negatives fill their slots.
    `keep_last_out`: an item that build_positives put in `holdout` may be drawn, as if the user had never met it.

    Without ranking logs there are no hard negatives. Easy negatives fill their slots; the log and the manifest report it.
    Raises InputError if positives are missing or if the written rows fail a check.
    """
    remedy = f"run build_positives for ds={night.ds} first"
    manifests = {t: night.warehouse.require(t, night.ds, remedy) for t in ("positives", "item_stats", "user_histories")}
    days = LogDays.of(night, config, manifests["positives"])
    tables = manifests | ({mined.table: mined} if mined else {})
    recipe = _recipe(night, config_hash, tables, days, keep_last_out=keep_last_out)
    if is_done(night, ("samples",), recipe, force):
        return night.warehouse.require("samples", night.ds, ""), False
    positives, stats = _read_positives(night), night.warehouse.read("item_stats", night.ds)
    broadcast = manifests["item_stats"].rows <= config.negatives.broadcast_items
    # Rows that the night before held back are from an earlier day.
    first_day = min(manifests["positives"].facts.get("item_snapshots", days.interactions))
    sampling = _sampling_settings(night, config, stats, first_day=first_day, broadcast=broadcast)
    settings = replace(sampling, has_mined=mined is not None)
    interactions = days.read_interactions(night, positives)
    ranking_logs = days.read_ranking_logs(night, positives, config)
    ranking_facts = {name: facts for name, facts in night.inputs.facts().items() if name == "ranking_logs"}
    ranked = night.warehouse.read(mined.table, night.ds) if mined else None
    inputs = SampleInputs(manifests, positives, stats, interactions, ranking_logs, ranking_facts, ranked)
    _check_ranking_logs(night, config, inputs, days)
    night.inputs.write_quarantine(night.ds, recipe, ("ranking_logs",))
    contexts = _context_tables(night, config, settings, inputs, keep_last_out=keep_last_out)
    optional = {"ahead_days": settings.ahead_days, "pack": _pack_of(night, config)}

    def describe(staged: DataFrame, folder: str) -> dict[str, Any]:
        checked = check_samples(staged, contexts, settings, config)
        _log_kinds(night.ds, checked["kinds"])
        if ranking_logs is not None:
            _warn_of_missing_stages(night.ds, config.negatives, checked["kinds"])
        return {
            "schema": manifests["positives"].facts["schema"],
            "negatives": config.negatives.total,
            "quotas": {kind: getattr(config.negatives, kind) for kind in QUOTAS},
            **checked,
            "history": config.features.history_order,
            **{name: value for name, value in optional.items() if value is not None},
            "input": ranking_facts,
            "ranking_logs": ranking_logs is not None,
            "mined_from": mined.facts["release_id"] if mined else None,
            "bootstrap_days": night.bootstrap_days,
            "sampler": "broadcast" if broadcast else "shuffle",
            "splits": _row_groups_by_split(night, staged, folder),
        }

    table, partitions = _samples(night, config, settings, inputs, contexts), ("split", "group")
    return night.warehouse.write(table, "samples", night.ds, recipe, partition_by=partitions, facts=describe), True


def _log_kinds(ds: str, kinds: dict[str, int]) -> None:
    counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
    log.info("samples %s: negatives by kind: %s", ds, counts)


def _warn_of_missing_stages(ds: str, negatives: Negatives, kinds: dict[str, int]) -> None:
    """Say that the logs have no item for a kind that has a quota: its places went to easy negatives."""
    for kind, stages in ((KINDS[COARSE], negatives.coarse_stages), (KINDS[FINE], negatives.fine_stages)):
        if getattr(negatives, kind) and not kinds[kind]:
            hint = ""
            if kind == KINDS[COARSE] and "recall" not in stages:
                hint = " (if stage `recall` has items that pre-ranking dropped, and none that filters removed, add it)"
            log.warning(
                "samples %s: no %s negative was drawn, so easy ones took their places: the requests of the night's "
                "positives have no item whose last stage is %s. Set negatives.%s_stages to the stages of your logs%s, or "
                "negatives.%s: 0",
                ds, kind, " or ".join(stages), kind, hint, kind,
            )  # fmt: skip


def _recipe(
    night: Night, config_hash: str, manifests: dict[str, Manifest], days: LogDays, *, keep_last_out: bool
) -> Recipe:
    """What the samples are made of: the config, the tables of build_positives and the logs."""
    before = {f"{t}@{night.yesterday}": m for t, m in night.state().items() if t == "user_histories"}
    inputs = {**manifests, **before}
    fingerprints = {table: manifest.fingerprint for table, manifest in inputs.items()}
    lineage = one_lineage(inputs, f"run build_positives for ds={night.ds} again")
    fingerprints |= days.fingerprints(night)
    if keep_last_out:
        remedy = f"run build_positives for ds={night.ds} first"
        fingerprints["holdout"] = night.warehouse.require("holdout", night.ds, remedy).fingerprint
    return Recipe(config_hash, fingerprints, lineage)


def _read_positives(night: Night) -> DataFrame:
    positives = night.warehouse.read("positives", night.ds)
    if "carried" not in positives.columns:  # written by an earlier version
        positives = positives.withColumn("carried", F.lit(False))
    return positives


def _sampling_settings(
    night: Night, config: SampleConfig, stats: DataFrame, *, first_day: str, broadcast: bool
) -> SamplingSettings:
    """`first_day`: the day of the night's oldest rows. `broadcast`: draw from alias tables that are sent to all tasks."""
    width = int(stats.agg(F.max("item_index")).first()[0]) + 1
    history = config.features.history
    return SamplingSettings(
        config.negatives,
        night.seed,
        width=width,
        alias_tables=samplers.alias_tables(stats) if broadcast else {},
        history_length=history.length if history else 1,
        leave_one_out=history is not None and history.order == "leave_one_out",
        ahead_days=ahead_of(config.features, config.positives),
        ages=history is not None and history.ages,
        actions=history is not None and history.actions,
        counts_past=_pack_of(night, config) is not None,
        availability=availability(stats, night.warehouse.read("item_features", night.ds), first_day, width),
    )


def _check_ranking_logs(night: Night, config: SampleConfig, inputs: SampleInputs, days: LogDays) -> None:
    """Compare the ranking logs with those of the night before, and their ids with those of positives and items."""
    compare_with_before(night, "samples", inputs.ranking_facts, config.checks)
    if inputs.ranking_logs is None or not days.ranking_logs:
        return
    day = days.ranking_logs[-1]
    newest = TableIds("ranking_logs", inputs.ranking_logs.where(F.col("ds") == day))
    positives, stats = inputs.manifests["positives"].rows, inputs.manifests["item_stats"].rows
    items = min(stats, inputs.ranking_facts["ranking_logs"]["by_day"][day])
    refuse_mismatched_ids(newest, TableIds("interactions", inputs.positives), "user_id", positives, config.checks)
    refuse_mismatched_ids(newest, TableIds("items", inputs.item_stats), "item_id", items, config.checks)


def _context_tables(
    night: Night, config: SampleConfig, settings: SamplingSettings, inputs: SampleInputs, *, keep_last_out: bool
) -> ContextTables:
    """Exclusions, hard candidates and histories of the users that have positives tonight."""
    interactions, ranking_logs = inputs.interactions, inputs.ranking_logs
    if keep_last_out:
        # If the held-out item were never drawn for its own user, the model could learn from that which item it is.
        held = night.warehouse.read("holdout", night.ds).select("user_id", "item_id")
        interactions = interactions.join(held, on=["user_id", "item_id"], how="left_anti")
        if ranking_logs is not None:
            ranking_logs = ranking_logs.join(held, on=["user_id", "item_id"], how="left_anti")
    users = inputs.positives.select(key_of("user_id").alias("user_key")).distinct()
    items = inputs.item_stats.select(key_of("item_id").alias("item_key"), "item_index")
    return ContextTables(
        settings,
        known_items_limit=config.positives.known_items,
        # Broadcast, the users filter the state and the logs without a shuffle of these.
        users=broadcast_small(users, users.count(), narrow=True),
        positives=inputs.positives,
        items=broadcast_small(items, settings.width, narrow=True),
        histories=night.warehouse.read("user_histories", night.ds),
        histories_before=night.warehouse.read("user_histories", night.yesterday) if night.yesterday else None,
        interactions=interactions,
        is_positive=is_positive(config.positives),
        ranking_logs=ranking_logs,
        mined=inputs.mined,
    )


def _samples(
    night: Night, config: SampleConfig, settings: SamplingSettings, inputs: SampleInputs, contexts: ContextTables
) -> DataFrame:
    """The rows of `samples`, each in the task that writes its row group."""
    pack, layout = _pack_of(night, config), _layout(night, config, inputs.positives)
    user_columns = ["user_index", *sides(config.features)[0].encoded_columns()]
    columns = ["user_id", "item_id", *user_columns]
    columns += context_side(config.features).encoded_columns()
    columns += ["item_index", "item_snapshot", "example_age", "weight"]
    rows = layout.place(inputs.positives).select(
        key_of("user_id").alias("user_key"),
        F.unix_micros("event_time").alias("at"),
        F.col("row_key").alias("key"),
        F.when(F.col("request_id").isNotNull(), key_of("request_id")).alias("request_key"),
        *columns,
        "carried",
        "cell",
        *([] if settings.ahead_days is None else [cut_micros(settings.ahead_days, settings.seed).alias("cut")]),
        *([action_of(inputs.positives).alias(ACTION_INDEX)] if settings.actions else []),
    )
    if not settings.alias_tables:
        draws = {kind: settings.written_draws(kind) for kind in (UNIFORM, POPULARITY)}
        rows = samplers.with_written_draws(rows, inputs.item_stats, draws, settings.seed)
    samples = make_samples(rows, contexts.stream_rows(), ["key", "at", *columns, "cell"], settings)
    samples = samples.withColumn("at", F.timestamp_micros("at"))
    samples = samples.withColumnsRenamed({"key": "row_key", "at": "event_time"})
    if pack is not None:
        return pack_samples(samples, layout, user_columns, settings, pack)
    return layout.gather(samples).drop("cell")


def _pack_of(night: Night, config: SampleConfig) -> int | None:
    """Positives per packed row. An update within the day trains in the order of time, so its rows are not packed."""
    return None if night.warehouse.update else config.samples.pack


def _layout(night: Night, config: SampleConfig, positives: DataFrame) -> row_groups.RowGroupLayout:
    rows, trainers = config.samples.row_group_rows, config.samples.trainers
    if _pack_of(night, config) is not None:
        return layout_by_user(positives, night.seed, rows, trainers)
    update = night.warehouse.update
    place = row_groups.by_time(update.since, update.until) if update else row_groups.by_hash(night.seed)
    return row_groups.layout_of(positives, place, rows, trainers)


def _row_groups_by_split(night: Night, staged: DataFrame, folder: str) -> dict[str, Any]:
    """The row groups of each split, in order. The manifest lists them, so all trainers shard by the same list.

    Groups of packed rows also have their number of positives.
    """
    counts = {"rows": F.count(F.lit(1))} | ({"positives": F.sum(F.size("row_key"))} if is_packed(staged) else {})
    counted = staged.groupBy("split", "group").agg(*(count.alias(name) for name, count in counts.items())).collect()
    rows = {(r["split"], r["group"]): {name: int(r[name]) for name in counts} for r in counted}
    splits: dict[str, Any] = {}
    for uri in night.warehouse.data_files(folder):
        path = uri.removeprefix(folder).lstrip("/")
        split, group = (part.partition("=")[2] for part in path.split("/")[:2])
        entry = splits.setdefault(split, {**dict.fromkeys(counts, 0), "groups": []})
        if (split, group) not in rows:
            raise AssertionError(
                f"row group {split}/{group} was written by two tasks: its rows moved after `gather` placed them"
            )
        entry["groups"].append({"path": path, **rows.pop((split, group))})
        for name in counts:
            entry[name] += entry["groups"][-1][name]
    return splits

"""Checks of the written samples, on the staged table before it moves into place."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.contract.negative_kinds import EASY, HARD, KINDS
from pipelines.histories.cuts import cut_micros
from pipelines.histories.user_stream import key_of
from pipelines.night import SampleConfig
from pipelines.samples.context_tables import ContextTables
from pipelines.samples.packing import is_packed, unpacked
from pipelines.samples.user_context import SamplingSettings

CHECKED_ROWS = 2_000  # rows whose negatives and histories are looked up in the input tables, item by item
CHECKED_GROUPS = "00032"  # groups of each split before this one are checked row by row: about a million rows
OWN, REPEATED, LOG_Q, LENGTH, LEAKED = "own", "repeated", "log_q", "length", "leaked"
# Each check by name: the column, and the message about the rows or items that fail it.
BROKEN = {
    LEAKED: ("history_until", "rows have a history that reaches their own event, its cut or a later one (leakage)"),
    LENGTH: ("negatives", "rows do not have {total} negatives, kinds and log q each"),
    OWN: ("negatives", "negatives are the row's own positive"),
    REPEATED: ("negatives", "negatives occur twice in their row"),
    LOG_Q: ("negative_log_q", "negatives have a log q that does not match their kind, or that is not a number"),
}
KIND_COUNTS = ["rows", "fell_back", *KINDS.values()]
Batches = Iterable[pa.RecordBatch]


def check_samples(
    staged: DataFrame, contexts: ContextTables, settings: SamplingSettings, config: SampleConfig
) -> dict[str, Any]:
    """Check the samples. Returns facts for the manifest: negatives by kind, the fallback share, the items looked up.

    Kinds and leakage are counted on all rows. Rows are in the order of a hash, so the first rows are a random sample: about
    a million rows have their negatives compared with each other, and 2,000 rows are looked up in the logs and the state.
    Packed rows are unpacked first. Raises InputError if a row fails a check, or if the fallback share exceeds its limit.
    """
    _check_seen(staged)
    staged = unpacked(staged)
    cut = cut_micros(settings.ahead_days, settings.seed)
    leaked = staged.where(F.unix_micros("history_until") >= cut)
    counted = _sum_counts(staged.select("negative_kinds"), KIND_COUNTS, _count_kinds, settings)
    first = staged.where(F.col("group") < CHECKED_GROUPS)
    columns = ["row_key", "item_index", "negatives", "negative_kinds", "negative_log_q"]
    broken = _sum_counts(first.select(*columns), list(BROKEN), _count_broken, settings) | {LEAKED: leaked.count()}
    for name, (column, problem) in BROKEN.items():
        if broken[name]:
            example = broken["example"] if name != LEAKED else f"row_key {leaked.agg(F.min('row_key')).first()[0]}"
            _refuse(column, broken[name], problem.format(total=config.negatives.total), example)
    kinds = {name: int(counted[name]) for name in KINDS.values()}
    hard = settings.hard_slots * int(counted["rows"])
    share = 1 - sum(kinds[KINDS[kind]] for kind in HARD) / hard if hard else 0.0
    if share > config.checks.fallback_share:
        mined = f", {kinds['mined']} mined" if settings.has_mined else ""
        raise InputError(
            f"table samples: easy negatives fill {share:.1%} of the slots of hard negatives ({kinds['coarse']} coarse and "
            f"{kinds['fine']} fine{mined} were drawn for {hard} slots), more than checks.fallback_share = "
            f"{config.checks.fallback_share:g} allows. Check that ranking_logs holds this day's requests and that its "
            "request_id matches that of interactions, or raise checks.fallback_share"
        )
    looked_up = look_up(staged, contexts)
    return {"kinds": kinds, "rows_fell_back": int(counted["fell_back"]), "fallback_share": share} | looked_up


def look_up(staged: DataFrame, contexts: ContextTables) -> dict[str, int]:
    """Look up the negatives and histories of 2,000 rows in the input tables. Returns the number of items of both."""
    # Rows are in the order of a hash, so the first group of each split is a random sample.
    columns = ["user_id", "event_time", "item_index", "history", "negatives"]
    first = unpacked(staged).where("group = '00000'").select("row_key", *columns)
    sample = first.orderBy("row_key").limit(CHECKED_ROWS).persist()
    try:
        users = sample.select(key_of("user_id").alias("user_key")).distinct()
        example = F.to_json(F.struct("user_id", "item_index", "event_time", "item")).alias("example")
        items = sample.select(*columns[:3], F.explode("negatives").alias("item")).where("item != 0")
        excluded = contexts.excluded_items(users).withColumn("excluded", F.lit(True))
        pairs = items.join(excluded, on=["user_id", "item"], how="left")
        pairs = pairs.select(F.col("excluded").alias("wrong"), example)
        negatives = _count_pairs("negatives", pairs, "are items that the user has, did or was shown")

        settings = contexts.settings
        cut = cut_micros(settings.ahead_days, settings.seed).alias("cut")
        items = sample.select(*columns[:3], cut, F.explode("history").alias("item")).where("item != 0")
        positives = contexts.first_positives(users).withColumn("is_positive", F.lit(True))
        pairs = items.join(positives, on=["user_id", "item"], how="left")
        if settings.leave_one_out:
            wrong = F.col("is_positive").isNull() | (F.col("item") == F.col("item_index"))
            problem = "are the row's own item, or not a positive of its user (leakage)"
        else:
            wrong = F.col("is_positive").isNull() | (F.unix_micros("at") >= F.col("cut"))
            problem = "are not an earlier positive of the row's user (leakage)"
        history = _count_pairs("history", pairs.select(wrong.alias("wrong"), example), problem)
    finally:
        sample.unpersist()
    return {"checked_negatives": negatives, "checked_history_items": history}


def _check_seen(staged: DataFrame) -> None:
    """Raises InputError if packed rows do not say which part of their history each positive sees."""
    if not is_packed(staged):
        return
    items = F.size(F.filter("history", lambda item: item > 0))
    seen = F.slice("history_seen", 1, F.size("row_key"))
    # The last positive of a row has the newest cut and sees the whole history.
    wrong = staged.where((F.element_at(seen, -1) != items) | (F.array_sort(seen) != seen) | (F.get(seen, F.lit(0)) < 0))
    counted = wrong.agg(F.count(F.lit(1)).alias("rows"), F.min(F.col("row_key")[0]).alias("example")).first()
    assert counted is not None
    if counted["rows"]:
        problem = "packed rows have numbers of seen items that do not fit their history"
        _refuse("history_seen", counted["rows"], problem, f"row_key {counted['example']}")


def _count_pairs(column: str, pairs: DataFrame, problem: str) -> int:
    """The number of rows of `pairs` (wrong: boolean or null, example). Raises InputError if any is wrong."""
    row = pairs.agg(
        F.count(F.lit(1)).alias("pairs"),
        F.count(F.when(F.col("wrong"), 1)).alias("wrong"),
        F.min(F.when(F.col("wrong"), F.col("example"))).alias("example"),
    ).first()
    assert row is not None
    if row["wrong"]:
        _refuse(column, row["wrong"], f"items of {column} {problem}", row["example"])
    return int(row["pairs"])


def _refuse(column: str, count: int, problem: str, example: str) -> None:
    raise InputError(
        f"table samples, column {column}: {count} {problem}, for example {example}. Nothing was written; please report this"
    )


def _sum_counts(
    rows: DataFrame,
    names: list[str],
    count: Callable[[pa.RecordBatch, SamplingSettings], tuple[dict[str, int], str | None]],
    settings: SamplingSettings,
) -> dict[str, Any]:
    """The sums over all batches of the counts that `count` returns, and the smallest example."""
    shared = rows.sparkSession.sparkContext.broadcast(replace(settings, alias_tables={}))
    schema = ", ".join([*(f"`{name}` long" for name in names), "example string"])

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            counts, example = count(batch, shared.value)
            columns = [pa.array([counts.get(name, 0)]) for name in names] + [pa.array([example], pa.string())]
            yield pa.RecordBatch.from_arrays(columns, names=[*names, "example"])

    row = (
        rows.mapInArrow(run, schema)
        .agg(*(F.sum(name).alias(name) for name in names), F.min("example").alias("example"))
        .first()
    )
    assert row is not None
    return {name: row[name] or 0 for name in names} | {"example": row["example"]}


def _count_kinds(rows: pa.RecordBatch, settings: SamplingSettings) -> tuple[dict[str, int], None]:
    """Counts of negatives by kind, of rows, and of rows with fewer hard negatives than hard slots."""
    kinds = rows.column("negative_kinds")
    values = kinds.flatten().to_numpy()
    hard = np.concatenate([[0], np.cumsum(np.isin(values, HARD))])
    edges = kinds.offsets.to_numpy() - kinds.offsets[0].as_py()
    fell_back = np.diff(hard[edges]) < settings.hard_slots
    by_kind = np.bincount(values, minlength=len(KINDS))
    counts = {name: int(by_kind[kind]) for kind, name in KINDS.items()}
    return counts | {"rows": rows.num_rows, "fell_back": int(fell_back.sum())}, None


def _count_broken(rows: pa.RecordBatch, settings: SamplingSettings) -> tuple[dict[str, int], str | None]:
    """How often rows fail each check that needs no other table, and an example."""
    total = settings.config.total
    parts = [rows.column(name) for name in ("negatives", "negative_kinds", "negative_log_q")]
    short = (np.stack([np.diff(part.offsets.to_numpy()) for part in parts]) != total).any(axis=0)
    broken = {LENGTH: short}
    if not short.any():
        items, kinds, log_q = (part.flatten().to_numpy().reshape(-1, total) for part in parts)
        ordered = np.sort(items, axis=1)
        broken[REPEATED] = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).sum(axis=1)
        broken[OWN] = (items == rows.column("item_index").to_numpy()[:, None]).sum(axis=1)
        # The only item of a catalogue is drawn with probability 1, so log q is 0. Indices 0 and 1 are not items.
        probable = (log_q > -np.inf) & ((log_q < 0) if settings.width > 3 else (log_q <= 0))
        drawn = np.isin(kinds, EASY)
        broken[LOG_Q] = np.where(drawn, ~probable, log_q != 0).sum(axis=1)
    example = None
    for wrong in broken.values():
        if wrong.any():
            row = rows.slice(int(np.argmax(wrong)), 1).to_pylist()[0]
            example = f"row_key {row['row_key']}, item_index {row['item_index']}, negatives {row['negatives']}"
    return {name: int(wrong.sum()) for name, wrong in broken.items()}, example

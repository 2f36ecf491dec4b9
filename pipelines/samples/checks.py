"""What the written samples must hold, checked on the staged table before it is moved into place."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.contract.negative_kinds import COARSE, KINDS, POPULARITY, UNIFORM
from pipelines.histories.user_stream import key_of
from pipelines.night import SampleConfig
from pipelines.samples.exclusions import Known
from pipelines.samples.user_context import Setting

CHECKED_ROWS = 2_000  # rows whose negatives and histories are looked up item by item, in the tables they come from
CHECKED_GROUPS = "00032"  # of each split, whose negatives are compared with each other: about a million rows
OWN, REPEATED, LOG_Q, LENGTH, LEAKED = "own", "repeated", "log_q", "length", "leaked"
BROKEN = {
    LEAKED: ("history_until", "rows have a history that reaches their own event or beyond it (leakage)"),
    LENGTH: ("negatives", "rows do not have {total} negatives, kinds and log q each"),
    OWN: ("negatives", "negatives are the row's own positive"),
    REPEATED: ("negatives", "negatives stand twice in their row"),
    LOG_Q: ("negative_log_q", "negatives have a log q that does not go with their kind, or is not a number"),
}
KIND_COUNTS = ["rows", "fell_back", *KINDS.values()]
Batches = Iterable[pa.RecordBatch]


def check_samples(staged: DataFrame, known: Known, setting: Setting, config: SampleConfig) -> dict[str, Any]:
    """Facts of the table: kinds, fallback share, what was looked up. InputError where a row breaks a promise or a tolerance.

    Kinds and leakage are counted on every row. Rows stand in an order of hashes, so the first of them are as good as any:
    of a million the negatives are compared with each other, and for 2,000 all is looked up in the logs and the state.
    """
    leaked = staged.where(F.col("history_until") >= F.col("event_time"))
    counted = _summed(staged.select("negative_kinds"), KIND_COUNTS, _kinds, setting)
    first = staged.where(F.col("group") < CHECKED_GROUPS)
    columns = ["row_key", "item_index", "negatives", "negative_kinds", "negative_log_q"]
    broken = _summed(first.select(*columns), list(BROKEN), _broken, setting) | {LEAKED: leaked.count()}
    for name, (column, what) in BROKEN.items():
        if broken[name]:
            example = broken["example"] if name != LEAKED else f"row_key {leaked.agg(F.min('row_key')).first()[0]}"
            _refuse(column, broken[name], what.format(total=config.negatives.total), example)
    kinds = {name: int(counted[name]) for name in KINDS.values()}
    hard = (config.negatives.coarse + config.negatives.fine) * int(counted["rows"])
    share = 1 - (kinds["coarse"] + kinds["fine"]) / hard if hard else 0.0
    if share > config.checks.fallback_share:
        raise InputError(
            f"table samples: easy negatives took {share:.1%} of the places of hard ones ({kinds['coarse']} coarse and "
            f"{kinds['fine']} fine were found for {hard} places), more than checks.fallback_share = "
            f"{config.checks.fallback_share:g} allows. Check that ranking_logs holds this day's requests and that its "
            "request_id is that of interactions, or raise checks.fallback_share"
        )
    looked_up = look_up(staged, known)
    return {"kinds": kinds, "rows_fell_back": int(counted["fell_back"]), "fallback_share": share} | looked_up


def look_up(staged: DataFrame, known: Known) -> dict[str, int]:
    """Look up the negatives and histories of 2,000 rows. Returns how many items of both were looked up."""
    # Rows stand in an order of hashes, so the first group of each split is as good as any.
    columns = ["user_id", "event_time", "item_index", "history", "negatives"]
    first = staged.where("group = '00000'").select("row_key", *columns)
    looked_at = first.orderBy("row_key").limit(CHECKED_ROWS).persist()
    try:
        users = looked_at.select(key_of("user_id").alias("user_key")).distinct()
        shown = F.to_json(F.struct("user_id", "item_index", "event_time", "item")).alias("example")
        items = looked_at.select(*columns[:3], F.explode("negatives").alias("item")).where("item != 0")
        done = known.done(users).withColumn("done", F.lit(True))
        found = items.join(done, on=["user_id", "item"], how="left").select(F.col("done").alias("wrong"), shown)
        negatives = _pairs("negatives", found, "are items that the user has, did or was shown")

        items = looked_at.select(*columns[:3], F.explode("history").alias("item")).where("item != 0")
        found = items.join(known.first_done(users).withColumn("did", F.lit(True)), on=["user_id", "item"], how="left")
        if known.setting.others:
            wrong = F.col("did").isNull() | (F.col("item") == F.col("item_index"))
            what = "are its own or no positive of its user (leakage)"
        else:
            wrong = F.col("did").isNull() | (F.col("at") >= F.col("event_time"))
            what = "are no earlier positive of its user (leakage)"
        history = _pairs("history", found.select(wrong.alias("wrong"), shown), what)
    finally:
        looked_at.unpersist()
    return {"checked_negatives": negatives, "checked_history_items": history}


def _pairs(column: str, found: DataFrame, what: str) -> int:
    """The number of rows of `found` (wrong: boolean or null, example); InputError where some are wrong."""
    row = found.agg(
        F.count(F.lit(1)).alias("pairs"),
        F.count(F.when(F.col("wrong"), 1)).alias("wrong"),
        F.min(F.when(F.col("wrong"), F.col("example"))).alias("example"),
    ).first()
    assert row is not None
    if row["wrong"]:
        _refuse(column, row["wrong"], f"items of {column} {what}", row["example"])
    return int(row["pairs"])


def _refuse(column: str, number: int, what: str, example: str) -> None:
    raise InputError(
        f"table samples, column {column}: {number} {what}, for example {example}. Nothing was written; please report this"
    )


def _summed(
    rows: DataFrame,
    names: list[str],
    count: Callable[[pa.RecordBatch, Setting], tuple[dict[str, int], str | None]],
    setting: Setting,
) -> dict[str, Any]:
    """The sums of `names` that `count` finds in batches of the rows, and the first example in order."""
    shared = rows.sparkSession.sparkContext.broadcast(replace(setting, tables={}))
    schema = ", ".join([*(f"`{name}` long" for name in names), "example string"])

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            counts, example = count(batch, shared.value)
            columns = [pa.array([counts.get(name, 0)]) for name in names] + [pa.array([example], pa.string())]
            yield pa.RecordBatch.from_arrays(columns, names=[*names, "example"])

    found = rows.mapInArrow(run, schema)
    row = found.agg(*(F.sum(name).alias(name) for name in names), F.min("example").alias("example")).first()
    assert row is not None
    return {name: row[name] or 0 for name in names} | {"example": row["example"]}


def _kinds(rows: pa.RecordBatch, setting: Setting) -> tuple[dict[str, int], None]:
    """Negatives by kind, rows, and those of them that have fewer hard negatives than places for them."""
    kinds = rows.column("negative_kinds")
    values = kinds.flatten().to_numpy()
    hard = np.concatenate([[0], np.cumsum(values >= COARSE)])
    edges = kinds.offsets.to_numpy() - kinds.offsets[0].as_py()
    fell_back = np.diff(hard[edges]) < setting.config.coarse + setting.config.fine
    by_kind = np.bincount(values, minlength=len(KINDS))
    counts = {name: int(by_kind[kind]) for kind, name in KINDS.items()}
    return counts | {"rows": rows.num_rows, "fell_back": int(fell_back.sum())}, None


def _broken(rows: pa.RecordBatch, setting: Setting) -> tuple[dict[str, int], str | None]:
    """How often each promise is broken that a row's negatives can tell by themselves, and an example."""
    total = setting.config.total
    parts = [rows.column(name) for name in ("negatives", "negative_kinds", "negative_log_q")]
    short = (np.stack([np.diff(part.offsets.to_numpy()) for part in parts]) != total).any(axis=0)
    broken = {LENGTH: short}
    if not short.any():
        items, kinds, log_q = (part.flatten().to_numpy().reshape(-1, total) for part in parts)
        ordered = np.sort(items, axis=1)
        broken[REPEATED] = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).sum(axis=1)
        broken[OWN] = (items == rows.column("item_index").to_numpy()[:, None]).sum(axis=1)
        # An item that is alone in the catalogue (0 and 1 are no items) is drawn with certainty.
        probable = (log_q > -np.inf) & ((log_q < 0) if setting.width > 3 else (log_q <= 0))
        drawn = (kinds == UNIFORM) | (kinds == POPULARITY)
        broken[LOG_Q] = np.where(drawn, ~probable, log_q != 0).sum(axis=1)
    example = None
    for wrong in broken.values():
        if wrong.any():
            row = rows.slice(int(np.argmax(wrong)), 1).to_pylist()[0]
            example = f"row_key {row['row_key']}, item_index {row['item_index']}, negatives {row['negatives']}"
    return {name: int(wrong.sum()) for name, wrong in broken.items()}, example

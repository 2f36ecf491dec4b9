"""What the written samples must hold, checked on the staged table before it is moved into place."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contexts import Setting
from pipelines.draws import COARSE, FINE, KINDS, POPULARITY, UNIFORM
from pipelines.errors import InputError
from pipelines.known import Known
from pipelines.night import SampleConfig

CHECKED_ROWS = 2_000  # rows whose negatives and histories are looked up item by item, in the tables they come from
OWN, REPEATED, LOG_Q, LENGTH, LEAKED = "own", "repeated", "log_q", "length", "leaked"
BROKEN = {
    OWN: ("negatives", "negatives are the row's own positive"),
    REPEATED: ("negatives", "negatives stand twice in their row"),
    LOG_Q: ("negative_log_q", "negatives have a log q that does not go with their kind, or is not a number"),
    LENGTH: ("negatives", "rows do not have {total} negatives, kinds and log q each"),
    LEAKED: ("history_until", "rows have a history that reaches their own event or beyond it (leakage)"),
}
COUNTS = ["rows", "fell_back", *(f"kind_{name}" for name in KINDS.values()), *BROKEN]


def check_samples(staged: DataFrame, known: Known, setting: Setting, config: SampleConfig) -> dict[str, Any]:
    """Facts of the table: kinds, fallback share, what was looked up. InputError where a row breaks a promise or a tolerance.

    Every row is checked for what it can tell by itself. Whether negatives and histories are what they must be is looked up
    in the users' logs and the state, for some rows.
    """
    summed = _count(staged, setting)
    for name, (column, what) in BROKEN.items():
        if summed[name]:
            _refuse(column, summed[name], what.format(total=config.negatives.total), summed["example"])
    kinds = {name: int(summed[f"kind_{name}"]) for name in KINDS.values()}
    hard = (config.negatives.coarse + config.negatives.fine) * int(summed["rows"])
    share = 1 - (kinds["coarse"] + kinds["fine"]) / hard if hard else 0.0
    if share > config.checks.fallback_share:
        raise InputError(
            f"table samples: easy negatives took {share:.1%} of the places of hard ones ({kinds['coarse']} coarse and "
            f"{kinds['fine']} fine were found for {hard} places), more than checks.fallback_share = "
            f"{config.checks.fallback_share:g} allows. Check that ranking_logs holds this day's requests and that its "
            "request_id is that of interactions, or raise checks.fallback_share"
        )
    looked_up = look_up(staged, known)
    return {"kinds": kinds, "rows_fell_back": int(summed["fell_back"]), "fallback_share": share} | looked_up


def look_up(staged: DataFrame, known: Known) -> dict[str, int]:
    """Look up the negatives and histories of 2,000 rows. Returns how many items of both were looked up."""
    # Rows stand in an order of hashes, so the first group of each split is as good as any.
    columns = ["user_id", "event_time", "item_index", "history", "negatives"]
    first = staged.where("group = '00000'").select("row_key", *columns)
    looked_at = first.orderBy("row_key").limit(CHECKED_ROWS).persist()
    try:
        users = looked_at.select("user_id").distinct()
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


def _count(staged: DataFrame, setting: Setting) -> Any:
    """COUNTS over all rows, and an example of a row that breaks a promise."""
    rows = staged.select(
        "row_key",
        "item_index",
        F.coalesce(F.col("history_until") >= F.col("event_time"), F.lit(False)).alias("leaked"),
        "negatives",
        "negative_kinds",
        "negative_log_q",
    )
    schema = ", ".join([*(f"`{name}` long" for name in COUNTS), "example string"])
    total = setting.config.total
    hard = setting.config.coarse + setting.config.fine
    alone = setting.width <= 3  # a single item is drawn with certainty: its log q is 0

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield _inspect(batch, total, hard, alone)

    found = rows.mapInArrow(run, schema)
    return found.agg(*(F.sum(name).alias(name) for name in COUNTS), F.min("example").alias("example")).first()


def _inspect(rows: pa.RecordBatch, total: int, hard: int, alone: bool) -> pa.RecordBatch:
    """One row of counts of a batch."""
    counts = dict.fromkeys(COUNTS, 0)
    counts["rows"] = rows.num_rows
    parts = [rows.column(name) for name in ("negatives", "negative_kinds", "negative_log_q")]
    sizes = np.stack([np.diff(part.offsets.to_numpy()) for part in parts])
    short = (sizes != total).any(axis=0)
    leaked = rows.column("leaked").to_numpy(zero_copy_only=False)
    broken = {LENGTH: short, LEAKED: leaked}
    if not short.any():
        items, kinds, log_q = (part.flatten().to_numpy().reshape(-1, total) for part in parts)
        drawn = (kinds == UNIFORM) | (kinds == POPULARITY)
        ordered = np.sort(items, axis=1)
        broken[REPEATED] = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).sum(axis=1)
        broken[OWN] = (items == rows.column("item_index").to_numpy()[:, None]).sum(axis=1)
        probable = (log_q < 0) & (log_q > -np.inf) if not alone else log_q <= 0
        broken[LOG_Q] = np.where(drawn, ~probable, log_q != 0).sum(axis=1)
        by_kind = np.bincount(kinds.ravel(), minlength=len(KINDS))
        counts |= {f"kind_{name}": int(by_kind[kind]) for kind, name in KINDS.items()}
        counts["fell_back"] = int((((kinds == COARSE) | (kinds == FINE)).sum(axis=1) < hard).sum())
    example = None
    for name, wrong in broken.items():
        counts[name] = int(wrong.sum())
        if counts[name]:
            place = int(np.argmax(wrong))
            example = f"row_key {rows.column('row_key')[place].as_py()}, item_index {rows.column('item_index')[place].as_py()}"
    columns = [pa.array([counts[name]]) for name in COUNTS] + [pa.array([example], pa.string())]
    return pa.RecordBatch.from_arrays(columns, names=[*COUNTS, "example"])

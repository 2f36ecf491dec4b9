"""What the written samples must hold, checked on the staged table before it is moved into place."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.draws import COARSE, FINE, KINDS, POPULARITY, UNIFORM, contains
from pipelines.errors import InputError
from pipelines.negatives import Setting, stream_of, with_contexts
from pipelines.night import SampleConfig

FORBIDDEN, OWN, REPEATED, LOG_Q, LENGTH = "forbidden", "own", "repeated", "log_q", "length"
BROKEN = {
    FORBIDDEN: "negatives are items that the user has, did or was shown",
    OWN: "negatives are the row's own positive",
    REPEATED: "negatives stand twice in their row",
    LOG_Q: "negatives have a log q that does not go with their kind, or is not a number",
    LENGTH: "rows do not have {total} negatives, kinds and log q each",
}
COUNTS = ["rows", "fell_back", *(f"kind_{name}" for name in KINDS.values()), *BROKEN]


def check_samples(staged: DataFrame, excluded: DataFrame, setting: Setting, config: SampleConfig) -> dict[str, Any]:
    """Facts of the table: kinds, fallback share, skew. InputError where a row breaks a promise or a tolerance.

    One pass over the staged rows, by user, beside the exclusions that the draws were made with (`excluded`).
    """
    rows = staged.select(
        F.xxhash64("user_id").alias("user_key"),
        "user_id",
        "item_index",
        "negatives",
        "negative_kinds",
        "negative_log_q",
    )
    schema = ", ".join([*(f"`{name}` long" for name in COUNTS), "example string"])
    shared = rows.sparkSession.sparkContext.broadcast(setting)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _inspect(batches, shared.value)

    blank = {"day": "date", "request_key": "long"}
    for name, kind in blank.items():
        rows = rows.withColumn(name, F.lit(None).cast(kind))
    found = stream_of(rows, excluded, None).mapInArrow(run, schema)
    summed = found.agg(*(F.sum(name).alias(name) for name in COUNTS), F.min("example").alias("example")).first()
    assert summed is not None
    for name, what in BROKEN.items():
        if summed[name]:
            raise InputError(
                f"table samples, column negatives: {summed[name]} {what.format(total=config.negatives.total)}, "
                f"for example {summed['example']}. Nothing was written; please report this"
            )
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
    return {"kinds": kinds, "rows_fell_back": int(summed["fell_back"]), "fallback_share": share}


def _inspect(batches: Iterable[pa.RecordBatch], setting: Setting) -> Iterator[pa.RecordBatch]:
    """One row of counts for each batch."""
    total = setting.config.total
    hard = setting.config.coarse + setting.config.fine
    for rows, context, group in with_contexts(batches, setting):
        counts = dict.fromkeys(COUNTS, 0)
        counts["rows"] = rows.num_rows
        lists = [pa.concat_arrays(rows.column(f"negative{part}").chunks) for part in ("s", "_kinds", "_log_q")]
        sizes = np.stack([np.diff(part.offsets.to_numpy()) for part in lists])
        example = ""
        if (sizes != total).any():
            counts[LENGTH] = int((sizes != total).any(axis=0).sum())
            example = f"user {rows.column('user_id')[int(np.argmax((sizes != total).any(axis=0)))]}"
        else:
            items, kinds, log_q = (part.flatten().to_numpy().reshape(-1, total) for part in lists)
            items = items.astype(np.int64)
            own = rows.column("item_index").to_numpy()[:, None]
            ordered = np.sort(items, axis=1)
            repeated = np.zeros(items.shape, bool)
            repeated[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
            drawn = np.isin(kinds, (UNIFORM, POPULARITY))
            broken = {
                FORBIDDEN: contains(context.forbidden, (group[:, None] * setting.width + items).ravel()).reshape(
                    items.shape
                )
                & (items > 0),
                OWN: items == own,
                REPEATED: repeated,
                LOG_Q: np.where(drawn, ~((log_q < 0) & np.isfinite(log_q)) & (setting.width > 3), log_q != 0),
            }
            for name, where in broken.items():
                counts[name] = int(where.sum())
                if counts[name] and not example:
                    row, slot = (int(x) for x in np.argwhere(where)[0])
                    example = f"item index {items[row, slot]} of user {rows.column('user_id')[row].as_py()!r}"
            for kind, name in KINDS.items():
                counts[f"kind_{name}"] = int((kinds == kind).sum())
            counts["fell_back"] = int((np.isin(kinds, (COARSE, FINE)).sum(axis=1) < hard).sum())
        columns = [pa.array([counts[name]]) for name in COUNTS] + [pa.array([example or None], pa.string())]
        yield pa.RecordBatch.from_arrays(columns, names=[*COUNTS, "example"])

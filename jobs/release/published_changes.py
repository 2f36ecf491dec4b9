"""Writes what an update within the day has changed, for stores that apply changes instead of whole releases."""

import tempfile
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import functions as F

from jobs.common.runner import Context
from jobs.release.store import find_release
from model.serving.release import MODEL
from model.training.table_diff import ChangedRows, changed_rows
from pipelines.storage.update import Update

FOLDER = "changes"


def write_changes(context: Context, update: Update, staging: str) -> dict[str, Any]:
    """Write the changes against the release that the update continues from. Returns their counts.

    changes/items: item_id, item_index, embedding of items that are new or whose vector changed. changes/gone: item_id,
    item_index of items that are not recalled any more. changes/tables/NAME.parquet: row, values of embedding tables.
    """
    warehouse, ds = context.warehouse, context.ds
    before = find_release(context, update.base)
    # Ids are text; a release of an earlier version has those of the items table.
    columns = [F.col("item_id").cast("string").alias("item_id"), "item_index", "embedding"]
    now = warehouse.read("item_embeddings", ds).select(*columns)
    then = context.spark.read.parquet(*before.files("embeddings")).select(*columns)
    known = then.select("item_index", F.col("embedding").alias("then"))
    changed = now.join(known, on="item_index", how="left").where("then IS NULL OR embedding != then")
    changed.select(now.columns).sort("item_index").write.parquet(f"{staging}/{FOLDER}/items")
    gone = then.select("item_id", "item_index").join(now, on="item_index", how="left_anti")
    gone.sort("item_index").write.parquet(f"{staging}/{FOLDER}/gone")
    with tempfile.TemporaryDirectory(prefix="nightjar-changes-") as local:
        before.files(MODEL)
        pieces = changed_rows(f"{before.uri}/{MODEL}", warehouse.path("models", ds))
        rows = {
            table: _write_rows(Path(local, file_of(table)), changes)
            for table, changes in groupby(pieces, attrgetter("table"))
        }
        warehouse.upload(Path(local), f"{staging}/{FOLDER}/tables")
    read = context.spark.read.parquet
    counts = {name: read(f"{staging}/{FOLDER}/{name}").count() for name in ("items", "gone")}
    return counts | {"tables": rows}


def file_of(table: str) -> str:
    """The file of a table's changed rows: tables.user/age.weight -> tables.user.age.weight.parquet."""
    return f"{table.replace('/', '.')}.parquet"


def _write_rows(file: Path, pieces: Iterator[ChangedRows]) -> int:
    """Write the changed rows of one table as Parquet. Returns their number."""
    rows, writer = 0, None
    try:
        for piece in pieces:
            offsets = np.arange(len(piece.rows) + 1, dtype=np.int32) * piece.values.shape[1]
            values = pa.ListArray.from_arrays(pa.array(offsets), pa.array(piece.values.ravel()))
            table = pa.table({"row": piece.rows, "values": values})
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
            rows += len(piece.rows)
    finally:
        if writer:
            writer.close()
    return rows

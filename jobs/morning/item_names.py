"""Names of a few items for the page: a title if the table items has one, the id, and their categories."""

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.common.runner import Context, log
from jobs.night.steps import open_night
from model.io.urls import resolve
from pipelines.inputs.contracts import quoted

TITLES = ("title", "name", "item_name", "item_title", "product_name", "display_name")
ABOUT = 2  # features shown beside a name
LONGEST = 80  # characters of a name


def names_of(context: Context, items: Collection[int]) -> dict[str, dict[str, Any]]:
    """item index (as text) -> id, title (None if items has no such column) and about (categories)."""
    ids = _ids(context, items)
    names: dict[str, dict[str, Any]] = {
        str(index): {"id": id_, "title": None, "about": ""} for id_, index in ids.items()
    }
    night = open_night(context)
    day = night.inputs.snapshot_at("items", context.ds, strictly_before=False)
    if day is None or not ids:
        return names
    snapshot = context.warehouse.read_input(night.inputs.uri("items"), [day])
    key = context.config.inputs.items.columns.get("item_id", "item_id")
    title, about = title_column(context, snapshot), _about(context, snapshot)
    columns = [quoted(key).cast("string").alias("_id"), *(quoted(name) for name in about)]
    columns.append((quoted(title) if title else F.lit(None)).alias("_title"))
    for row in snapshot.where(quoted(key).cast("string").isin(sorted(ids))).select(*columns).collect():
        name = names[str(ids[row["_id"]])]
        name["title"] = str(row["_title"]).strip()[:LONGEST] or None if row["_title"] is not None else None
        name["about"] = " · ".join(text for column in about if (text := _text(row[column])))
    return names


def _ids(context: Context, items: Collection[int]) -> dict[str, int]:
    """item id -> index, from the vocabularies of ds, which also know items that are not live. Reads them in batches."""
    wanted, ids = pa.array(sorted(items), pa.int32()), dict[str, int]()
    for url in context.warehouse.data_files(context.warehouse.path("vocabularies", context.ds)):
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["feature", "index", "value"]):
                of_items = pc.equal(batch.column("feature"), "item_id")
                rows = batch.filter(pc.and_(of_items, pc.is_in(batch.column("index").cast(pa.int32()), wanted)))
                ids |= dict(zip(rows.column("value").to_pylist(), rows.column("index").to_pylist()))
    return ids


def title_column(context: Context, snapshot: DataFrame) -> str | None:
    """`report.item_title`, else the first of TITLES that items has as text; None if it has none."""
    texts = [name for name, kind in snapshot.dtypes if kind == "string"]
    wanted = context.config.report.item_title
    if wanted and wanted not in snapshot.columns:
        log.warning(
            "report %s: items has no column %s (report.item_title), so the page names items by id; it has %s",
            context.ds, wanted, ", ".join(snapshot.columns),
        )  # fmt: skip
        return None
    return wanted or next((name for name in TITLES if name in texts), None)


def _about(context: Context, snapshot: DataFrame) -> list[str]:
    """The first categorical features of items."""
    kinds = ("categorical", "multi_categorical")
    names = [feature.name for feature in context.config.features.item if feature.kind in kinds]
    return [name for name in names if name in snapshot.columns][:ABOUT]


def _text(value: Any) -> str:
    """A value, or the values of a list, as text."""
    if value is None:
        return ""
    return ", ".join(map(str, value[:3])) if isinstance(value, list) else str(value)[:LONGEST]

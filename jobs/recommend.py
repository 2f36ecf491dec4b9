"""Batch top-K from a release: user_id, item_id, rank (1 is best), score, for all users or those listed."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.support.embeddings import within_model
from jobs.support.nights import open_night
from jobs.support.release import find_release, require_same_lineage, update_of
from jobs.support.retrieval import top_items
from jobs.support.runner import Context, log, main, parser, positive
from model.release import INDEX, ITEMS, MODEL
from model.schema import FeatureSchema
from pipelines.errors import UsageError
from pipelines.joins import broadcast_small
from pipelines.queries import user_queries
from pipelines.updates import UpdateWarehouse


def run(context: Context) -> None:
    """Write the recommendations to --output."""
    args, warehouse = context.args, context.warehouse
    release = find_release(context, args.release)
    if (update := update_of(release)) and release.manifest["ds"] == context.ds:
        context = replace(context, warehouse=UpdateWarehouse(warehouse, context.ds, update))
    require_same_lineage(context, release)
    night = open_night(context)
    users = _listed(context, args.users) if args.users else None
    rows = within_model(
        user_queries(night, context.config.features, users), FeatureSchema.model_validate(release.manifest["schema"])
    )
    # Checked here, once: the executors read what this process has seen to be whole.
    (index,), files, _ = release.files(INDEX), tuple(release.files(ITEMS)), release.files(MODEL)
    model = f"{release.uri}/{MODEL}"
    found = top_items(rows, model, index, release.release_id, files, args.k, args.exclude_seen)
    embedded = context.spark.read.parquet(*files).select("item_index", "item_id")
    snapshot = night.inputs.snapshot_at("users", context.ds, strictly_before=False)
    id_type = night.inputs.id_type("users", snapshot) if snapshot else "string"
    out = (
        found.join(broadcast_small(embedded, release.manifest["items"]), on="item_index", how="inner")
        .select(F.col("user_id").cast(id_type).alias("user_id"), "item_id", "rank", "score")
        .sort("user_id", "rank")
    )
    written = warehouse.export(out, args.output, overwrite=context.force)
    log.info("recommend %s: %s rows from release %s in %s", context.ds, f"{written:,}", release.release_id, args.output)


def _listed(context: Context, path: str) -> DataFrame:
    """One user id a line. UsageError where there is no such file, or nothing in it."""
    if not Path(path).is_file():
        raise UsageError(f"--users {path}: there is no such file; write one user id a line")
    ids = sorted({line.strip() for line in Path(path).read_text().splitlines() if line.strip()})
    if not ids:
        raise UsageError(f"--users {path}: the file names no user; write one user id a line")
    return context.spark.createDataFrame([(user,) for user in ids], "user_id string")


def _flags() -> argparse.ArgumentParser:
    flags = parser("recommend", __doc__ or "")
    flags.add_argument("--k", type=positive, default=100, help="items a user (default 100)")
    flags.add_argument("--exclude-seen", action="store_true", help="leave out items that the user already had")
    flags.add_argument("--output", required=True, metavar="DIR", help="folder for the Parquet files")
    flags.add_argument("--users", metavar="FILE", help="user ids, one a line; default: all known users")
    flags.add_argument("--release", metavar="ID", help="release to use; default: the current one")
    return flags


if __name__ == "__main__":
    sys.exit(main(_flags(), run))

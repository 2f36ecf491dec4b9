"""Write the top K items of many users from a release: user_id, item_id, rank (1 is best), score."""

import argparse
import logging
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import replace
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.common.runner import Context, log, main, parser, positive
from jobs.inference.embed import within_model
from jobs.inference.top_items import top_items
from jobs.night.steps import open_night
from jobs.release.store import find_release, require_same_lineage, update_of
from model.serving.coherence import check_release
from model.serving.release import INDEX, ITEMS, MODEL
from pipelines.contract.errors import InputError, UsageError
from pipelines.contract.schema import FeatureSchema
from pipelines.joins import broadcast_small
from pipelines.night import Night
from pipelines.queries import known_users, user_queries, with_held_out_items
from pipelines.storage.update_warehouse import UpdateWarehouse


def run(context: Context) -> None:
    """Write the recommendations to --output."""
    args, warehouse = context.args, context.warehouse
    if args.unknown == "refuse" and not args.users:
        raise UsageError("--unknown refuse is for the users of a file: name it with --users FILE")
    release = find_release(context, args.release)
    if (update := update_of(release)) and release.manifest["ds"] == context.ds:
        context = replace(context, warehouse=UpdateWarehouse(warehouse, context.ds, update))
    require_same_lineage(context, release)
    night = open_night(context)
    id_type = user_id_type(night)
    users = _listed(context, night, args.users, id_type, refuse=args.unknown == "refuse") if args.users else None
    queries = user_queries(night, context.config.features, users)
    if args.exclude_seen:
        queries = with_held_out_items(queries, night)
    rows = within_model(queries, FeatureSchema.model_validate(release.manifest["schema"]))
    # Check the files once on the driver; the executors read them without checks.
    check_release(release)
    (index,), files, _ = release.files(INDEX), tuple(release.files(ITEMS)), release.files(MODEL)
    model = f"{release.uri}/{MODEL}"
    top = top_items(rows, model, index, release.release_id, files, args.k, args.exclude_seen)
    item_id = F.col("item_id").cast("bigint" if release.has_integer_ids else "string").alias("item_id")
    embedded = context.spark.read.parquet(*files).select("item_index", item_id)
    out = (
        top.join(broadcast_small(embedded, release.manifest["items"]), on="item_index", how="inner")
        .select(F.col("user_id").cast(id_type).alias("user_id"), "item_id", "rank", "score")
        .sort("user_id", "rank")
    )
    written = warehouse.export(out, args.output, overwrite=context.force)
    log.info("recommend %s: %s rows from release %s in %s", context.ds, f"{written:,}", release.release_id, args.output)


def user_id_type(night: Night) -> str:
    """The Spark type of user_id in the output: that of the newest users snapshot, if every id fits it.

    It is string if there is no snapshot, or if interactions has ids of another kind.
    """
    snapshot = night.inputs.snapshot_at("users", night.ds, strictly_before=False)
    if snapshot is None:
        return "string"
    days = [ds for ds in night.inputs.days("interactions") if ds <= night.ds]
    types = {night.inputs.id_type("users", snapshot), *[night.inputs.id_type("interactions", ds) for ds in days[-1:]]}
    if len(types) > 1:
        return "bigint" if types <= {"tinyint", "smallint", "int", "bigint"} else "string"
    return types.pop()


def _listed(context: Context, night: Night, path: str, id_type: str, *, refuse: bool) -> DataFrame:
    """The user ids in a file. Logs how many of them are known.

    Raises InputError if none is known, if one cannot be written as `id_type`, or, with `refuse`, if one is unknown.
    """
    listed = context.spark.createDataFrame([(user,) for user in _read_ids(context, path)], "user_id string")
    _refuse_unwritable(listed, path, id_type)
    known = known_users(night)
    count, known_count = listed.count(), listed.join(known, on="user_id", how="left_semi").count()
    unknown = listed.join(known, on="user_id", how="left_anti").agg(F.min("user_id")).first()
    example = unknown[0] if unknown else None
    if known_count == 0:
        forms = [row["user_id"] for row in known.orderBy("user_id").limit(3).collect()]
        raise InputError(
            f"--users {path}: none of its {count:,} users is known on ds={context.ds}, for example {example!r}. Known ids "
            f"look like {', '.join(map(repr, forms))}: write the values of column user_id of interactions, one per line"
        )
    if refuse and example is not None:
        raise InputError(
            f"--users {path}: {count - known_count:,} of its {count:,} users are unknown on ds={context.ds}, for example "
            f"{example!r}: remove them, or give them the items of a new user with --unknown default"
        )
    note = f", for example {example!r}; unknown users get the items of a new user" if example is not None else ""
    log.log(
        logging.INFO if example is None else logging.WARNING,
        "recommend %s: of %s users in %s, %s known, %s unknown%s",
        context.ds, f"{count:,}", path, f"{known_count:,}", f"{count - known_count:,}", note,
    )  # fmt: skip
    return listed


def _refuse_unwritable(listed: DataFrame, path: str, id_type: str) -> None:
    """Raises InputError if an id is not written as a value of this type would be: its user_id would be null, or another's."""
    as_written = F.col("user_id").cast(id_type).cast("string")
    wrong = listed.where(~as_written.eqNullSafe(F.col("user_id"))).agg(F.count(F.lit(1)).alias("n"), F.min("user_id"))
    count, example = wrong.first() or (0, None)
    if count:
        raise InputError(
            f"--users {path}: {count:,} of its lines cannot be user ids, which are {id_type} in table users, for example "
            f"{example!r}: correct or remove them"
        )


def _read_ids(context: Context, path: str) -> list[str]:
    """Read one user id per line, without repeats. A byte-order mark and a header line with the column's name are skipped.

    Raises UsageError if the file is missing, contains no id, or is not UTF-8 (or UTF-16 with a byte-order mark).
    """
    if not Path(path).is_file():
        raise UsageError(f"--users {path}: the file does not exist; write one user id per line")
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--users {path}: the file is not UTF-8 (byte {error.start}); save it as UTF-8 text") from None
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    names = {
        "user_id",
        *(
            table.columns.get("user_id", "")
            for table in (context.config.inputs.users, context.config.inputs.interactions)
        ),
    }
    if lines and lines[0].strip('"').casefold() in {name.casefold() for name in names}:
        log.info("recommend %s: the first line of %s is the name of the column and is skipped", context.ds, path)
        lines = lines[1:]
    if not lines:
        raise UsageError(f"--users {path}: the file names no user; write one user id per line")
    return sorted(set(lines))


def _flags() -> argparse.ArgumentParser:
    flags = parser("recommend", __doc__ or "")
    flags.add_argument("--k", type=positive, default=100, help="items per user (default 100)")
    flags.add_argument("--exclude-seen", action="store_true", help="leave out items that the user already has")
    flags.add_argument("--output", required=True, metavar="DIR", help="folder for the Parquet files")
    flags.add_argument("--users", metavar="FILE", help="file with one user id per line; default: all known users")
    flags.add_argument(
        "--unknown",
        choices=["default", "refuse"],
        default="default",
        help="users of the file that are unknown on ds: write the items of a new user (default), or refuse the file",
    )
    flags.add_argument("--release", metavar="ID", help="release to use; default: the current one")
    return flags


if __name__ == "__main__":
    sys.exit(main(_flags(), run))

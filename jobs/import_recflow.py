"""Import RecFlow (its folder all_stage, or the folder that holds it) into the input tables of the warehouse."""

import logging
import sys
from dataclasses import astuple

from jobs.common.runner import Context, main, parser
from pipelines.datasets.recflow import recflow_tables, source_files
from pipelines.storage.import_receipt import ImportReceipt

log = logging.getLogger("nightjar")


def run(context: Context) -> None:
    """Read the feather files under --source and write interactions, ranking_logs, users and items."""
    source = context.args.source.rstrip("/")
    files = source_files(source)
    receipt = ImportReceipt(context.warehouse, "import_recflow", [list(astuple(file)) for file in files])
    if receipt.done() and not context.force:
        log.info("this RecFlow is imported already; --force imports it again")
        return
    tables, seen = recflow_tables(context.spark, source, files)
    log.info(
        "%s rows by their last stage: %s; without any stage: %s (left out of the ranking logs); %s rows have an answer but no "
        "realshow and count as shown",
        f"{seen.rows:,}",
        ", ".join(f"{stage} {rows:,}" for stage, rows in seen.stages.items()),
        f"{seen.without_stage:,}",
        f"{seen.answered_unshown:,}",
    )
    counts = receipt.write(tables)
    log.info(
        "imported RecFlow: %s files, %s interactions and %s ranked videos on %s days (%s to %s)",
        f"{len(files):,}",
        f"{sum(counts['interactions'].values()):,}",
        f"{sum(counts['ranking_logs'].values()):,}",
        f"{len(seen.days):,}",
        seen.days[0],
        seen.days[-1],
    )


if __name__ == "__main__":
    flags = parser("import_recflow", __doc__, with_ds=False)
    flags.add_argument("--source", required=True, metavar="DIR", help="the folder (or URI) of RecFlow's feather files")
    sys.exit(main(flags, run))

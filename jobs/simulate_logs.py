"""Write the logs of a simulated product, and the truth behind them, as input tables of the warehouse."""

import logging
import sys

from pyspark import StorageLevel

from jobs.common.runner import Context, main, parser
from pipelines.simulation import product
from pipelines.storage.import_receipt import ImportReceipt

log = logging.getLogger("nightjar")


def run(context: Context) -> None:
    """Simulate every day of the config's `simulation` section."""
    spark, sim, seed = context.spark, context.config.simulation, context.config.seed
    receipt = ImportReceipt(context.warehouse, "simulate_logs", [sim.model_dump(mode="json"), seed])
    if receipt.done() and not context.force:
        log.info("the simulated logs exist already; --force simulates them again")
        return
    world = product.all_items(spark, sim, seed)
    # Both event tables are derived from the same requests, which are simulated once and persisted on disk.
    requests = product.simulated_requests(spark, sim, seed).persist(StorageLevel.DISK_ONLY)
    counts = receipt.write(
        {
            "users": product.users_snapshot(spark, sim, seed),
            "items": product.items_snapshots(world, sim),
            "interactions": product.interactions(requests),
            "ranking_logs": product.ranking_logs(requests, sim),
            "sim_truth_users": product.truth_of_users(spark, sim, seed),
            "sim_truth_items": product.truth_of_items(world, sim),
        }
    )
    requests.unpersist()
    log.info(
        "simulated %s days: %s users, %s items, %s interactions, %s ranking log rows",
        sim.days,
        f"{sim.users:,}",
        f"{sim.items:,}",
        f"{sum(counts['interactions'].values()):,}",
        f"{sum(counts['ranking_logs'].values()):,}",
    )


if __name__ == "__main__":
    sys.exit(main(parser("simulate_logs", __doc__, with_ds=False), run))

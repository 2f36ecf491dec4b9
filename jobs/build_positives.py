"""Build the positives, user histories, item statistics and vocabularies of a day from its log and last night's state."""

import sys

import numpy as np

from jobs.common.plots import popularity_before_after
from jobs.common.runner import Context, log, main, parser, positive
from jobs.morning.at_end import refresh_night
from jobs.night.steps import as_job, open_night, sample_config
from jobs.tracking.job_run import log_partition
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.tracker import Tracker
from pipelines.positives.build import build_positives


def run(context: Context, tracker: Tracker) -> None:
    """Write the tables of the step, and log them to MLflow."""
    config = context.config
    night = open_night(context, context.bootstrap_days)
    manifest, done = build_positives(
        night,
        sample_config(config),
        config.hash_of("inputs", "features", "positives", "negatives") + f"-{config.evaluation.split}",
        keep_last_out=config.evaluation.split == "last_positive",
        force=context.force,
    )
    if not done:
        log.info("build_positives %s: already done (%s rows)", context.ds, f"{manifest.rows:,}")
        return
    log.info("build_positives %s: %s rows", context.ds, f"{manifest.rows:,}")
    with tracker.job("build_positives") as job:
        log_partition(job, context, manifest, "positives")
        job.outcome = f"{manifest.rows:,} rows"
        job.params({"features": config.features.model_dump(), "positives": config.positives.model_dump()})
        sizes = context.warehouse.require("vocabularies", context.ds, "").facts["sizes"]
        job.metrics({f"vocabulary.{name}": float(size) for name, size in sizes.items()})
        stats = context.warehouse.read("item_stats", context.ds)
        # The plot needs the most popular items only.
        top = stats.orderBy("window_count", ascending=False).select("window_count", "sampled_count").limit(100_000)
        counts = top.toPandas()
        job.figure(
            popularity_before_after(
                counts["window_count"].to_numpy(np.float64), counts["sampled_count"].to_numpy(np.float64)
            ),
            "popularity_before_after",
        )


if __name__ == "__main__":
    flags = parser("build_positives", __doc__)
    flags.add_argument(
        "--bootstrap-days",
        type=positive,
        metavar="N",
        help="run a first night: read N days of logs, no earlier state",
    )
    sys.exit(main(flags, as_job("build_positives", run, refresh_night), before_spark=require_record))

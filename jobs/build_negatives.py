"""Build the samples of a day: every positive with its negatives, shuffled globally and written in equal row groups."""

import sys

from jobs.common.plots import negatives_by_kind
from jobs.common.runner import Context, log, main, parser
from jobs.morning.at_end import refresh_night
from jobs.night.steps import as_job, open_night, sample_config
from jobs.release.mined_candidates import write_mined_candidates
from jobs.tracking.job_run import log_partition
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.tracker import Tracker
from pipelines.samples.build import build_negatives
from pipelines.samples.packing import positives_in


def run(context: Context, tracker: Tracker) -> None:
    """Write table `samples`, and log it to MLflow."""
    config = context.config
    mined = write_mined_candidates(context) if config.negatives.mined else None
    manifest, done = build_negatives(
        open_night(context),
        sample_config(config),
        config.hash_of("inputs", "features", "positives", "negatives", "samples"),
        mined=mined,
        keep_last_out=config.evaluation.split == "last_positive",
        force=context.force,
    )
    if not done:
        log.info("build_negatives %s: already done (%s rows)", context.ds, f"{manifest.rows:,}")
        return
    packed = f" in {manifest.rows:,} packed rows" if "pack" in manifest.facts else ""
    log.info("build_negatives %s: %s rows%s", context.ds, f"{positives_in(manifest):,}", packed)
    with tracker.job("build_negatives") as job:
        log_partition(job, context, manifest, "samples")
        job.outcome = f"{positives_in(manifest):,} rows with {manifest.facts['negatives']} negatives"
        job.params({"negatives": config.negatives.model_dump(), "samples": config.samples.model_dump()})
        job.tags({"ranking_logs": "present" if manifest.facts["ranking_logs"] else "absent: no hard negatives"})
        facts = manifest.facts
        if config.negatives.mined:
            job.tags({"mined_from": facts["mined_from"] or "no earlier release: no mined negatives"})
        job.figure(negatives_by_kind(facts["kinds"], facts["quotas"], positives_in(manifest)), "negatives_by_kind")


if __name__ == "__main__":
    job = as_job("build_negatives", run, refresh_night)
    sys.exit(main(parser("build_negatives", __doc__), job, before_spark=require_record))

"""Run an update within the day: train on the events since the last update, and publish what changed.

An update trains only the embedding tables of ids. The release in use must be that of the night before ds, or an update of ds
that continues from it. The night of ds ignores its updates: it starts from the model of the night before.
"""

import sys
from dataclasses import replace
from datetime import datetime, timedelta

from pyspark.sql import functions as F

from jobs import build_negatives, build_positives, publish_items, train
from jobs.common.runner import Context, log, main, parser
from jobs.night.lost_day import night_before
from jobs.night.preconditions import require_trainers
from jobs.night.steps import Step, open_night, run_steps
from jobs.release.store import current_release, night_of, update_of
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.tracker import Tracker
from model.serving.release import Release
from pipelines.contract.errors import InputError, UsageError
from pipelines.positives.select import is_positive
from pipelines.storage.locks import locked
from pipelines.storage.update import Update
from pipelines.storage.update_warehouse import UpdateWarehouse, delete_updates
from pipelines.storage.warehouse import Warehouse

STEPS: tuple[tuple[str, Step], ...] = (
    ("build_positives", build_positives.run),
    ("build_negatives", build_negatives.run),
    ("train", train.run),
    ("publish_items", publish_items.run),
)


def run(context: Context) -> None:
    """Run one update. Does nothing if there is no event since the last one."""
    require_trainers(context)
    with locked(context.warehouse, context.ds, "incremental"):
        update = next_update(context)
        if update is None:
            _complete(context)
            return
        delete_updates(context.warehouse, context.ds, keep=update.after)
        run_steps(_within(context, update), STEPS)
        delete_updates(context.warehouse, context.ds, keep=update.number)


def next_update(context: Context) -> Update | None:
    """The next update: from the end of the last one (or the start of ds) to --until (or the newest positive).

    Returns None if no positive is newer. Raises InputError if an update of ds cannot continue from the release in use, and
    UsageError if --until is outside ds.
    """
    ds = context.ds
    in_use = current_release(context)
    last = update_of(in_use) if in_use else None
    of_ds = last is not None and in_use is not None and in_use.manifest["ds"] == ds
    if in_use is None or not (of_ds or (last is None and in_use.manifest["ds"] == night_before(context))):
        what = f"is {in_use.release_id}" if in_use else "does not exist"
        raise InputError(
            f"an update of ds={ds} continues from the release of the night before, and the release in use {what}: run "
            f"jobs.nightly for ds={night_before(context)} and check that it is published. If the night of ds={ds} is done, it "
            "needs no update"
        )
    night = night_of(context, in_use)
    if not _is_of(night, context.warehouse, night.manifest["ds"]):
        raise InputError(
            f"release {night.release_id} is not of the model of ds={night.manifest['ds']}, which was trained again since: "
            f"publish that one (jobs.publish_items --ds {night.manifest['ds']}), or go to its release (jobs.releases rollback)"
        )
    # After a rollback to an older update, restart from the nightly release: the tables of that update were deleted or
    # replaced.
    before = last if last and _is_of(in_use, UpdateWarehouse(context.warehouse, ds, last), ds) else None
    since = before.until if before else _moment(datetime.fromisoformat(ds) - timedelta(microseconds=1))
    until = _until(context, since)
    if until is None:
        log.info("incremental %s: no positive since %s; nothing to do", ds, since)
        return None
    if before is None:
        return Update(1, since, until, None, night.release_id, night.release_id)
    return Update(before.number + 1, since, until, before.number, in_use.release_id, night.release_id)


def _is_of(release: Release, warehouse: Warehouse, ds: str) -> bool:
    """Whether a release was made from the model of ds that the warehouse contains."""
    model = warehouse.manifest("models", ds)
    return model is not None and model.fingerprint == release.manifest["inputs"]["models"]


def _until(context: Context, since: str) -> str | None:
    """The end of the update; None if there is no positive after `since`."""
    asked = context.args.until
    if asked is not None:
        try:
            moment = datetime.fromisoformat(asked)
        except ValueError:
            moment = datetime.min
        if moment.tzinfo is not None or moment.date().isoformat() != context.ds:
            raise UsageError(
                f"--until {asked!r} is not a time of ds={context.ds}: write it in UTC as {context.ds}T12:00, without "
                "a time zone"
            )
        asked = _moment(moment)
    night = open_night(context, 0)
    events = night.inputs.events("interactions", night.log_days(), check=False).where(
        is_positive(context.config.positives)
    )
    at = F.col("event_time")
    new = events.where(at > F.lit(since).cast("timestamp"))
    new = new.where(at <= F.lit(asked).cast("timestamp")) if asked else new
    newest = new.agg(F.max(F.unix_micros(at))).first()
    if newest is None or newest[0] is None:
        return None
    return asked or _moment(datetime(1970, 1, 1) + timedelta(microseconds=newest[0]))


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def _within(context: Context, update: Update) -> Context:
    """The context of the steps: they train on all events and hold none out."""
    config = context.config
    changes = {
        "positives": config.positives.model_copy(update={"valid_hours": 0.0}),
        "evaluation": config.evaluation.model_copy(update={"split": "next_days"}),
    }
    warehouse = UpdateWarehouse(context.warehouse, context.ds, update)
    return replace(context, config=config.model_copy(update=changes), warehouse=warehouse)


def _complete(context: Context) -> None:
    """Finish an update whose process was killed right after it had published."""
    in_use = current_release(context)
    update = update_of(in_use) if in_use else None
    if in_use is None or update is None:
        return
    tracker = Tracker(context.config, UpdateWarehouse(context.warehouse, context.ds, update), context.ds)
    if version := tracker.registry.version_of(in_use.release_id):
        tracker.registry.make_champion(version)
    tracker.close_night("FINISHED")


if __name__ == "__main__":
    flags = parser("incremental", __doc__)
    flags.add_argument(
        "--until", metavar="TIME", help="end of the update, as YYYY-MM-DDTHH:MM in UTC; default: the newest event"
    )
    sys.exit(main(flags, run, before_spark=require_record))

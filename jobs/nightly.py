"""Run a night from logs to release: build_positives, build_negatives, train, evaluate, publish_items, under one MLflow run.

With --no-data, run the night of a day that has no interactions: it carries state and model forward, and the current release
stays in use.
"""

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from jobs import build_negatives, build_positives, evaluate, publish_items, train
from jobs.common.days import add_days, days_of
from jobs.common.runner import Context, log, main, parser, positive
from jobs.morning.at_end import write_report
from jobs.morning.page import one_line
from jobs.morning.summary import summary
from jobs.night.earlier_nights import evaluate_earlier_nights
from jobs.night.lost_day import carry_night
from jobs.night.preconditions import require_trainers, require_truth
from jobs.night.steps import Step, run_steps
from jobs.release.gates import GateError
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.tracker import Tracker
from pipelines.contract.errors import NightjarError, UsageError
from pipelines.storage.locks import locked
from pipelines.storage.update_warehouse import delete_updates


def evaluate_nights(context: Context, tracker: Tracker) -> None:
    """Evaluate the nights before ds on the log of ds, then the night of ds if the log of a later day exists (a back-fill)."""
    evaluate_earlier_nights(context, tracker, evaluate.run)
    evaluate.run(context, tracker)


STEPS: tuple[tuple[str, Step], ...] = (
    ("build_positives", build_positives.run),
    ("build_negatives", build_negatives.run),
    ("train", train.run),
    ("evaluate", evaluate_nights),
    ("publish_items", publish_items.run),
)


def run(context: Context) -> None:
    """Run the night of --ds, or those of --from to --to in order. --bootstrap-days applies to the first night only."""
    days = days_of(context.args)
    if context.args.no_data:
        _carry(context, days)
        return
    require_trainers(context)
    require_truth(context)
    seconds: dict[str, float] = {}
    try:
        for number, ds in enumerate(days):
            if len(days) > 1:
                log.info("nightly %s: night %d of %d", ds, number + 1, len(days))
            _timed(replace(context.at(ds), bootstrap_days=0 if number else context.bootstrap_days), seconds)
    except NightjarError:
        print_summary(context, seconds)
        raise
    print_summary(context, seconds)


def _timed(context: Context, seconds: dict[str, float]) -> None:
    """Run a night, and add its time to `seconds` unless it fails. A night that a gate refuses is done."""
    started = time.monotonic()
    try:
        run_night(context)
    except GateError:
        seconds[context.ds] = time.monotonic() - started
        raise
    seconds[context.ds] = time.monotonic() - started


def run_night(context: Context) -> None:
    """Run all steps of one ds; steps that are done are skipped. Raises LockedError if another process works on this ds."""
    with locked(context.warehouse, context.ds, "nightly"):
        run_steps(context, STEPS, write_report)
        delete_updates(context.warehouse, context.ds)  # The night contains what updates within the day learned from.


def _carry(context: Context, days: list[str]) -> None:
    """Run the night of one day without data. Raises UsageError for several days or with --bootstrap-days."""
    if len(days) > 1 or context.bootstrap_days:
        raise UsageError(
            "--no-data is for one day with a night before it: use it with --ds only, once for each lost day"
        )
    lost, started = context.at(days[0]), time.monotonic()
    with locked(lost.warehouse, lost.ds, "nightly"):
        run_steps(lost, (("carry_forward", carry_night),), write_report)
        delete_updates(lost.warehouse, lost.ds)
    print_summary(context, {lost.ds: time.monotonic() - started})


def print_summary(context: Context, seconds: Mapping[str, float]) -> None:
    """Print the nights that are done, or that a gate refused. `seconds`: how long each took. An error here is a warning."""
    if not seconds or not log.isEnabledFor(logging.INFO):
        return
    try:
        print(summary(context, seconds), flush=True)
    except Exception as error:
        log.warning("nightly %s: the summary was not printed: %s", list(seconds)[-1], one_line(error))


def _flags() -> argparse.ArgumentParser:
    flags = add_days(parser("nightly", __doc__ or "", with_ds=False))
    flags.add_argument(
        "--bootstrap-days",
        type=positive,
        metavar="N",
        help="run a first night: read N days of logs up to ds, and no state of an earlier night",
    )
    flags.add_argument(
        "--no-data",
        action="store_true",
        help="ds has no interactions: carry state and model of the night before forward, keep the current release",
    )
    return flags


if __name__ == "__main__":
    sys.exit(main(_flags(), run, before_spark=require_record))

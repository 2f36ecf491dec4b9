"""A night from logs to release: build_positives, build_negatives, train, evaluate, publish_items, under one MLflow run.

A day that has no interactions is a night too (--no-data): state and model are carried forward, the release in use stays.
"""

import argparse
import sys

from jobs import build_negatives, build_positives, evaluate, publish_items, train
from jobs.common.runner import Context, main, parser, positive
from jobs.night.lost_day import carry_night
from jobs.night.preconditions import require_trainers, require_truth
from jobs.night.steps import Step, run_steps
from pipelines.contract.errors import UsageError
from pipelines.storage.dates import days_back, parse_ds
from pipelines.storage.locks import locked
from pipelines.storage.update_warehouse import delete_updates

STEPS: tuple[tuple[str, Step], ...] = (
    ("build_positives", build_positives.run),
    ("build_negatives", build_negatives.run),
    ("train", train.run),
    ("evaluate", evaluate.run),
    ("publish_items", publish_items.run),
)


def run(context: Context) -> None:
    """The night of --ds, or those of --from … --to in order; --bootstrap-days belongs to the first of them."""
    days = days_of(context.args)
    if context.args.no_data:
        _carry(context, days)
        return
    require_trainers(context)
    require_truth(context)
    for number, ds in enumerate(days):
        if number:
            context.args.bootstrap_days = None
        run_night(context.at(ds))


def run_night(context: Context) -> None:
    """All steps of one ds; a step that is done is skipped. LockedError where another run works on this ds."""
    with locked(context.warehouse, context.ds, "nightly"):
        run_steps(context, STEPS)
        delete_updates(context.warehouse, context.ds)  # Updates within the day have been before it.


def _carry(context: Context, days: list[str]) -> None:
    """The night of one day without data. UsageError where the flags ask for more."""
    if len(days) > 1 or context.args.bootstrap_days:
        raise UsageError("--no-data is for one day with a night before it: give it --ds alone, once for each lost day")
    lost = context.at(days[0])
    with locked(lost.warehouse, lost.ds, "nightly"):
        run_steps(lost, (("carry_forward", carry_night),))
        delete_updates(lost.warehouse, lost.ds)


def days_of(args: argparse.Namespace) -> list[str]:
    """The nights that the flags ask for. UsageError where they contradict each other."""
    if args.ds and (args.first or args.last):
        raise UsageError("give --ds, or --from and --to, not both")
    if args.ds:
        return [parse_ds(args.ds).isoformat()]
    if not (args.first and args.last):
        raise UsageError("name the night with --ds YYYY-MM-DD, or several with --from D1 --to D2")
    first, last = parse_ds(args.first), parse_ds(args.last)
    if last < first:
        raise UsageError(f"--from {first} is after --to {last}: swap them")
    return days_back(last.isoformat(), (last - first).days + 1)


def add_days(flags: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """--ds, or --from and --to."""
    flags.add_argument("--ds", metavar="YYYY-MM-DD", help="the night to run")
    flags.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="first night of several")
    flags.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="last night of several")
    return flags


def _flags() -> argparse.ArgumentParser:
    flags = add_days(parser("nightly", __doc__ or "", with_ds=False))
    flags.add_argument(
        "--bootstrap-days",
        type=positive,
        metavar="N",
        help="first night: read N days of logs up to ds, no state before it",
    )
    flags.add_argument(
        "--no-data",
        action="store_true",
        help="ds has no interactions: carry state and model of the night before forward, keep the release in use",
    )
    return flags


if __name__ == "__main__":
    sys.exit(main(_flags(), run))

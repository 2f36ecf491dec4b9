"""The flags of jobs that work on several days: --ds, or --from and --to."""

import argparse

from pipelines.contract.errors import UsageError
from pipelines.storage.dates import days_back, parse_ds


def add_days(flags: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --ds, --from and --to."""
    flags.add_argument("--ds", metavar="YYYY-MM-DD", help="one night")
    flags.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="the first of several nights")
    flags.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="the last of several nights")
    return flags


def days_of(args: argparse.Namespace) -> list[str]:
    """The days that the flags name, in order. Raises UsageError if the flags contradict each other."""
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

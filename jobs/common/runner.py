"""Runs an entry point: parses flags, loads the config, opens Spark, and turns errors into one message and an exit code."""

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from jobs.common import console
from jobs.common.config import Config, load_config
from jobs.common.examples import examples_of
from jobs.common.known_faults import explained
from jobs.common.progress import activity, heartbeat, spark_tasks
from jobs.common.stopping import Stopping, end_children, stoppable
from pipelines.contract.errors import NightjarError
from pipelines.files.object_stores import share_stores
from pipelines.session import open_session
from pipelines.storage.dates import parse_ds
from pipelines.storage.local_warehouse import LocalWarehouse, is_local
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


@dataclass(frozen=True)
class Context:
    """What a job's `run` gets. `bootstrap_days`: days of logs that a first night reads; 0 on other nights.

    `spark` is None in jobs that only read, on a local warehouse (`reads_only` of `main`).
    """

    config: Config
    spark: SparkSession
    warehouse: Warehouse
    args: argparse.Namespace
    ds: str = ""
    force: bool = False
    bootstrap_days: int = 0

    def at(self, ds: str) -> "Context":
        """The context of the same job on another day."""
        return replace(self, ds=parse_ds(ds).isoformat())


def parser(name: str, description: str, *, with_ds: bool = True) -> argparse.ArgumentParser:
    """A parser with the flags that all jobs share. Its help ends with the examples of the job (jobs/common/examples.py)."""
    flags = argparse.ArgumentParser(
        prog=f"jobs.{name}",
        description=description,
        epilog=examples_of(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--config", required=True, metavar="FILE", help="the YAML config file")
    if with_ds:
        flags.add_argument("--ds", required=True, metavar="YYYY-MM-DD", help="the day to work on")
    flags.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        dest="overrides",
        help="override one config value (repeatable)",
    )
    flags.add_argument("--force", action="store_true", help="run again even if the result exists")
    console.add_flags(flags)
    return flags


def positive(text: str) -> int:
    """The type of a flag that takes a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """The rows of a table as lines of text, with aligned columns."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def main(
    flags: argparse.ArgumentParser,
    run: Callable[[Context], None],
    argv: list[str] | None = None,
    *,
    reads_only: Callable[[argparse.Namespace], bool] = lambda _: False,
    before_spark: Callable[[Config], None] = lambda _: None,
) -> int:
    """Run a job. Returns its exit code: 0 done, 1 other error, 2 usage, 3 input, 4 gate, 130 Ctrl-C, 143 SIGTERM.

    `reads_only`: whether a job with these flags only reads manifests and other small files. On a local warehouse it then
    starts no JVM and answers at once. `before_spark`: what can be checked before the seconds that Spark needs to start.
    """
    args = flags.parse_args(argv)
    console.log_to_console(quiet=args.quiet, verbose=args.verbose)
    with stoppable() as stopping:
        try:
            code = _run(flags.prog, args, run, stopping, None if reads_only(args) else before_spark)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            if not console.output_is_closed():
                raise
            return 128 + signal.SIGPIPE
        except BaseException as error:
            if (
                isinstance(error, KeyboardInterrupt) and stopping.signal is None
            ):  # Spark handled Ctrl-C while it started.
                stopping.signal = signal.SIGINT
            if stopping.signal is None:
                raise
        # The job was stopped. Report that, and not the error that stopping it raised.
        console.print_error(stopping.message())
        return stopping.exit_code


def _run(
    name: str,
    args: argparse.Namespace,
    run: Callable[[Context], None],
    stopping: Stopping,
    before_spark: Callable[[Config], None] | None,
) -> int:
    """Run a job. `before_spark`: None if the job only reads."""
    spark: Any = None
    warehouse: Warehouse | None = None
    try:
        config = load_config(args.config, args.overrides)
        ds = parse_ds(args.ds).isoformat() if getattr(args, "ds", None) else ""
        if before_spark is None and is_local(config.warehouse):
            warehouse = LocalWarehouse(config.warehouse)
        else:
            if before_spark:
                before_spark(config)
            log.info("%s: config %s, warehouse %s; starting Spark", name, args.config, config.warehouse)
            settings = {key: _spark_value(value) for key, value in config.spark.items()}
            spark = open_session(name, settings, show_progress=console.shows_bars())
            stopping.listen()  # Spark has set a handler of Ctrl-C.
            share_stores(spark)
            warehouse = Warehouse(spark, config.warehouse)
        context = Context(config, spark, warehouse, args, ds, args.force, getattr(args, "bootstrap_days", None) or 0)
        with _progress(f"{name.removeprefix('jobs.')} {ds}".strip(), spark):
            run(context)
    except Exception as problem:
        if stopping.signal is not None:
            raise
        error: Exception = (warehouse and explained(problem, warehouse.root)) or problem
        code: Any = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        kind = "" if isinstance(error, NightjarError) else f"{type(error).__name__}: "
        if args.verbose:
            traceback.print_exc()
        console.print_error(f"{kind}{error}")
        return code
    finally:
        if spark is not None:
            # Tasks of a failed job may still run, and Spark would log stack traces while it stops them.
            with suppress(Py4JError, OSError):  # If the JVM has died, report the original error.
                spark.sparkContext.setLogLevel("OFF")
                spark.stop()
        elif stopping.signal is not None:
            end_children()  # A JVM that is starting would print that nobody waits for it.
    return 0


@contextmanager
def _progress(job: str, spark: Any) -> Iterator[None]:
    """Within the block, a heartbeat in the log, unless the job starts no Spark or bars show its progress."""
    if spark is None or console.shows_bars():
        yield
        return
    with heartbeat(lambda: spark_tasks(spark)), activity(job):
        yield


def _spark_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

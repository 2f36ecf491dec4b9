"""What every entry point does the same way: flags, config, Spark session, one clear message, exit code."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from jobs.common.config import Config, load_config
from jobs.common.known_faults import explained
from jobs.common.stopping import Stopping, stoppable
from pipelines.contract.errors import NightjarError
from pipelines.files.object_stores import share_stores
from pipelines.session import open_session
from pipelines.storage.dates import parse_ds
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


@dataclass(frozen=True)
class Context:
    """All that a job's `run` gets."""

    config: Config
    spark: SparkSession
    warehouse: Warehouse
    args: argparse.Namespace
    ds: str = ""
    force: bool = False

    def at(self, ds: str) -> "Context":
        """The same job on another day."""
        return replace(self, ds=parse_ds(ds).isoformat())


def parser(name: str, description: str, *, with_ds: bool = True) -> argparse.ArgumentParser:
    """The flags that all jobs share."""
    flags = argparse.ArgumentParser(prog=f"jobs.{name}", description=description)
    flags.add_argument("--config", required=True, metavar="FILE", help="YAML config")
    if with_ds:
        flags.add_argument("--ds", required=True, metavar="YYYY-MM-DD", help="the day to work on")
    flags.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="overrides", help="override a config value"
    )
    flags.add_argument("--force", action="store_true", help="do it again even where the result is there")
    return flags


def positive(text: str) -> int:
    """A flag's number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def main(flags: argparse.ArgumentParser, run: Callable[[Context], None], argv: list[str] | None = None) -> int:
    """Parse, open, run, and turn errors into one message and an exit code: 0, 1, 2 usage, 3 input, 4 gate."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    args = flags.parse_args(argv)
    with stoppable() as stopping:
        try:
            return _run(flags.prog, args, run, stopping)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):  # Spark's handler of Ctrl-C has taken the place of ours.
                stopping.signal = signal.SIGINT
            if stopping.signal is None:
                raise
        # Whatever was raised while it was stopped.
        print(f"error: {stopping.message()}", file=sys.stderr, flush=True)
        return stopping.exit_code


def _run(name: str, args: argparse.Namespace, run: Callable[[Context], None], stopping: Stopping) -> int:
    spark = warehouse = None
    try:
        config = load_config(args.config, args.overrides)
        ds = parse_ds(args.ds).isoformat() if getattr(args, "ds", None) else ""
        spark = open_session(name, {key: _spark_value(value) for key, value in config.spark.items()})
        share_stores(spark)
        warehouse = Warehouse(spark, config.warehouse)
        run(Context(config, spark, warehouse, args, ds, args.force))
    except Exception as problem:
        if stopping.signal is not None:
            raise
        error: Exception = (warehouse and explained(problem, warehouse.root)) or problem
        code: Any = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        kind = "" if isinstance(error, NightjarError) else f"{type(error).__name__}: "
        print(f"error: {kind}{error}", file=sys.stderr, flush=True)
        return code
    finally:
        if spark is not None:
            # Tasks of what has failed may still run, and Spark tells of stopping under them with stacks that explain nothing.
            with suppress(Py4JError, OSError):  # A JVM that is gone has stopped: what it was gone by is what is told.
                spark.sparkContext.setLogLevel("OFF")
                spark.stop()
    return 0


def _spark_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

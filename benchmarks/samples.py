"""Speed of the sample steps on one machine: `python -m benchmarks.samples` (about 32 minutes on 2 cores).

Each figure is a ratio within one run, so that machines of different speed can be compared. The last printed line is JSON:

    negatives_over_copy    seconds of build_negatives / seconds of a plain Spark read and write of the samples it wrote
    positives_over_copy    seconds of build_positives / seconds of a plain read and write of its inputs: the interactions of
                           the day, the snapshots of items and users, vocabularies, user_histories and item_stats of the
                           night before
    growth_8x              seconds per row at full size / seconds per row at an eighth of the requests and users; the larger
                           value of both steps (growth_8x_positives, growth_8x_negatives)
    draw_over_naive        seconds of explode-and-join with rand() / seconds of our sampler, for the same number of negatives
    day30_over_day5        seconds of a night (both steps) at the end of 30 days / seconds of a night around day 5
    peak_memory_share      peak resident memory of the JVM and its Python workers / their limit (support.py)
    details                the seconds, rows and bytes of these figures

The measured night has 515,000 requests of 400,000 users: 5M positives and 51M rows of ranking logs, over 100,000 items. Its
users have 100 known items each. Steps run three times at an eighth (after one warm-up run), then twice at full size; copies
run three times. Figures use medians.

    --scale 0.2         a fifth of the requests, users and items
    --only negatives    one of positives, negatives, draw, nights (repeatable)
    --size eighth       one of full, eighth (repeatable); growth needs both
    --keep DIR          work in DIR/scale-S, keep it, and reuse its logs, the state of the night before and, with
                        `--only negatives`, its positives. To make a table again, delete it (for example full/user_histories)
    --runs 1            measured runs of each step and draw
    --cold              no warm-up run
    --nights 10         number of simulated nights
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from benchmarks.draw import measure_draw
from benchmarks.logs import Day
from benchmarks.product import Product
from benchmarks.support import GB, MemoryWatch, copy, median_of, say, seconds_of
from pipelines.session import open_session
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest

FIRST, DS = "2024-03-01", "2024-03-02"  # the night that writes the state, the measured night
# Some clicks repeat another click of the user and day, or are over the cap. This many requests give 5M positives.
REQUESTS, USERS, ITEMS = 515_000, 400_000, 100_000
SIZES = {"eighth": 0.125, "full": 1.0}
COPIES = 3
RUNS = {"full": 2, "eighth": 3}  # short runs vary more
PARTS = ("positives", "negatives", "draw", "nights")
# The size of a simulated day, and what each day adds.
DAILY_REQUESTS, DAILY_USERS, DAILY_ITEMS = 10_000, 20_000, 20_000
NEW_USERS, NEW_ITEMS = 200, 100
SESSION = {"spark.master": "local[2]", "spark.driver.memory": "6g", "spark.sql.shuffle.partitions": "16"}


def measured_day(scale: float, size: str) -> Day:
    """The measured day. Sizes differ in requests and users; the catalogue is the same at both."""
    part = scale * SIZES[size]
    return Day(DS, int(REQUESTS * part), int(USERS * part), max(1000, int(ITEMS * scale)))


def measure_steps(spark: SparkSession, folder: Path, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure both steps at one size. Returns step -> seconds, copy_seconds, rows."""
    day = measured_day(options.scale, size)
    product = Product(spark, folder / size)
    seconds_of(f"{size} size: logs of {day.requests:,} requests", lambda: product.write_logs(day))
    product.write_old_users(Day(FIRST, day.requests, day.users, day.items))
    steps: dict[str, tuple[Callable[[str], Manifest], Callable[[], list[DataFrame]]]] = {
        "positives": (product.positives, lambda: product.tables_before(DS)),
        "negatives": (product.negatives, lambda: [product.table("samples", DS)]),
    }
    if "positives" not in options.only:
        product.positives(DS, force=False)
    measured = {}
    for name in [name for name in steps if name in options.only]:
        step, copied = steps[name]
        if size == options.size[0] and not options.cold:
            seconds_of(f"{size} size: build_{name}, warm-up", lambda step=step: step(DS))  # type: ignore[misc]
        measured[name] = _measure(f"{size} size: build_{name}", product, step, copied, options.runs or RUNS[size])
    return measured


def _measure(
    name: str, product: Product, step: Callable[[str], Manifest], copied: Callable[[], list[DataFrame]], runs: int
) -> dict[str, float]:
    manifests: list[Manifest] = []
    seconds = median_of(name, lambda: manifests.append(step(DS)), runs)
    frames = copied()
    copy_seconds = median_of("plain copy", lambda: copy(frames, product.folder / "_copy"), COPIES)
    rows = manifests[-1].rows
    say(f"{name}: {rows:,} rows, {seconds / copy_seconds:.2f} plain copies")
    product.spark.catalog.clearCache()
    return {"seconds": seconds, "copy_seconds": copy_seconds, "rows": rows}


def ratios_of_steps(sizes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The ratios of the steps. `sizes`: size -> step -> seconds, copy_seconds, rows."""
    largest = sizes.get("full") or sizes["eighth"]
    ratios = {f"{step}_over_copy": figures["seconds"] / figures["copy_seconds"] for step, figures in largest.items()}
    if len(sizes) == len(SIZES):
        growth = {}
        for step in largest:
            full, eighth = sizes["full"][step], sizes["eighth"][step]
            growth[step] = (full["seconds"] / full["rows"]) / (eighth["seconds"] / eighth["rows"])
        ratios |= {f"growth_8x_{step}": value for step, value in growth.items()}
        ratios["growth_8x"] = max(growth.values())
    return ratios


def measure_nights(spark: SparkSession, folder: Path, scale: float, nights: int) -> list[float]:
    """Seconds of each night (both steps) of a product that grows a little each day. The first night is a bootstrap."""
    product = Product(spark, folder)
    seconds = []
    for number in range(nights):
        users, items = DAILY_USERS + NEW_USERS * number, DAILY_ITEMS + NEW_ITEMS * number
        day = Day(
            shift(FIRST, number),
            int(DAILY_REQUESTS * scale),
            int(users * scale),
            max(1000, int(items * scale)) + number,
        )
        if number == 0:  # the first night needs the user snapshot of the day before
            product.write_snapshots(shift(FIRST, -1), day)
        product.write_logs(day)
        bootstrap_days = int(number == 0)

        def night(ds: str = day.ds, bootstrap_days: int = bootstrap_days) -> None:
            product.positives(ds, bootstrap_days=bootstrap_days)
            product.negatives(ds, bootstrap_days=bootstrap_days)

        seconds.append(seconds_of(f"night {number + 1} of {nights}", night))
    return seconds


def late_over_early(nights: list[float]) -> float:
    """Median of the last three nights / median of nights 4 to 6 (or the first night, if there are fewer than 4)."""
    return statistics.median(nights[-3:]) / statistics.median(nights[3:6] or nights[:1])


def run(spark: SparkSession, folder: Path, options: argparse.Namespace) -> None:
    """Measure the requested parts. The last printed line is JSON."""
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"scale": options.scale}
    with MemoryWatch(spark) as memory:
        say(f"memory limit: {memory.limit / GB:.1f} GB, of which {memory.heap / GB:.1f} GB heap")
        if {"positives", "negatives"} & set(options.only):
            details["steps"] = {}
            for size in options.size:
                memory.part = size
                details["steps"][size] = measure_steps(spark, folder, size, options)
            figures |= ratios_of_steps(details["steps"])
        if "draw" in options.only:
            memory.part = "draw"
            draw = details["draw"] = measure_draw(spark, options.scale, options.runs)
            figures["draw_over_naive"] = draw["naive"]["seconds"] / draw["ours"]["seconds"]
        if "nights" in options.only:
            memory.part = "nights"
            nights = details["nights"] = measure_nights(spark, folder / "nights", options.scale, options.nights)
            figures["day30_over_day5"] = late_over_early(nights)
    figures["peak_memory_share"] = memory.share
    details["memory_gb"] = {part: peak / GB for part, peak in memory.peaks.items()}
    details["memory_gb"] |= {"heap": memory.heap / GB, "limit": memory.limit / GB}
    print(json.dumps(figures | {"details": details}), flush=True)


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Parse the flags. Defaults: all parts, both sizes."""
    parser = argparse.ArgumentParser("benchmarks.samples", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part (repeatable)")
    parser.add_argument("--size", action="append", choices=SIZES, help="measure steps only at this size (repeatable)")
    parser.add_argument("--keep", metavar="DIR", help="work in this folder, keep it, and reuse its tables")
    parser.add_argument("--runs", type=int, help="measured runs (default: 2 at full size, 3 at an eighth)")
    parser.add_argument("--cold", action="store_true", help="no warm-up run")
    parser.add_argument("--nights", type=int, default=30, help="length of the simulation")
    options = parser.parse_args(arguments)
    options.only = options.only or list(PARTS)
    options.size = sorted(set(options.size or SIZES), key=list(SIZES).index)  # the eighth first: it warms up
    return options


@contextmanager
def work_folder(keep: str | None, scale: float) -> Iterator[Path]:
    """The folder for all files, including those of Spark: DIR/scale-S with `--keep`, else a temporary folder."""
    if keep:
        yield Path(keep).absolute() / f"scale-{scale:g}"
        return
    folder = Path(tempfile.mkdtemp(prefix="nightjar-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Start Spark with a work folder, and measure."""
    options = options_of(arguments)
    with work_folder(options.keep, options.scale) as folder:
        spark = open_session("nightjar-bench-samples", SESSION | {"spark.local.dir": str(folder / "_spark")})
        try:
            run(spark, folder, options)
        finally:
            spark.stop()


if __name__ == "__main__":
    main(sys.argv[1:])

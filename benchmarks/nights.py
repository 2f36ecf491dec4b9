"""Thirty nights of a product whose users change: what nightly training is worth, what it costs, and what the gates stop.

    python -m benchmarks.nights [--nights 30] [--folder DIR]     # about half an hour on 2 cores; last line JSON

Simulated logs with drifting tastes and new items every day (benchmarks/nights.yaml). Recall@50 over all items on the day
after, of items that the user did not have yet:

    nightly         jobs.nightly, night after night: last night's model goes on with a day
    frozen          the first night's model, never trained again; its vocabularies and histories go on, and items are embedded
                    anew every night
    scratch         a new model every fifth night, from the raw logs of the last seven days (--bootstrap-days 7)
    unscaled        as nightly, with the first night's learning rates (training.warm_start_scale 1)

    nightly_over_frozen, nightly_over_scratch,  ratios of mean recalls over every fifth night, for frozen and unscaled those
    nightly_over_unscaled                       of the second half
    cost_over_scratch                           seconds of a whole night over those of one from scratch, medians
    refused                                     nights of those thirty that the gates refused; none should be
    poisoned, broken                            what refuses a day with half of its clicks at random, and one that lacks 90%
                                                of its rows

With --folder the warehouses stay, and the same command goes on where it was stopped. Writes docs/plots/nights.png.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.support import PLOTS, panels, save, say
from jobs import evaluate, nightly, simulate_logs, train
from jobs.support.config import Config, load_config
from jobs.support.gates import GateError
from jobs.support.runner import Context
from jobs.support.tracking import Tracker
from pipelines.errors import NightjarError
from pipelines.session import open_session
from pipelines.storage import Warehouse, days_back, shift

CONFIG = Path(__file__).with_name("nights.yaml")
INPUTS = ("interactions", "ranking_logs", "users", "items")
MADE = ("vocabularies", "user_histories", "item_stats", "item_features", "positives", "samples")
BOOTSTRAP, EVERY = 7, 5
FREEZE = 1e-30  # A learning rate too small to change a number.


def open_house(spark: SparkSession, folder: Path, *overrides: str) -> Context:
    """A warehouse of its own in a folder."""
    config = load_config(str(CONFIG), [f"warehouse={folder}", *overrides])
    return Context(config, spark, Warehouse(spark, config.warehouse), argparse.Namespace(bootstrap_days=None))


def night(house: Context, ds: str, bootstrap: int | None = None) -> float:
    """A whole night as jobs.nightly runs it; its seconds. GateError where it is refused."""
    house.args.bootstrap_days = bootstrap
    started = time.perf_counter()
    nightly.run_night(house.at(ds))
    return time.perf_counter() - started


def recall(house: Context, ds: str, model: str = "two_tower") -> float:
    """Recall@50 that `evaluate` has found."""
    rows = house.warehouse.read("evaluations", ds).where(f"metric = 'recall' and slice = 'all' and model = '{model}'")
    return float(rows.where("k = 50").collect()[0]["value"])


def nightly_chain(house: Context, nights: list[str]) -> tuple[dict[str, float], list[str]]:
    """Every night in turn. Seconds by night, and the nights that were refused."""
    seconds, refused = {}, []
    for number, ds in enumerate(nights):
        started = time.perf_counter()
        try:
            night(house, ds, None if number else BOOTSTRAP)
        except GateError as error:
            say(f"{ds}: refused: {error}")
            refused.append(ds)
        seconds[ds] = time.perf_counter() - started
        say(
            f"nightly {ds}: {recall(house, ds):.4f} (popular {recall(house, ds, 'popularity'):.4f}), {seconds[ds]:.1f} s"
        )
    return seconds, refused


def retrained(spark: SparkSession, house: Context, folder: Path, nights: list[str], scale: float) -> dict[str, float]:
    """Recalls of the first night's model, trained on by the same samples with other learning rates."""
    other = open_house(spark, folder, *_inputs_of(house), f"training.warm_start_scale={scale}")
    for ds in nights:
        for table in (*MADE, *(("models",) if ds == nights[0] else ())):
            link(Path(house.config.warehouse, table, f"ds={ds}"), folder / table / f"ds={ds}")
    recalls = {}
    for number, ds in enumerate(nights):
        context = other.at(ds)
        tracker = Tracker(other.config, other.warehouse, ds)
        if number:
            train.run(context, tracker)
        if number % EVERY == 0:
            evaluate.run(context, tracker)
            recalls[ds] = recall(other, ds)
            say(f"{folder.name} {ds}: {recalls[ds]:.4f}")
        tracker.close_night("FINISHED")
    return recalls


def from_scratch(
    spark: SparkSession, house: Context, folder: Path, nights: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Recalls and seconds of nights that begin from the raw logs of a week."""
    other = open_house(spark, folder, *_inputs_of(house))
    recalls, seconds = {}, {}
    for ds in nights:
        seconds[ds] = night(other, ds, BOOTSTRAP)
        recalls[ds] = recall(other, ds)
        say(f"scratch {ds}: {recalls[ds]:.4f}, {seconds[ds]:.1f} s")
    return recalls, seconds


def spoiled(spark: SparkSession, house: Context, folder: Path, ds: str, table: str, rows: DataFrame) -> str:
    """What refuses the night of a day whose rows of a table are these; "" where nothing does."""
    shutil.rmtree(folder, ignore_errors=True)
    link(Path(house.config.warehouse), folder)
    other = open_house(spark, folder)
    other.warehouse.write_input(rows, table)
    before = (folder / "releases" / "current.json").read_text()
    try:
        night(other, ds)
    except NightjarError as error:
        if (folder / "releases" / "current.json").read_text() != before:
            raise RuntimeError(f"{folder.name}: the night was refused, and current moved") from None
        say(f"{folder.name} {ds}: {error}")
        return f"{type(error).__name__}: {error}"
    return ""


def link(source: Path, target: Path) -> None:
    """The same files in another folder, but for the record, which is written in place."""

    def take(one: str, other: str) -> None:
        (shutil.copy2 if "mlflow.db" in one else os.link)(one, other)

    if not target.exists():
        shutil.copytree(source, target, copy_function=take)


def _inputs_of(house: Context) -> list[str]:
    return [f"inputs.{table}.path={house.config.warehouse}/{table}" for table in INPUTS]


def _interactions(house: Context, ds: str) -> DataFrame:
    return house.warehouse.read_input(house.warehouse.path("interactions"), [ds])


def poison(house: Context, config: Config, ds: str) -> DataFrame:
    """The interactions of a day, half of them on an item at random."""
    item = F.floor(1 + config.simulation.items * F.rand(2)).cast("bigint")
    rows = _interactions(house, ds)
    return rows.withColumn("item_id", F.when(F.rand(1) < 0.5, item).otherwise(F.col("item_id")))


def draw(recalls: dict[str, dict[str, float]], nights: list[str]) -> None:
    """The curves over the nights."""
    figure, (axes,) = panels(1, (8.0, 4.0))
    for name, found in recalls.items():
        places = [place for place, ds in enumerate(nights, 1) if ds in found]
        style = "o" if name == "scratch" else "-" if len(found) == len(nights) else "o-"
        axes.plot(places, [found[nights[place - 1]] for place in places], style, label=name)
    axes.set_xlabel("night")
    axes.set_ylabel("Recall@50 on the next day")
    axes.set_ylim(bottom=0)
    axes.legend()
    save(figure, PLOTS / "nights.png")


def main() -> None:
    """Run, draw, print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--nights", type=int, default=30, help=f"more than {EVERY}")
    flags.add_argument("--folder", type=Path, help="where the warehouses stay; default: nowhere")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        conf = {"spark.master": "local[2]", "spark.driver.memory": "4g", "spark.sql.shuffle.partitions": 2}
        spark = open_session("nightjar-bench-nights", conf)
        try:
            figures = measure(spark, folder, options.nights)
        finally:
            spark.stop()
    print(json.dumps(figures), flush=True)


def measure(spark: SparkSession, folder: Path, count: int) -> dict[str, Any]:
    """All of it."""
    house = open_house(spark, folder / "nightly", f"simulation.days={BOOTSTRAP + count + 1}")
    simulate_logs.run(house)
    start = house.config.simulation.start
    nights = days_back(shift(start, BOOTSTRAP + count - 2), count)
    seconds, refused = nightly_chain(house, nights)
    recalls = {"nightly": {ds: recall(house, ds) for ds in nights}}
    recalls["popularity"] = {ds: recall(house, ds, "popularity") for ds in nights}
    recalls["frozen"] = retrained(spark, house, folder / "frozen", nights, FREEZE)
    recalls["scratch"], scratch_seconds = from_scratch(spark, house, folder / "scratch", nights[EVERY::EVERY])
    recalls["unscaled"] = retrained(spark, house, folder / "unscaled", nights, 1.0)
    draw(recalls, nights)
    tomorrow = shift(nights[-1], 1)
    few = _interactions(house, tomorrow).where(F.rand(3) < 0.1)
    both = list(recalls["scratch"])
    late = both[len(both) // 2 :]

    def mean(name: str, days: list[str]) -> float:
        return statistics.mean(recalls[name][ds] for ds in days)

    return {
        "nightly_over_frozen": mean("nightly", late) / mean("frozen", late),
        "nightly_over_scratch": mean("nightly", both) / mean("scratch", both),
        "nightly_over_unscaled": mean("nightly", late) / mean("unscaled", late),
        "cost_over_scratch": statistics.median(seconds[ds] for ds in both)
        / statistics.median(scratch_seconds.values()),
        "refused": refused,
        "poisoned": spoiled(
            spark, house, folder / "poisoned", tomorrow, "interactions", poison(house, house.config, tomorrow)
        ),
        "broken": spoiled(spark, house, folder / "broken", tomorrow, "interactions", few),
        "recalls": {name: {ds: round(value, 4) for ds, value in found.items()} for name, found in recalls.items()},
    }


if __name__ == "__main__":
    main()

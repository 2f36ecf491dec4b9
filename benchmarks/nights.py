"""Thirty nights of a product whose users change: what nightly training is worth, what it costs, and what the gates stop.

    python -m benchmarks.nights [--nights 30] [--folder DIR]     # about half an hour on 2 cores; last line JSON

Simulated logs with drifting tastes and new items every day (benchmarks/nights.yaml). Recall@50 over all items on the day
after, of items that the user did not have yet:

    nightly         jobs.nightly, night after night: last night's model goes on with a day
    frozen          the first night's model, never trained again; its vocabularies and histories go on, and items are embedded
                    anew every night
    scratch         every fifth night a new model, trained on the samples of the last seven nights, six epochs as the first
    unscaled        as nightly, with the first night's learning rates (training.warm_start_scale 1)
    updates         within every second day, jobs.incremental at 6:00, 12:00, 18:00 and the end of the day

    nightly_over_frozen, nightly_over_scratch,  ratios of mean recalls over every fifth night, for frozen and unscaled those
    nightly_over_unscaled                       of the second half
    cost_over_scratch                           seconds of a night's training over those of one from scratch, medians
    updated_over_night                          Recall@50 of the updates over that of last night's release, on the
                                                events of those days that came after an update and before the next
    updated_gain                                the mean over days of what the updates of a day gain on those events, and
                                                its standard error
    update_cost                                 seconds of an update over those of a night of the second half, medians
    refused                                     nights of those thirty that the gates refused; none should be
    poisoned, broken                            what refuses a day with half of its clicks at random, and one that lacks 90%
                                                of its rows
    unchecked                                   what refuses the latter with checks.rows_low off

With --folder the warehouses stay, and the same command goes on where it was stopped. Writes docs/plots/nights.png.
"""

import argparse
import json
import math
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
from jobs import evaluate, incremental, nightly, simulate_logs, train
from jobs.common.config import Config, load_config
from jobs.common.runner import Context
from jobs.release.gates import GateError
from jobs.release.store import Current, write_current
from jobs.tracking.tracker import Tracker
from model.io.urls import checksum
from model.training.checkpoint import PARAMETERS, STATE
from model.training.launch import launch
from model.training.spec import TrainingSpec
from pipelines.contract.errors import NightjarError
from pipelines.session import open_session
from pipelines.storage.dates import days_back, shift
from pipelines.storage.manifest import MANIFEST, Recipe
from pipelines.storage.update_warehouse import folder_of
from pipelines.storage.warehouse import Warehouse

CONFIG = Path(__file__).with_name("nights.yaml")
INPUTS = ("interactions", "ranking_logs", "users", "items")
MADE = ("vocabularies", "user_histories", "item_stats", "item_features", "item_versions", "positives", "samples")
BOOTSTRAP, EVERY = 7, 5
HOURS = ("T06:00", "T12:00", "T18:00", "T23:59:59.999999")
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
    """Every night in turn. Seconds by night, and the nights that were refused; of those that have been, from a file."""
    file = Path(house.config.warehouse, "chain.json")
    chain = json.loads(file.read_text()) if file.exists() else {"seconds": {}, "refused": []}
    for number, ds in enumerate(nights):
        if ds in chain["seconds"]:
            continue
        started = time.perf_counter()
        try:
            night(house, ds, None if number else BOOTSTRAP)
        except GateError as error:
            say(f"{ds}: refused: {error}")
            chain["refused"].append(ds)
        seconds = chain["seconds"][ds] = time.perf_counter() - started
        say(f"nightly {ds}: {recall(house, ds):.4f} (popular {recall(house, ds, 'popularity'):.4f}), {seconds:.1f} s")
        file.write_text(json.dumps(chain))
    return chain["seconds"], chain["refused"]


def updates(
    spark: SparkSession, house: Context, folder: Path, ds: str
) -> tuple[list[tuple[float, float]], list[float]]:
    """The updates of a day as they would have been before its night.

    After each but the last: recall of the updates so far and of the release of last night, on the events before the next.
    And the seconds of each update.
    """
    shutil.rmtree(folder, ignore_errors=True)
    link(Path(house.config.warehouse), folder)
    other = open_house(spark, folder)
    yesterday = shift(ds, -1)
    release = other.warehouse.require("item_embeddings", yesterday, "").facts["release_id"]
    write_current(other.warehouse, Current(release, yesterday))
    recalls, seconds = [], []
    for number, hour in enumerate(HOURS, 1):
        other.args.until = f"{ds}{hour}"
        started = time.perf_counter()
        incremental.run(other.at(ds))
        seconds.append(time.perf_counter() - started)
        models = f"{folder_of(other.warehouse, ds, number)}/models/ds={ds}/{MANIFEST}"
        told = json.loads(other.warehouse.read_text(models))["facts"]["within_day"]
        if "night" in told:
            recalls.append((told["recall"], told["night"]))
            say(f"{ds} until {hour}: {told['recall']:.4f}, of last night {told['night']:.4f}, {seconds[-1]:.1f} s")
    return recalls, seconds


def retrained(
    spark: SparkSession, house: Context, folder: Path, nights: list[str], scale: float
) -> tuple[dict[str, float], list[float]]:
    """The first night's model, trained on by the same samples with other learning rates: recalls, seconds of trainings."""
    other = _trainer(spark, house, folder, nights, f"training.warm_start_scale={scale}")
    link(Path(house.config.warehouse, "models", f"ds={nights[0]}"), folder / "models" / f"ds={nights[0]}")
    recalls, seconds = {}, []
    for number, ds in enumerate(nights):
        tracker = Tracker(other.config, other.warehouse, ds)
        if number:
            started = time.perf_counter()
            train.run(other.at(ds), tracker)
            seconds.append(time.perf_counter() - started)
        if number % EVERY == 0:
            recalls[ds] = _evaluated(other, ds)
        tracker.close_night("FINISHED")
    return recalls, seconds


def from_scratch(
    spark: SparkSession, house: Context, folder: Path, nights: list[str], chosen: list[str]
) -> tuple[dict[str, float], list[float]]:
    """New models of some nights, trained on the samples of a window: recalls, seconds of trainings."""
    other = _trainer(spark, house, folder, nights)
    config, warehouse = other.config, other.warehouse
    recalls, seconds = {}, []
    for ds in chosen:
        made = {table: warehouse.require(table, ds, "") for table in ("samples", "item_features", "item_stats")}
        files = {table: warehouse.data_files(warehouse.path(table, ds)) for table in ("item_features", "item_stats")}
        schema = house.warehouse.require("models", ds, "").facts["schema"]
        window = [day for day in nights if shift(ds, -BOOTSTRAP) < day <= ds]
        train_files = [
            {"url": f"{warehouse.path('samples', day)}/{group['path']}", "rows": group["rows"]}
            for day in window
            for group in warehouse.require("samples", day, "").facts["splits"]["train"]["groups"]
        ]
        staging = warehouse.new_staging("models", ds)
        spec = TrainingSpec.model_validate(
            {
                **files,
                "features": schema,
                "train": train_files,
                "valid": [],
                "negatives": made["samples"].facts["negatives"],
                "model": config.model,
                "loss": config.loss,
                "training": config.training,
                "seed": config.seed,
                "epochs": config.training.bootstrap_epochs,
                "output": staging,
            }
        )
        started = time.perf_counter()
        launch(spec)
        seconds.append(time.perf_counter() - started)
        content = [checksum(f"{staging}/{name}") for name in (PARAMETERS, STATE)]
        inputs = {table: manifest.fingerprint for table, manifest in made.items()}
        warehouse.finish_folder(
            staging, "models", ds, Recipe("scratch", inputs), {"content": content, "schema": schema}
        )
        recalls[ds] = _evaluated(other, ds)
    return recalls, seconds


def _trainer(spark: SparkSession, house: Context, folder: Path, nights: list[str], *overrides: str) -> Context:
    """A warehouse with all that these nights train on."""
    inputs = [f"inputs.{table}.path={house.config.warehouse}/{table}" for table in INPUTS]
    for ds in nights:
        for table in MADE:
            link(Path(house.config.warehouse, table, f"ds={ds}"), folder / table / f"ds={ds}")
    return open_house(spark, folder, *inputs, *overrides)


def _evaluated(house: Context, ds: str) -> float:
    evaluate.run(house.at(ds), Tracker(house.config, house.warehouse, ds, join_finished=True))
    found = recall(house, ds)
    say(f"{Path(house.config.warehouse).name} {ds}: {found:.4f}")
    return found


def spoiled(
    spark: SparkSession, house: Context, folder: Path, ds: str, table: str, rows: DataFrame, *overrides: str
) -> str:
    """What refuses the night of a day whose rows of a table are these; "" where nothing does."""
    shutil.rmtree(folder, ignore_errors=True)
    link(Path(house.config.warehouse), folder)
    other = open_house(spark, folder, *overrides)
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
        conf = {"spark.master": "local[2]", "spark.driver.memory": "4g", "spark.sql.shuffle.partitions": "2"}
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
    recalls["frozen"], _ = retrained(spark, house, folder / "frozen", nights, FREEZE)
    recalls["scratch"], scratch = from_scratch(spark, house, folder / "scratch", nights, nights[EVERY::EVERY])
    recalls["unscaled"], continued = retrained(spark, house, folder / "unscaled", nights, 1.0)
    draw(recalls, nights)
    tomorrow = shift(nights[-1], 1)
    few = _interactions(house, tomorrow).where(F.rand(3) < 0.1)
    both = list(recalls["scratch"])
    late = both[len(both) // 2 :]
    late_nights = [seconds[ds] for ds in nights if ds >= late[0]]
    within = {ds: updates(spark, house, folder / f"updates-{ds}", ds) for ds in nights[1::2]}
    pairs = [pair for recalls_of, _ in within.values() for pair in recalls_of]
    gains = [statistics.mean(now - then for now, then in recalls_of) for recalls_of, _ in within.values()]

    def mean(name: str, days: list[str]) -> float:
        return statistics.mean(recalls[name][ds] for ds in days)

    return {
        "nightly_over_frozen": mean("nightly", late) / mean("frozen", late),
        "nightly_over_scratch": mean("nightly", both) / mean("scratch", both),
        "nightly_over_unscaled": mean("nightly", late) / mean("unscaled", late),
        "cost_over_scratch": statistics.median(continued) / statistics.median(scratch),
        "updated_over_night": statistics.mean(now for now, _ in pairs) / statistics.mean(then for _, then in pairs),
        "updated_gain": [statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))],
        "update_cost": statistics.median(one for _, spent in within.values() for one in spent)
        / statistics.median(late_nights),
        "refused": refused,
        "poisoned": spoiled(
            spark, house, folder / "poisoned", tomorrow, "interactions", poison(house, house.config, tomorrow)
        ),
        "broken": spoiled(spark, house, folder / "broken", tomorrow, "interactions", few),
        "unchecked": spoiled(spark, house, folder / "unchecked", tomorrow, "interactions", few, "checks.rows_low=null"),
        "within": {ds: [[round(value, 4) for value in pair] for pair in found] for ds, (found, _) in within.items()},
        "recalls": {name: {ds: round(value, 4) for ds, value in found.items()} for name, found in recalls.items()},
    }


if __name__ == "__main__":
    main()

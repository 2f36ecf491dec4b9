"""Runs thirty nights of a product whose users change: the gain and cost of nightly training, and the faults that gates stop.

    python -m benchmarks.nights [--nights 30] [--folder DIR]     # about half an hour on 2 cores; last line JSON

The logs are simulated, with drifting tastes and new items every day (benchmarks/nights.yaml). Recall@50 is over all items that
are new to the user, on the clicks of the next day.

    nightly         jobs.nightly every night: the model of last night trains on one more day
    frozen          the model of the first night, never trained again; vocabularies, histories and embeddings are updated
    scratch         a new model every fifth night, trained for six epochs on the samples of the last seven nights
    unscaled        like nightly, with the learning rates of the first night (training.warm_start_scale 1)
    updates         every second day, jobs.incremental at 6:00, 12:00, 18:00 and the end of the day

    nightly_over_frozen, nightly_over_scratch,  ratios of mean recalls over every fifth night; for frozen and unscaled only the
    nightly_over_unscaled                       second half
    cost_over_scratch                           seconds of a nightly training / seconds of one from scratch, medians
    updated_over_night                          Recall@50 of the updates / Recall@50 of last night's release, on the events of
                                                those days between an update and the next one
    updated_gain                                mean over days of the recall gained on these events, and its standard error
    update_cost                                 seconds of an update / seconds of a night of the second half, medians
    refused                                     nights that the gates refused; expected: none
    poisoned, broken                            the error for a day with half of its clicks on random items, and for a day
                                                without 90% of its rows
    unchecked                                   the error for the second day with checks.rows_low off

With --folder the warehouses are kept, and the same command resumes a stopped run. Writes docs/plots/nights.png.
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
NIGHT_TABLES = (
    "vocabularies",
    "user_histories",
    "item_stats",
    "item_features",
    "item_versions",
    "positives",
    "samples",
)
BOOTSTRAP, EVERY = 7, 5
HOURS = ("T06:00", "T12:00", "T18:00", "T23:59:59.999999")
FREEZE = 1e-30  # a learning rate too small to change a parameter


def open_context(spark: SparkSession, folder: Path, *overrides: str) -> Context:
    """A job context with a separate warehouse in a folder."""
    config = load_config(str(CONFIG), [f"warehouse={folder}", *overrides])
    return Context(config, spark, Warehouse(spark, config.warehouse), argparse.Namespace(bootstrap_days=None))


def night(context: Context, ds: str, bootstrap: int | None = None) -> float:
    """Run a night like jobs.nightly. Returns its seconds. Raises GateError if a gate refuses it."""
    context.args.bootstrap_days = bootstrap
    started = time.perf_counter()
    nightly.run_night(context.at(ds))
    return time.perf_counter() - started


def recall(context: Context, ds: str, model: str = "two_tower") -> float:
    """Recall@50 that `evaluate` wrote for a night."""
    rows = context.warehouse.read("evaluations", ds).where(f"metric = 'recall' and slice = 'all' and model = '{model}'")
    return float(rows.where("k = 50").collect()[0]["value"])


def nightly_chain(context: Context, nights: list[str]) -> tuple[dict[str, float], list[str]]:
    """Run all nights in order. Returns seconds by night, and refused nights. Skips nights that chain.json lists as done."""
    file = Path(context.config.warehouse, "chain.json")
    chain = json.loads(file.read_text()) if file.exists() else {"seconds": {}, "refused": []}
    for number, ds in enumerate(nights):
        if ds in chain["seconds"]:
            continue
        started = time.perf_counter()
        try:
            night(context, ds, None if number else BOOTSTRAP)
        except GateError as error:
            say(f"{ds}: refused: {error}")
            chain["refused"].append(ds)
        seconds = chain["seconds"][ds] = time.perf_counter() - started
        say(
            f"nightly {ds}: {recall(context, ds):.4f} (popular {recall(context, ds, 'popularity'):.4f}), {seconds:.1f} s"
        )
        file.write_text(json.dumps(chain))
    return chain["seconds"], chain["refused"]


def updates(
    spark: SparkSession, context: Context, folder: Path, ds: str
) -> tuple[list[tuple[float, float]], list[float]]:
    """Run the updates of a day, in a copy of the warehouse, as if its night had not run.

    Returns a pair for each update except the last: recall of the updates so far and recall of last night's release, on the
    events until the next update. Also returns the seconds of each update.
    """
    shutil.rmtree(folder, ignore_errors=True)
    link(Path(context.config.warehouse), folder)
    copy = open_context(spark, folder)
    yesterday = shift(ds, -1)
    release = copy.warehouse.require("item_embeddings", yesterday, "").facts["release_id"]
    write_current(copy.warehouse, Current(release, yesterday))
    recalls, seconds = [], []
    for number, hour in enumerate(HOURS, 1):
        copy.args.until = f"{ds}{hour}"
        started = time.perf_counter()
        incremental.run(copy.at(ds))
        seconds.append(time.perf_counter() - started)
        models = f"{folder_of(copy.warehouse, ds, number)}/models/ds={ds}/{MANIFEST}"
        within_day = json.loads(copy.warehouse.read_text(models))["facts"]["within_day"]
        if "night" in within_day:
            updated, last_night = within_day["recall"], within_day["night"]
            recalls.append((updated, last_night))
            say(f"{ds} until {hour}: {updated:.4f}, last night's release {last_night:.4f}, {seconds[-1]:.1f} s")
    return recalls, seconds


def retrained(
    spark: SparkSession, context: Context, folder: Path, nights: list[str], scale: float
) -> tuple[dict[str, float], list[float]]:
    """Train the first night's model on later nights with other learning rates. Returns recalls and seconds of trainings."""
    copy = _trainer(spark, context, folder, nights, f"training.warm_start_scale={scale}")
    link(Path(context.config.warehouse, "models", f"ds={nights[0]}"), folder / "models" / f"ds={nights[0]}")
    recalls, seconds = {}, []
    for number, ds in enumerate(nights):
        tracker = Tracker(copy.config, copy.warehouse, ds)
        if number:
            started = time.perf_counter()
            train.run(copy.at(ds), tracker)
            seconds.append(time.perf_counter() - started)
        if number % EVERY == 0:
            recalls[ds] = _evaluated(copy, ds)
        tracker.close_night("FINISHED")
    return recalls, seconds


def from_scratch(
    spark: SparkSession, context: Context, folder: Path, nights: list[str], chosen: list[str]
) -> tuple[dict[str, float], list[float]]:
    """Train new models for the chosen nights, each on the samples of a window. Returns recalls and seconds of trainings."""
    copy = _trainer(spark, context, folder, nights)
    config, warehouse = copy.config, copy.warehouse
    recalls, seconds = {}, []
    for ds in chosen:
        manifests = {table: warehouse.require(table, ds, "") for table in ("samples", "item_features", "item_stats")}
        files = {table: warehouse.data_files(warehouse.path(table, ds)) for table in ("item_features", "item_stats")}
        schema = context.warehouse.require("models", ds, "").facts["schema"]
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
                "negatives": manifests["samples"].facts["negatives"],
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
        inputs = {table: manifest.fingerprint for table, manifest in manifests.items()}
        warehouse.finish_folder(
            staging, "models", ds, Recipe("scratch", inputs), {"content": content, "schema": schema}
        )
        recalls[ds] = _evaluated(copy, ds)
    return recalls, seconds


def _trainer(spark: SparkSession, context: Context, folder: Path, nights: list[str], *overrides: str) -> Context:
    """A context whose warehouse has the tables that these nights train on."""
    inputs = [f"inputs.{table}.path={context.config.warehouse}/{table}" for table in INPUTS]
    for ds in nights:
        for table in NIGHT_TABLES:
            link(Path(context.config.warehouse, table, f"ds={ds}"), folder / table / f"ds={ds}")
    return open_context(spark, folder, *inputs, *overrides)


def _evaluated(context: Context, ds: str) -> float:
    evaluate.run(context.at(ds), Tracker(context.config, context.warehouse, ds, join_finished=True))
    value = recall(context, ds)
    say(f"{Path(context.config.warehouse).name} {ds}: {value:.4f}")
    return value


def refusal_of(
    spark: SparkSession, context: Context, folder: Path, ds: str, table: str, rows: DataFrame, *overrides: str
) -> str:
    """The error of a night in which `rows` replace the table of a day; "" if the night succeeds."""
    shutil.rmtree(folder, ignore_errors=True)
    link(Path(context.config.warehouse), folder)
    copy = open_context(spark, folder, *overrides)
    copy.warehouse.write_input(rows, table)
    before = (folder / "releases" / "current.json").read_text()
    try:
        night(copy, ds)
    except NightjarError as error:
        if (folder / "releases" / "current.json").read_text() != before:
            raise RuntimeError(f"{folder.name}: the night was refused, but current.json changed") from None
        say(f"{folder.name} {ds}: {error}")
        return f"{type(error).__name__}: {error}"
    return ""


def link(source: Path, target: Path) -> None:
    """Hard-link all files into another folder. Copies the MLflow database, because it is changed in place."""

    def link_or_copy(file: str, new: str) -> None:
        (shutil.copy2 if "mlflow.db" in file else os.link)(file, new)

    if not target.exists():
        shutil.copytree(source, target, copy_function=link_or_copy)


def _interactions(context: Context, ds: str) -> DataFrame:
    return context.warehouse.read_input(context.warehouse.path("interactions"), [ds])


def poison(context: Context, config: Config, ds: str) -> DataFrame:
    """The interactions of a day, half of them moved to random items."""
    item = F.floor(1 + config.simulation.items * F.rand(2)).cast("bigint")
    rows = _interactions(context, ds)
    return rows.withColumn("item_id", F.when(F.rand(1) < 0.5, item).otherwise(F.col("item_id")))


def draw(recalls: dict[str, dict[str, float]], nights: list[str]) -> None:
    """Plot recall by night, one curve per model."""
    figure, (axes,) = panels(1, (8.0, 4.0))
    for name, by_night in recalls.items():
        numbers = [number for number, ds in enumerate(nights, 1) if ds in by_night]
        style = "o" if name == "scratch" else "-" if len(by_night) == len(nights) else "o-"
        axes.plot(numbers, [by_night[nights[number - 1]] for number in numbers], style, label=name)
    axes.set_xlabel("night")
    axes.set_ylabel("Recall@50 on the next day")
    axes.set_ylim(bottom=0)
    axes.legend()
    save(figure, PLOTS / "nights.png")


def main() -> None:
    """Start Spark, measure, print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--nights", type=int, default=30, help=f"number of nights, more than {EVERY}")
    flags.add_argument("--folder", type=Path, help="keep the warehouses in this folder")
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
    """Run all nights, draw the plot, return the figures."""
    context = open_context(spark, folder / "nightly", f"simulation.days={BOOTSTRAP + count + 1}")
    simulate_logs.run(context)
    start = context.config.simulation.start
    nights = days_back(shift(start, BOOTSTRAP + count - 2), count)
    seconds, refused = nightly_chain(context, nights)
    recalls = {"nightly": {ds: recall(context, ds) for ds in nights}}
    recalls["popularity"] = {ds: recall(context, ds, "popularity") for ds in nights}
    recalls["frozen"], _ = retrained(spark, context, folder / "frozen", nights, FREEZE)
    recalls["scratch"], scratch = from_scratch(spark, context, folder / "scratch", nights, nights[EVERY::EVERY])
    recalls["unscaled"], continued = retrained(spark, context, folder / "unscaled", nights, 1.0)
    draw(recalls, nights)
    tomorrow = shift(nights[-1], 1)
    few = _interactions(context, tomorrow).where(F.rand(3) < 0.1)
    every_fifth = list(recalls["scratch"])
    late = every_fifth[len(every_fifth) // 2 :]
    late_nights = [seconds[ds] for ds in nights if ds >= late[0]]
    within = {ds: updates(spark, context, folder / f"updates-{ds}", ds) for ds in nights[1::2]}
    pairs = [pair for recalls_of, _ in within.values() for pair in recalls_of]
    gains = [statistics.mean(new - old for new, old in recalls_of) for recalls_of, _ in within.values()]

    def mean(name: str, days: list[str]) -> float:
        return statistics.mean(recalls[name][ds] for ds in days)

    return {
        "nightly_over_frozen": mean("nightly", late) / mean("frozen", late),
        "nightly_over_scratch": mean("nightly", every_fifth) / mean("scratch", every_fifth),
        "nightly_over_unscaled": mean("nightly", late) / mean("unscaled", late),
        "cost_over_scratch": statistics.median(continued) / statistics.median(scratch),
        "updated_over_night": statistics.mean(new for new, _ in pairs) / statistics.mean(old for _, old in pairs),
        "updated_gain": [statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))],
        "update_cost": statistics.median(cost for _, costs in within.values() for cost in costs)
        / statistics.median(late_nights),
        "refused": refused,
        "poisoned": refusal_of(
            spark, context, folder / "poisoned", tomorrow, "interactions", poison(context, context.config, tomorrow)
        ),
        "broken": refusal_of(spark, context, folder / "broken", tomorrow, "interactions", few),
        "unchecked": refusal_of(
            spark, context, folder / "unchecked", tomorrow, "interactions", few, "checks.rows_low=null"
        ),
        "within": {
            ds: [[round(value, 4) for value in pair] for pair in pairs_of] for ds, (pairs_of, _) in within.items()
        },
        "recalls": {
            name: {ds: round(value, 4) for ds, value in by_night.items()} for name, by_night in recalls.items()
        },
    }


if __name__ == "__main__":
    main()

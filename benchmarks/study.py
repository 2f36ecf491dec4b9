"""Compare settings of model, loss and training on one night's samples: same rows, same budget, several seeds.

    python -m benchmarks.study --config conf/demo.yaml --ds 2024-03-07 --seeds 3 \\
        --variant "listwise" --variant "hinge: loss.kind=hinge loss.temperature=0.1"

Needs a warehouse in which the night was built (jobs.nightly). Each variant is trained and evaluated by the jobs of a night,
under seeds 1 to N, into a record of its own (experiment nightjar-study); models and evaluations of that ds are those of the
last variant afterwards, so use a warehouse kept for it. Prints a table of Recall@K (default 50): the mean over seeds and,
behind ±, half of its 95% interval (Student's t); the last line is JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from scipy import stats

from benchmarks.support import say
from jobs import evaluate, train
from jobs.support.config import Config, load_config
from jobs.support.runner import Context
from jobs.support.tracking import Tracker
from pipelines.session import open_session
from pipelines.storage import Warehouse

BASELINES = {"popularity": "recent popularity", "item_cf": "item-item CF", "best_reachable": "best reachable"}
Figures = dict[str, list[float]]  # slice -> one value a seed


def variant(text: str) -> tuple[str, list[str]]:
    """`NAME` or `NAME: a.b=c d.e=f` -> the name and its overrides."""
    name, _, overrides = text.partition(":")
    return name.strip(), overrides.split()


def measure(spark: SparkSession, config: Config, ds: str, k: int) -> dict[str, dict[str, float]]:
    """Train and evaluate once: model -> slice -> Recall@k."""
    context = Context(config, spark, Warehouse(spark, config.warehouse), argparse.Namespace(), ds, force=False)
    tracker = Tracker(config, context.warehouse, ds)
    for job in (train.run, evaluate.run):
        job(context, tracker)
    tracker.close_night("FINISHED")
    rows = context.warehouse.read("evaluations", ds).where(f"metric = 'recall' and k = {k}").collect()
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[row["slice"]] = row["value"]
    return found


def mean_and_half(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and half its 95% interval; NaN of one seed."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def table_of(figures: dict[str, Figures], k: int) -> str:
    """Markdown: a line a variant, a column a slice."""
    slices = list(next(iter(figures.values())))
    lines = ["| Recall@" + str(k) + " | " + " | ".join(slices) + " |", "|---" * (len(slices) + 1) + "|"]
    for name, row in figures.items():
        cells = []
        for part in slices:
            mean, half = mean_and_half(row.get(part, [float("nan")]))
            cells.append(f"{mean:.4f}" + (f" ± {half:.4f}" if half == half and name not in BASELINES.values() else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Every variant under every seed."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config", required=True)
    flags.add_argument("--ds", required=True)
    flags.add_argument("--set", action="append", default=[], dest="overrides", help="for all variants: a.b=c")
    flags.add_argument("--variant", action="append", required=True, type=variant, help="'NAME: a.b=c d.e=f'")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--k", type=int, default=50)
    options = flags.parse_args()
    shared = ["tracking.experiment=nightjar-study", *options.overrides]
    base = load_config(options.config, shared)
    spark = open_session("nightjar-study", {name: str(value) for name, value in base.spark.items()})
    figures: dict[str, Figures] = {}
    baselines: dict[str, Any] = {}
    for name, overrides in options.variant:
        for seed in range(1, options.seeds + 1):
            config = load_config(options.config, [*shared, *overrides, f"seed={seed}"])
            found = measure(spark, config, options.ds, options.k)
            for part, value in found.pop("two_tower").items():
                figures.setdefault(name, {}).setdefault(part, []).append(value)
            baselines = {
                BASELINES[model]: {part: [value] for part, value in row.items()} for model, row in found.items()
            }
            say(
                f"{name}, seed {seed}: "
                + ", ".join(f"{part} {values[-1]:.4f}" for part, values in figures[name].items())
            )
    spark.stop()
    print(table_of(figures | baselines, options.k))
    print(
        json.dumps({"config": Path(options.config).name, "ds": options.ds, "recall": figures, "baselines": baselines})
    )


if __name__ == "__main__":
    main()

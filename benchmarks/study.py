"""Compares settings of model, loss and training on the samples of one night: same rows and epochs, several seeds.

    python -m benchmarks.study --config conf/demo.yaml --ds 2024-03-07 --seeds 3 \\
        --variant "listwise" --variant "hinge: loss.kind=hinge loss.temperature=0.1"

Needs a warehouse in which jobs.nightly has run the night. The jobs of a night train and evaluate each variant with seeds 1 to
N, and log to the MLflow experiment nightjar-study. Afterwards, models and evaluations of that ds are those of the last
variant, so use a separate warehouse. Prints a table of Recall@K (default 50): the mean over seeds ± half of its 95% interval
(Student's t); then the mean weights of towers that weigh fields or channels. The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from pyspark.sql import SparkSession
from scipy import stats

from benchmarks.support import say
from jobs import evaluate, train
from jobs.common.config import Config, load_config
from jobs.common.runner import Context
from jobs.tracking.tracker import Tracker
from model.evaluation.ranking_metrics import SLICES
from model.training.checkpoint import read_description
from pipelines.session import open_session
from pipelines.storage.warehouse import Warehouse

BASELINES = {"popularity": "recent popularity", "item_cf": "item-item CF", "best_reachable": "best reachable"}
Figures = dict[str, list[float]]  # slice (or side.field) -> one value per seed
Variant = tuple[str, list[str]]  # name, overrides of the config


@dataclass
class StudyResult:
    """Figures of a study, by variant."""

    recall: dict[str, Figures] = field(default_factory=dict)
    weights: dict[str, Figures] = field(default_factory=dict)
    baselines: dict[str, Figures] = field(default_factory=dict)


def variant(text: str) -> Variant:
    """Parse `NAME` or `NAME: a.b=c d.e=f` into the name and its overrides."""
    name, _, overrides = text.partition(":")
    return name.strip(), overrides.split()


def measure(
    spark: SparkSession, config: Config, ds: str, k: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Train and evaluate once. Returns model -> slice -> Recall@k, and the final weights of fields or channels."""
    context = Context(config, spark, Warehouse(spark, config.warehouse), argparse.Namespace(), ds, force=False)
    tracker = Tracker(config, context.warehouse, ds)
    for job in (train.run, evaluate.run):
        job(context, tracker)
    tracker.close_night("FINISHED")
    rows = context.warehouse.read("evaluations", ds).where(f"metric = 'recall' and k = {k}").collect()
    recall: dict[str, dict[str, float]] = {}
    for row in rows:
        recall.setdefault(row["model"], {})[row["slice"]] = row["value"]
    trained = read_description(context.warehouse.path("models", ds))["result"]
    kept = -1 if trained.get("best_epoch") is None else trained["best_epoch"]
    return recall, trained["epochs"][kept]["weights"]


def study(config: str, shared: Sequence[str], ds: str, variants: Sequence[Variant], seeds: int, k: int) -> StudyResult:
    """Run every variant with seeds 1 to `seeds`. `shared`: overrides of all variants."""
    shared = ["tracking.experiment=nightjar-study", *shared]
    base = load_config(config, shared)
    spark = open_session("nightjar-study", {name: str(value) for name, value in base.spark.items()})
    result = StudyResult()
    for name, overrides in variants:
        for seed in range(1, seeds + 1):
            recall, weights = measure(spark, load_config(config, [*shared, *overrides, f"seed={seed}"]), ds, k)
            _collect(result.recall.setdefault(name, {}), recall.pop("two_tower"))
            if weights:
                _collect(result.weights.setdefault(name, {}), weights)
            result.baselines = {BASELINES[model]: {p: [v] for p, v in row.items()} for model, row in recall.items()}
            latest = ", ".join(f"{part} {values[-1]:.4f}" for part, values in result.recall[name].items())
            say(f"{name}, seed {seed}: {latest}")
    spark.stop()
    return result


def _collect(figures: Figures, values: dict[str, float]) -> None:
    for name, value in values.items():
        figures.setdefault(name, []).append(value)


def mean_and_half(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and half of its 95% interval (NaN for one seed)."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def differences(figures: dict[str, Figures], pairs: Sequence[tuple[str, str]]) -> dict[str, Figures]:
    """NAME minus OTHER for each seed. Both have the same initial values and order of rows, so most noise cancels."""
    return {
        f"{name}, less {other}": {
            part: [a - b for a, b in zip(values, figures[other][part], strict=True)]
            for part, values in figures[name].items()
        }
        for name, other in pairs
        if name in figures and other in figures
    }


def table_of(figures: dict[str, Figures], k: int) -> str:
    """Markdown table: one line per variant, one column per slice."""
    measured = {part for row in figures.values() for part in row}
    slices = [part for part in SLICES if part in measured]
    lines = ["| Recall@" + str(k) + " | " + " | ".join(slices) + " |", "|---" * (len(slices) + 1) + "|"]
    for name, row in figures.items():
        cells = []
        for part in slices:
            mean, half = mean_and_half(row.get(part, [float("nan")]))
            cells.append(f"{mean:.4f}" + (f" ± {half:.4f}" if half == half and name not in BASELINES.values() else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(result: StudyResult, k: int, pairs: Sequence[tuple[str, str]] = ()) -> None:
    """Print the tables, and the result as JSON on the last line. `pairs`: variants whose differences to print."""
    print(table_of(result.recall | result.baselines, k))
    if compared := differences(result.recall, pairs):
        print(f"\n{table_of(compared, k)}")
    for name, weights in result.weights.items():
        means = ", ".join(f"{part} {np.mean(values):.3f}" for part, values in sorted(weights.items()))
        print(f"\nmean weights of {name}: {means}")
    print(json.dumps(asdict(result)))


def main() -> None:
    """Run every variant with every seed."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config", required=True)
    flags.add_argument("--ds", required=True)
    flags.add_argument("--set", action="append", default=[], dest="overrides", help="a.b=c, for all variants")
    flags.add_argument("--variant", action="append", required=True, type=variant, help="'NAME: a.b=c d.e=f'")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--k", type=int, default=50)
    options = flags.parse_args()
    result = study(options.config, options.overrides, options.ds, options.variant, options.seeds, options.k)
    report(result, options.k)


if __name__ == "__main__":
    main()

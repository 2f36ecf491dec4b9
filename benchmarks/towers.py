"""Compares towers, features and self-supervision on a simulated product with many new items: `make bench-towers`.

The product is that of conf/demo.yaml, but 40% of its items are published during the simulation, and users and items have two
noise features. Every variant trains on one night of six days with three seeds, and is evaluated on the clicks of the next
day. `--warehouse DIR` keeps the tables and reuses existing ones; `--seeds N`; `--only TEXT` runs only variants whose names
contain TEXT. Prints the tables of benchmarks.study. Takes about 40 minutes on 2 cores.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.study import Variant, report, study
from jobs import build_negatives, build_positives, simulate_logs
from jobs.common.config import load_config
from jobs.common.runner import Context
from jobs.tracking.tracker import Tracker
from pipelines.session import open_session
from pipelines.storage.warehouse import Warehouse

CONFIG, DS, DAYS, K = "conf/demo.yaml", "2024-03-07", 6, 50
NOISE = ("noise_1", "noise_2")


def product_overrides() -> list[str]:
    """Overrides of the demo config that define the product."""
    noise = [{"kind": "categorical", "name": name} for name in NOISE]
    features = load_config(CONFIG).features
    return [
        "simulation.new_item_share=0.4",
        f"simulation.noise_features={len(NOISE)}",
        *(
            f"features.{side}={json.dumps([*(feature.model_dump() for feature in configured), *noise])}"
            for side, configured in (("user", features.user), ("item", features.item))
        ),
    ]


def supervised(mask: str, weight: float, temperature: float) -> list[str]:
    """Overrides that switch on self-supervision."""
    name = "loss.self_supervision"
    return [f"{name}.mask={mask}", f"{name}.weight={weight}", f"{name}.temperature={temperature}"]


NO_CONTENT = [f"model.leave_out=[category, tags, price, {', '.join(NOISE)}]", "model.history_features=[]"]
NO_USER_ID = "model.leave_out=[user_id]"
NO_DROPOUT = "model.id_dropout=0.0"
SENET = [
    "model.tower=senet",
    "training.learning_rate=0.01",
]  # its weights start at 1 and have only 300 steps to change
VARIANTS: list[Variant] = [
    ("dssm", []),
    ("senet", SENET),
    ("parallel", ["model.tower=parallel", "model.dim=33"]),
    ("youtube_dnn", ["model.tower=youtube_dnn", "model.embedding_dim=32"]),
    ("sequence", ["model.tower=sequence"]),
    ("dssm, only ids on the item side", NO_CONTENT),
    ("dssm, without the user's id", [NO_USER_ID]),
    ("senet, without the user's id", [NO_USER_ID, *SENET]),
    ("dssm, history by decay", ["model.history_pooling=decay"]),
    ("dssm, history by attention", ["model.history_pooling=attention"]),
    ("dssm, self-supervision random", supervised("random", 3.0, 0.5)),
    ("dssm, self-supervision correlated", supervised("correlated", 0.1, 0.2)),
    ("dssm, no id dropout", [NO_DROPOUT]),
    ("dssm, no id dropout, self-supervision dropout", [NO_DROPOUT, *supervised("dropout", 0.3, 0.2)]),
    ("dssm, no id dropout, self-supervision correlated", [NO_DROPOUT, *supervised("correlated", 0.1, 0.2)]),
]
# Pairs of variants whose differences are printed.
PAIRS = [
    *((name, "dssm") for name, _ in VARIANTS if name != "dssm" and "no id dropout, " not in name),
    *((name, "dssm, no id dropout") for name, _ in VARIANTS if "no id dropout, " in name),
]


def build(overrides: list[str]) -> None:
    """Write the logs and sample tables of the night, unless they exist."""
    config = load_config(CONFIG, overrides)
    spark = open_session("bench-towers", {name: str(value) for name, value in config.spark.items()})
    arguments = argparse.Namespace(bootstrap_days=DAYS)
    context = Context(config, spark, Warehouse(spark, config.warehouse), arguments, DS, force=False)
    simulate_logs.run(context)
    tracker = Tracker(config, context.warehouse, DS)
    build_positives.run(context, tracker)
    build_negatives.run(context, tracker)
    tracker.close_night("FINISHED")
    spark.stop()


def main() -> None:
    """Build the night and run the study."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--warehouse")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--only", default="")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"warehouse={options.warehouse or Path(folder) / 'warehouse'}", *product_overrides()]
        build(overrides)
        chosen = [variant for variant in VARIANTS if options.only in variant[0]]
        report(study(CONFIG, overrides, DS, chosen, options.seeds, K), K, PAIRS)


if __name__ == "__main__":
    main()

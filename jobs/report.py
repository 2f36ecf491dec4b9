"""A table of nights: samples by kind, loss, Recall of the model and of what it is measured against, release."""

import argparse
import sys

from jobs.evaluate import headline_k, recalls
from jobs.nightly import add_days, days_of
from jobs.support.embeddings import release_id_of
from jobs.support.gates import refused_by
from jobs.support.release import folder_of
from jobs.support.runner import Context, aligned, main, parser
from jobs.support.tracking import tracking_uri

MODELS = {"two_tower": "model", "popularity": "popularity", "item_cf": "item-CF", "best_reachable": "best reachable"}


def run(context: Context) -> None:
    """Print the table, and how to look closer."""
    k = headline_k(context.config.evaluation.ks)
    header = ["night", "samples", "uniform", "popular", "coarse", "fine", "loss"]
    header += [f"{name}" for name in MODELS.values()] + ["release"]
    table = [header] + [_night(context.at(ds), k) for ds in days_of(context.args)]
    print(f"\nRecall@{k} in the columns {', '.join(MODELS.values())}; negatives a kind over all rows\n")
    print(aligned(table))
    uri = tracking_uri(context.config, context.warehouse.root)
    print(
        f"\nLook closer:  mlflow ui --backend-store-uri {uri}\n(in this project's virtual environment), then open http://127.0.0.1:5000"
    )


def _night(context: Context, k: int) -> list[str]:
    warehouse, ds = context.warehouse, context.ds
    samples, model = warehouse.manifest("samples", ds), warehouse.manifest("models", ds)
    if samples is None or model is None:
        return [ds, "not run"] + [""] * 10
    kinds = samples.facts["kinds"]
    cells = [ds, f"{samples.rows:,}", *(f"{kinds[kind]:,}" for kind in ("uniform", "popularity", "coarse", "fine"))]
    cells.append(f"{model.facts['loss']:.4f}")
    recall = recalls(context, k)
    cells += [f"{recall[name]:.4f}" if name in recall else "-" for name in MODELS]
    features = warehouse.require("item_features", ds, "")
    release = release_id_of(model, features)
    folder = folder_of(warehouse, release)
    if not warehouse.exists(f"{folder}/manifest.json"):
        return [*cells, "not published"]
    refused = refused_by(context, folder)
    return [*cells, f"{release} refused: {', '.join(refused)}" if refused else release]


def _flags() -> argparse.ArgumentParser:
    return add_days(parser("report", __doc__ or "", with_ds=False))


if __name__ == "__main__":
    sys.exit(main(_flags(), run))

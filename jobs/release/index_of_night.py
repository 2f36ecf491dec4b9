"""Chooses the index of a night by the recall for the night's users, and logs the choice."""

from dataclasses import asdict
from typing import Any

import numpy as np
from pyspark.sql import functions as F

from jobs.common.plots import index_sweep
from jobs.common.runner import Context, log
from jobs.inference.embed import embed_queries, within_model
from jobs.night.steps import open_night
from jobs.tracking.job_run import JobRun
from model.release_config import IndexConfig
from model.serving.faiss_index import Batches, Floats, IndexFactoryError
from model.serving.index_choice import ChosenIndex, choose_index, default_factory, search_parameter
from model.serving.recency_prior import with_scale
from pipelines.contract.errors import UsageError
from pipelines.contract.schema import FeatureSchema
from pipelines.hashing import hashed
from pipelines.queries import user_queries


def index_of_night(context: Context, batches: Batches, dim: int, prior: dict[str, Any] | None) -> ChosenIndex:
    """Choose the index of the item vectors of ds. Raises UsageError if Faiss cannot build the configured factory for them.

    `prior`: the recency prior that the vectors include.
    """
    config, items = context.config.index, context.warehouse.require("item_embeddings", context.ds, "").rows
    exact = search_parameter(config.factory or default_factory(items)) is None
    queries = np.zeros((0, dim), np.float32) if exact else _sweep_queries(context)
    queries = queries if exact else with_scale(queries, prior["scale"] if prior else None)
    try:
        chosen = choose_index(batches, dim, items, queries, config, context.config.seed)
    except IndexFactoryError as error:
        raise UsageError(str(error)) from None
    if chosen.factory != chosen.tried:
        log.warning(
            "publish_items %s: %s certainly reaches a recall of only %.4f, below index.recall_target %s: the index is exact",
            context.ds,
            chosen.tried,
            max(point.at_least for point in chosen.sweep),
            config.recall_target,
        )
    return chosen


def description(chosen: ChosenIndex, config: IndexConfig) -> dict[str, str | int | float | None]:
    """The index in the manifest of a release. Without times, so that a night that runs again writes the same manifest."""
    names = ("factory", "parameter", "value", "recall", "tried")
    return {name: getattr(chosen, name) for name in names} | {"recall_at": config.recall_at}


def sweep_of(chosen: ChosenIndex) -> list[dict[str, float]]:
    """The recall of each setting in the manifest of a release, without times. Empty for an exact index."""
    return [
        {"value": point.value, "recall": point.recall, "at_least": max(0.0, point.at_least)} for point in chosen.sweep
    ]


def log_index(job: JobRun, chosen: ChosenIndex, config: IndexConfig) -> None:
    """Log the recall and, if settings were compared, the curve over the settings as metrics, table and plot."""
    seconds = {f"index.{name}": getattr(chosen, name) for name in ("build_seconds", "exact_seconds")}
    job.metrics({f"index.recall_at_{config.recall_at}": chosen.recall} | seconds)
    if not chosen.sweep:
        return
    points = [asdict(point) for point in chosen.sweep]
    names = ("recall", "at_least", "seconds")
    job.series([{f"index.sweep.{name}": p[name] for name in names} | {"value": p["value"]} for p in points], "value")
    job.table({name: [point[name] for point in points] for name in points[0]}, "index_sweep")
    job.figure(index_sweep(points, chosen.exact_seconds, chosen.tried), "index_sweep")


def _sweep_queries(context: Context) -> Floats:
    """[n, d] vectors of n users with a history after ds, chosen by hash.

    The queries are users and not items, because users lie elsewhere in the space, and an index is easier to search at the
    position of one of its items.
    """
    warehouse, ds, config = context.warehouse, context.ds, context.config
    night, model = open_night(context), warehouse.require("models", ds, "")
    order = hashed("index", config.seed, F.col("user_id"))
    users = warehouse.read("user_histories", ds).select("user_id").orderBy(order, "user_id")
    rows = user_queries(night, config.features, users.limit(config.index.sweep_queries))
    rows = within_model(rows, FeatureSchema.model_validate(model.facts["schema"])).drop("known_items")
    files = tuple(warehouse.data_files(warehouse.path("item_features", ds)))
    queries = embed_queries(rows, warehouse.path("models", ds), model.fingerprint, files).sort("user_id").toPandas()
    return np.stack(queries["vector"].to_numpy()).astype(np.float32)

"""Reads table `evaluations`, for the tables that jobs print; and says which question it answers."""

from typing import Any

from pyarrow import parquet as pq

from jobs.common.config import Evaluation
from jobs.common.runner import Context
from model.io.urls import resolve
from pipelines.lost_day import carried_from
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest


def headline_k(ks: list[int]) -> int:
    """The cut-off that tables and plots show: 50 if it is measured, else the largest."""
    return 50 if 50 in ks else max(ks)


def question_of(config: Evaluation, days: list[str]) -> str:
    """The question that an evaluation answers. `days`: the days after ds whose logs it reads.

    >>> question_of(Evaluation(days=7), ["2024-03-08", "2024-03-09"])
    'positives of the next 7 days (logs of 2 so far), items new to the user'
    """
    if config.split == "last_positive":
        asked = "next positive of each user (the last one, held out)"
    else:
        asked = "positives of the next day" if config.days == 1 else f"positives of the next {config.days} days"
        asked += f" (logs of {len(days)} so far)" if len(days) < config.days else ""
    return f"{asked}, {'items new to the user' if config.new_items_only else 'all items'}"


def evaluation_of(context: Context, release_id: str | None = None) -> Manifest | None:
    """The manifest of `evaluations` of ds; None if ds was not evaluated.

    With `release_id`, also None if another release of ds was evaluated.
    """
    warehouse, ds = context.warehouse, context.ds
    evaluations, embeddings = warehouse.manifest("evaluations", ds), warehouse.manifest("item_embeddings", ds)
    if evaluations is None or embeddings is None:
        return None
    same_release = embeddings.facts["release_id"] == release_id
    same_vectors = evaluations.inputs["item_embeddings"] == embeddings.fingerprint
    return evaluations if release_id is None or (same_release and same_vectors) else None


def evaluated_night(context: Context) -> Context | None:
    """The night whose evaluation describes ds; None if there is none.

    It is ds itself or, until the log of a later day exists, the last night before ds, if that was evaluated on ds.
    """
    if evaluation_of(context) is not None:
        return context
    yesterday = shift(context.ds, -1)
    earlier = context.at(carried_from(context.warehouse.manifest("models", yesterday)) or yesterday)
    evaluation = evaluation_of(earlier)
    return earlier if evaluation and context.ds in evaluation.facts.get("days", []) else None


def recalls(context: Context, k: int, release_id: str | None = None) -> dict[str, float]:
    """Recall@k of ds for each model; empty where `evaluation_of` is None."""
    if evaluation_of(context, release_id) is None:
        return {}
    headline = ("recall", "all", k)
    return {r["model"]: r["value"] for r in evaluation_rows(context) if (r["metric"], r["slice"], r["k"]) == headline}


def evaluation_rows(context: Context) -> list[dict[str, Any]]:
    """All rows of `evaluations` of ds. The partition must exist."""
    rows: list[dict[str, Any]] = []
    for url in context.warehouse.data_files(context.warehouse.path("evaluations", context.ds)):
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:  # a few hundred rows: faster without Spark
            rows += pq.ParquetFile(file).read().to_pylist()
    return rows

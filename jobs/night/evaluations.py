"""Reads table `evaluations`, for the tables that jobs print; and says which question it answers."""

from typing import Any

from pyarrow import parquet as pq

from jobs.common.config import Evaluation
from jobs.common.runner import Context
from model.io.urls import resolve


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


def facts_of(context: Context) -> dict[str, Any]:
    """The facts in the manifest of `evaluations` of ds; empty if ds was not evaluated."""
    manifest = context.warehouse.manifest("evaluations", context.ds)
    return manifest.facts if manifest else {}


def recalls(context: Context, k: int, release_id: str | None = None) -> dict[str, float]:
    """Recall@k of ds for each model; empty if ds was not evaluated.

    With `release_id`, also empty if another release of ds was evaluated.
    """
    warehouse, ds = context.warehouse, context.ds
    evaluations, embeddings = warehouse.manifest("evaluations", ds), warehouse.manifest("item_embeddings", ds)
    if evaluations is None or embeddings is None:
        return {}
    same_release = embeddings.facts["release_id"] == release_id
    same_vectors = evaluations.inputs["item_embeddings"] == embeddings.fingerprint
    if release_id is not None and not (same_release and same_vectors):
        return {}
    rows: list[dict[str, Any]] = []
    for url in warehouse.data_files(warehouse.path("evaluations", ds)):  # a few hundred rows: faster without Spark
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            rows += pq.ParquetFile(file).read().to_pylist()
    headline = ("recall", "all", k)
    return {row["model"]: row["value"] for row in rows if (row["metric"], row["slice"], row["k"]) == headline}

"""Reads table `evaluations`, for the tables that jobs print."""

from jobs.common.runner import Context


def headline_k(ks: list[int]) -> int:
    """The cut-off that tables and plots show: 50 if it is measured, else the largest."""
    return 50 if 50 in ks else max(ks)


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
    rows = warehouse.read("evaluations", ds).where(f"metric = 'recall' and slice = 'all' and k = {int(k)}")
    return {row["model"]: row["value"] for row in rows.collect()}

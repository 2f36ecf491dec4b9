"""The id of the release of a night: its day and a digest of what it is made of."""

from pipelines.storage.manifest import Manifest, digest
from pipelines.storage.update import Update
from pipelines.storage.warehouse import Warehouse

PRIORS = "item_priors"  # the table of the recency prior


def release_id_of(
    model: Manifest, item_features: Manifest, priors: Manifest | None, update: Update | None = None
) -> str:
    """The id of the release of a model, its items and its prior. It is the same if the night runs again."""
    name = f"{model.ds}-{update.name}" if update else model.ds
    made_of = [manifest.fingerprint for manifest in (model, item_features, priors) if manifest]
    return f"{name}-{digest(made_of)[:8]}"


def release_id_at(warehouse: Warehouse, ds: str) -> str | None:
    """The id of the release of the model of ds; None if there is no model."""
    model, features, priors = (warehouse.manifest(table, ds) for table in ("models", "item_features", PRIORS))
    return release_id_of(model, features, priors) if model and features else None

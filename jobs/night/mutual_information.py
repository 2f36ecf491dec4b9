"""The mutual information of a night's item features, stored as a table and logged as a heat map."""

import numpy as np

from jobs.common.plots import heat_map
from jobs.common.runner import Context
from jobs.tracking.job_run import JobRun
from pipelines.contract.schema import Feature
from pipelines.features.mutual_information import mutual_information
from pipelines.storage.manifest import Recipe

TABLE = "feature_information"


def item_relations(context: Context, features: list[Feature], read: list[Feature], job: JobRun) -> list[list[float]]:
    """Mutual information [F, F] of the features that the model reads, in their order. 0 for vectors, which have none.

    The table covers all `features` of the item side, including those that the model leaves out. It is written once.
    """
    warehouse, ds = context.warehouse, context.ds
    source = warehouse.require("item_features", ds, f"run build_positives for ds={ds} first")
    described = [feature.model_dump() for feature in features]
    recipe = Recipe(context.config.hash_of("features"), {"item_features": source.fingerprint}, source.lineage)
    existing = warehouse.manifest(TABLE, ds)
    if not existing or not existing.made_by(recipe):
        frame = mutual_information(warehouse.read("item_features", ds), described, context.config.seed)
        warehouse.write(frame.coalesce(1), TABLE, ds, recipe)
    names = [feature.name for feature in features]
    place = {name: number for number, name in enumerate(names)}
    values = np.zeros((len(names), len(names)))
    for row in warehouse.read(TABLE, ds).collect():  # a few dozen rows
        values[place[row["feature"]], place[row["other"]]] = row["mutual_information"]
    job.figure(heat_map(values, names, "mutual information of item features, nats"), "feature_information")
    used = [place[feature.name] for feature in read]
    return values[np.ix_(used, used)].tolist()

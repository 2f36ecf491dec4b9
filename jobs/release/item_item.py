"""Fits the item-item part of a night's vectors on the known items of its users, and adds it to the model."""

import time

import numpy as np

from jobs.common.runner import Context, log
from jobs.night.steps import open_night
from jobs.release.heldout import held_out_since
from model.training.checkpoint import copy_item_item, write_item_item
from model.training.item_item_fit import ItemItemFit, fit_item_item
from model.training.spec import TrainingSpec
from pipelines.queries import known_pairs

ITEMS_PER_USER = 500  # The last ones, so that a few robots do not fill the memory of the driver.


def add_item_item(context: Context, spec: TrainingSpec) -> dict[str, float]:
    """Write the tables of the item-item part beside the trained towers in `spec.output`, if the model has such a part.

    An update within the day keeps those of its night. Returns what was fitted.
    """
    if spec.incremental:
        assert spec.warm_start is not None
        copy_item_item(spec.warm_start, spec.output)
        return {}
    started = time.perf_counter()
    fit = fit_of_night(context, spec)
    if fit is None:
        return {}
    write_item_item(spec.output, fit.tables)
    seconds = time.perf_counter() - started
    log.info(
        "train %s: item-item part of %s items, from %s pairs of %s users, %.1f s",
        context.ds, f"{fit.items:,}", f"{fit.pairs:,}", f"{fit.users:,}", seconds,
    )  # fmt: skip
    return {"items": fit.items, "users": fit.users, "pairs": fit.pairs, "seconds": seconds}


def fit_of_night(context: Context, spec: TrainingSpec) -> ItemItemFit | None:
    """The item-item part of the night; None if the model has none.

    The held-out hours of ds are not fitted: gates compare releases on them.
    """
    config, features = spec.model.item_item, spec.features
    if config is None or features.history is None or features.item_id.hashed:
        return None
    rows = known_pairs(open_night(context), ITEMS_PER_USER, config.users, held_out_since(context))
    lists = rows.toPandas()["items"]
    users_p = np.repeat(np.arange(len(lists)), lists.map(len))
    items_p = np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64)
    inside = items_p < features.item_id.size
    return fit_item_item(users_p[inside], items_p[inside], features.item_id.size, spec.model.item_item_rank, config)

"""The item-item part of a night's vectors, fitted on the known items of its users."""

import time

import numpy as np

from jobs.common.runner import Context, log
from jobs.night.steps import open_night
from jobs.release.heldout import held_out_since
from model.config import ModelConfig
from model.io.urls import read_column_parts, read_lists
from model.item_item_config import ItemItemConfig
from model.training.checkpoint import copy_item_item, read_description, write_item_item
from model.training.item_item_fit import ItemItemFit, KnownItems, fit_item_item
from model.training.spec import TrainingSpec
from pipelines.contract.errors import NightjarError
from pipelines.queries import known_items

ITEMS_PER_USER = 500  # The last ones, so that a few robots do not decide, and to bound the time.


def part_of_night(spec: TrainingSpec) -> ItemItemConfig | None:
    """The settings of the part that is fitted tonight; None if the model has none, or the features allow none."""
    features = spec.features
    if spec.incremental or features.history is None or features.item_id.hashed:
        return None
    return spec.model.item_item


def fit_of_night(context: Context, spec: TrainingSpec) -> ItemItemFit | None:
    """Fit the item-item part of the night and log the figures; None if it has none.

    The held-out hours of ds are not fitted: gates compare releases on them. It needs nothing of the training, and runs before
    it, so that hours of training are not lost if it fails.
    """
    config = part_of_night(spec)
    if config is None:
        return None
    started = time.perf_counter()
    live_V = np.zeros(spec.features.item_id.size, np.bool_)
    for item_index in read_column_parts(spec.item_features, "item_index"):
        live_V[item_index[item_index < len(live_V)]] = True
    try:
        fit = fit_item_item(_known_items(context, config.users), live_V, spec.model.item_item_rank, config)
    except MemoryError as error:
        raise NightjarError(
            f"train {context.ds}: the memory is not enough for the item-item part of {config.items:,} items and "
            f"{config.users:,} users ({error}). Lower model.item_item.items or model.item_item.users, or turn it off "
            "(model.item_item: null)"
        ) from error
    log.info(
        "train %s: item-item part of %s items, from %s pairs of %s users, %.1f s",
        context.ds, f"{fit.items:,}", f"{fit.pairs:,}", f"{fit.users:,}", time.perf_counter() - started,
    )  # fmt: skip
    return fit


def _known_items(context: Context, most_users: int) -> KnownItems:
    """The last items of users, through files: they may be more than Spark's driver may collect."""
    warehouse = context.warehouse
    staging = warehouse.new_staging("known_items", context.ds)
    try:
        users = known_items(open_night(context), ITEMS_PER_USER, most_users, held_out_since(context))
        users.select("items").write.parquet(staging)
        return KnownItems(*read_lists(warehouse.data_files(staging), "items"))
    finally:
        warehouse.delete(staging)


def add_item_item(spec: TrainingSpec, fit: ItemItemFit | None) -> None:
    """Write the tables of the item-item part beside the trained towers in `spec.output`, if there is one.

    An update within the day keeps those of its night.
    """
    if spec.incremental:
        assert spec.warm_start is not None
        copy_item_item(spec.warm_start, spec.output)
    elif fit:
        write_item_item(spec.output, fit.tables)


def model_of_update(model: ModelConfig, warm_start: str) -> ModelConfig:
    """The config of an update within the day: with the item-item part of the model that it continues from.

    Its tables are those of the night, and only the next night changes them.
    """
    of_night = ModelConfig.model_validate(read_description(warm_start)["model"]).item_item
    if model.item_item != of_night:
        log.info("train: the settings of model.item_item differ from those of the night; the next night takes them up")
    return model.model_copy(update={"item_item": of_night})

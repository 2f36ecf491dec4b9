"""Builds the model to train: towers, catalogue and loss, from random parameters or from last night's checkpoint."""

import logging
import math
from typing import Any

import torch

from model.data.catalogue import Catalogue, SamplingProbabilities
from model.data.petastorm_reader import plan_files
from model.data.popularity import read_log_popularity
from model.distributed.collectives import world_size
from model.loss.self_supervision import SelfSupervision, require_views
from model.loss.streaming_frequency import FrequencyEstimator
from model.network.two_tower import TwoTower
from model.seeds import derive_seed
from model.training.checkpoint import FREQUENCY, WarmStartError, read_state, warm_start
from model.training.device import training_device
from model.training.spec import TrainingSpec
from model.training.step import RetrievalStep
from pipelines.contract.schema import FeatureSchema

log = logging.getLogger(__name__)


def build_step(spec: TrainingSpec) -> RetrievalStep:
    """Build the model and load the tables that its loss reads. Continues from `spec.warm_start` if it is set.

    Raises WarmStartError if the checkpoint does not fit the spec.
    """
    torch.manual_seed(derive_seed(spec.seed, "parameters"))
    training = spec.training
    # In an incremental update every table has sparse gradients, so that only rows of the batch change.
    sparse = 1 if spec.incremental else training.embedding_rows_sparse
    towers = TwoTower(spec.features, spec.model, sparse, training.embedding_rows_sharded)
    before = warm_start(towers, spec.warm_start) if spec.warm_start else None
    if before and before["result"].get("lift", False) != spec.loss.lift:
        raise WarmStartError(_changed_lift(spec))
    if spec.loss.correction == "none" and not spec.item_stats:
        q = SamplingProbabilities(*(torch.zeros(spec.features.item_id.size) for _ in range(3)))
    else:
        q = SamplingProbabilities.read(spec.features, spec.item_stats)
    catalogue = Catalogue.read(spec.features, spec.item_features, training.catalogue_memory_mb, spec.item_versions)
    supervision = _build_self_supervision(spec, towers, catalogue)
    popularity = read_log_popularity(spec.features, spec.item_stats) if spec.loss.lift else None
    step = RetrievalStep(towers, catalogue, q, spec.loss, _build_frequency(spec, before), supervision, popularity)
    if before and spec.loss.learned_temperature:
        step.log_temperature.data.fill_(math.log(before["result"]["temperature"]))
        step.limit_temperature()
    step.move(training_device(training))
    return step


def _changed_lift(spec: TrainingSpec) -> str:
    before, now = ("contain", "lack") if spec.loss.lift else ("lack", "contain")
    was, is_ = str(not spec.loss.lift).lower(), str(spec.loss.lift).lower()
    return (
        f"cannot continue from {spec.warm_start}: loss.lift was {was}, is {is_}. Its vectors {before} popularity, tonight's "
        f"would {now} it. Set loss.lift and prior back, or train a new model from the past days with --bootstrap-days"
    )


def _build_self_supervision(spec: TrainingSpec, towers: TwoTower, catalogue: Catalogue) -> SelfSupervision | None:
    """The self-supervised loss, or None if the config has none.

    Raises ValueError if the item tower reads too few features for two views of an item.
    """
    config = spec.loss.self_supervision
    if config is None:
        return None
    require_views(towers)
    return SelfSupervision(config, catalogue, spec.seed, spec.item_relations)


def _build_frequency(spec: TrainingSpec, before: dict[str, Any] | None) -> FrequencyEstimator | None:
    """The streaming estimator of in-batch frequencies, or None if the loss uses exact frequencies.

    Continues from the estimator in `spec.warm_start` if there is one. `before`: description of that checkpoint.
    Raises WarmStartError if the arrays of the checkpoint do not fit the config.
    """
    if spec.loss.correction == "none" or spec.loss.frequencies == "exact":
        return None
    plan = plan_files(spec.train, world_size(), spec.training.batch_size)
    items, rows_per_step = spec.features.item_id.size, round(plan.positives / plan.steps)
    frequency = FrequencyEstimator(spec.loss.streaming, items / rows_per_step, rows_per_step)
    if before is None or spec.warm_start is None:
        return frequency
    state = read_state(spec.warm_start, FREQUENCY)
    if not state:
        log.info("%s has no estimated frequencies: the estimator starts empty", spec.warm_start)
        return frequency
    try:
        frequency.resume(state, rows_per_step)
    except ValueError as error:
        raise WarmStartError(
            f"cannot continue from {spec.warm_start}: {error}. Set the config back, or train a new model from the past "
            "days with --bootstrap-days"
        ) from None
    old_items = FeatureSchema.model_validate(before["schema"]).item_id.size
    frequency.introduce(torch.arange(old_items, items))
    return frequency

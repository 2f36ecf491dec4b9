"""Training: the loop, with or without other processes.

Shapes: U shared candidates, B rows of this rank, d vector length.
"""

import logging
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from model.batching import plan_epoch
from model.catalogue import Catalogue, SamplingProbabilities
from model.checkpoint import WarmStartError, read_state, save_checkpoint, warm_start
from model.collectives import rank, sum_over_ranks, world_size
from model.data import USER, Samples, sample_columns
from model.features import DEFAULT, Batch, table_name
from model.frequency import FrequencyEstimator
from model.health import look
from model.metrics import Recorder
from model.optimisation import build_optimizers, build_schedulers, clip_gradients
from model.schema import FeatureSchema
from model.seeds import derive_seed
from model.self_supervision import SelfSupervision
from model.spec import EpochMetrics, TrainingResult, TrainingSpec
from model.step import FIGURES, RetrievalStep, StepOutput
from model.two_tower import TwoTower

log = logging.getLogger(__name__)


class DegenerateLossError(RuntimeError):
    """The loss is no longer a number: nothing that follows could be."""


def train(spec: TrainingSpec) -> TrainingResult:
    """Train as `spec` says and write its checkpoint. In a process group every rank calls this with the same spec.

    Raises DegenerateLossError, WarmStartError, ColumnError or TooFewRowGroupsError; then no checkpoint is written.
    """
    with torch.random.fork_rng(devices=[]):  # The caller's random numbers are none of ours.
        started = time.perf_counter()
        step = build_step(spec)
        samples = Samples(spec.train, sample_columns(spec.features), spec.training, spec.seed, rank(), world_size())
        recorder = Recorder(samples.plan.steps * spec.epochs)
        epochs = _fit(step, samples, spec, recorder)
        result = TrainingResult(
            parameters=sum(parameter.numel() for parameter in step.towers.parameters()),
            steps=recorder.step,
            rows=round(recorder.total("rows")),
            metrics=recorder.points,
            epochs=epochs,
            masked={"shared": round(recorder.total("masked_shared")), "hard": round(recorder.total("masked_hard"))},
            rows_without_negatives=round(recorder.total("rows_without_negatives")),
            temperature=float(torch.as_tensor(step.temperature).detach()),
            seconds=time.perf_counter() - started,
        )
        if rank() == 0:
            rest_unseen_items(step)
            save_checkpoint(spec.output, step.towers, _state_of(step), result)
        return result


def build_step(spec: TrainingSpec) -> RetrievalStep:
    """The model to train, from nothing or from last night's, with the tables that its loss reads."""
    torch.manual_seed(derive_seed(spec.seed, "parameters"))
    towers = TwoTower(spec.features, spec.model, spec.training.embedding_rows_sparse)
    before = warm_start(towers, spec.warm_start) if spec.warm_start else None
    if spec.loss.correction == "none" and not spec.item_stats:
        q = SamplingProbabilities(*(torch.zeros(spec.features.item_id.size) for _ in range(3)))
    else:
        q = SamplingProbabilities.read(spec.features, spec.item_stats)
    catalogue = Catalogue.read(spec.features, spec.item_features, spec.training.catalogue_memory_mb)
    supervision = _self_supervision(spec, towers, catalogue)
    step = RetrievalStep(towers, catalogue, q, spec.loss, _frequency(spec, before), supervision)
    if before and spec.loss.learned_temperature:
        step.log_temperature.data.fill_(math.log(before["result"]["temperature"]))
        step.limit_temperature()
    return step


def _self_supervision(spec: TrainingSpec, towers: TwoTower, catalogue: Catalogue) -> SelfSupervision | None:
    """The second loss, where the config has one. Raises ValueError where the item tower has no two views of an item."""
    config = spec.loss.self_supervision
    if config is None:
        return None
    if len(towers.item_features) < len(spec.features.item):
        raise ValueError(
            f"loss.self_supervision hides features of items, and tower {spec.model.tower} does not read them: take another "
            "tower, or leave it out"
        )
    return SelfSupervision(config, catalogue, spec.seed, spec.item_relations)


FREQUENCY = "frequency."  # Prefix of the estimator's arrays in the state of a checkpoint.


def _frequency(spec: TrainingSpec, before: dict[str, Any] | None) -> FrequencyEstimator | None:
    """The estimator of in-batch frequencies, going on from last night's where there is one; None: exact ones are used.

    Raises WarmStartError where last night's arrays do not fit.
    """
    if spec.loss.correction == "none" or spec.loss.frequencies == "exact":
        return None
    plan = plan_epoch([file.rows for file in spec.train], world_size(), spec.training.batch_size)
    items, rows = spec.features.item_id.size, round(sum(plan.rank_rows) / plan.steps)
    frequency = FrequencyEstimator(spec.loss.streaming, items / rows, rows)
    if before is None or spec.warm_start is None:
        return frequency
    state = {
        name.removeprefix(FREQUENCY): values
        for name, values in read_state(spec.warm_start).items()
        if name.startswith(FREQUENCY)
    }
    if not state:
        log.info("%s has no estimated frequencies: they are learned from here on", spec.warm_start)
        return frequency
    try:
        frequency.resume(state, rows)
    except ValueError as error:
        raise WarmStartError(
            f"cannot continue from {spec.warm_start}: {error}. Set the config back, or train a new model from the past "
            "days with --bootstrap-days"
        ) from None
    known = FeatureSchema.model_validate(before["schema"]).item_id.size
    frequency.introduce(torch.arange(known, items))
    return frequency


@torch.no_grad()
def rest_unseen_items(step: RetrievalStep) -> None:
    """Items that read the default row get its values as their own: with their first positive they go on from there."""
    ids = step.towers.schema.item_id
    if ids.rows is None or ids.hashed:
        return
    items = step.catalogue.present
    unseen = items[step.catalogue.gather(items)[ids.rows.column] == DEFAULT]
    table: Tensor = step.towers.tables[table_name(ids)].weight  # type: ignore[assignment]
    table[unseen] = table[DEFAULT].clone()


def _state_of(step: RetrievalStep) -> dict[str, Tensor]:
    """What the next night goes on with, beside the parameters."""
    if step.frequency is None:
        return {}
    return {f"{FREQUENCY}{name}": values for name, values in step.frequency.state_dict().items()}


def _fit(step: RetrievalStep, samples: Samples, spec: TrainingSpec, recorder: Recorder) -> list[EpochMetrics]:
    # DDP averages gradients over ranks; the step has multiplied its loss by their number, so it is the whole's.
    module: nn.Module = DistributedDataParallel(step, broadcast_buffers=False) if world_size() > 1 else step
    optimizers = build_optimizers(step, spec.training)
    schedulers = build_schedulers(optimizers, spec.training, samples.plan.steps * spec.epochs)
    half = torch.autocast("cpu", torch.bfloat16, enabled=spec.training.precision == "bfloat16")
    bar = tqdm(
        total=samples.plan.steps * spec.epochs, unit="step", disable=None if spec.progress and rank() == 0 else True
    )
    epochs: list[EpochMetrics] = []
    for epoch in range(spec.epochs):
        started, before = time.perf_counter(), recorder.total("loss")
        torch.manual_seed(derive_seed(spec.seed, "dropout", epoch, rank()))
        step.train()
        with samples.epoch(epoch) as batches:
            for waited, batch in _timed(batches):
                with half:
                    output: StepOutput = module(batch, samples.plan.capacity)
                figures = sum_over_ranks(output.figures)
                if not math.isfinite(float(figures[FIGURES.index("loss")] + figures[FIGURES.index("self_loss")])):
                    raise DegenerateLossError(_describe(output, batch, spec.features, recorder.step + 1))
                for optimizer in optimizers:
                    optimizer.zero_grad()
                output.loss.backward()
                norm = clip_gradients(step.parameters(), spec.training.gradient_clip)
                if not math.isfinite(norm):
                    raise DegenerateLossError(_describe(output, batch, spec.features, recorder.step + 1, norm))
                for optimizer in optimizers:
                    optimizer.step()
                step.limit_temperature()
                recorder.add(figures, norm, waited, _learning_rate(optimizers), partial(look, step, output))
                for scheduler in schedulers:
                    scheduler.step()
                bar.update()
        loss = (recorder.total("loss") - before) / samples.plan.steps
        valid_started = time.perf_counter()
        step.eval()
        valid_loss, valid_recall = validate(step, spec)
        recorder.skip_time(time.perf_counter() - valid_started)
        epochs.append(
            EpochMetrics(
                epoch=epoch,
                loss=loss,
                valid_loss=valid_loss,
                valid_recall_in_batch=valid_recall,
                weights=step.tower_weights(batch),
                seconds=time.perf_counter() - started,
            )
        )
        if rank() == 0:
            log.info("epoch %d of %d: %s", epoch + 1, spec.epochs, epochs[-1])
    bar.close()
    return epochs


def validate(step: RetrievalStep, spec: TrainingSpec) -> tuple[float | None, float | None]:
    """Mean loss and recall@10 among the shared candidates on the valid split; (None, None) without one.

    Every rank reads all of the split and takes its part of each batch: a split is small, may have fewer row groups than
    there are ranks, and gives the same figures on any number of them. `step` is in eval mode.
    """
    if not sum(file.rows for file in spec.valid):
        return None, None
    samples = Samples(spec.valid, sample_columns(spec.features), spec.training, spec.seed, rank=0, world_size=1)
    capacity = math.ceil(samples.plan.capacity / world_size())
    loss = rows = hits = 0.0
    with torch.no_grad(), samples.epoch(0, shuffle=False) as batches:
        for batch in batches:
            mine = {name: values[rank() :: world_size()] for name, values in batch.items()}
            figures = dict(zip(FIGURES, sum_over_ranks(step(mine, capacity).figures).tolist(), strict=True))
            loss += figures["loss"] * figures["rows"]
            rows += figures["rows"]
            hits += figures["hits"]
    return loss / rows, hits / rows


def _timed(batches: Iterator[dict[str, Tensor]]) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Each batch with the seconds that it was waited for."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield time.perf_counter() - started, batch


def _learning_rate(optimizers: list[Optimizer]) -> float:
    return float(optimizers[0].param_groups[0]["lr"])


def _describe(
    output: StepOutput, batch: Batch, features: FeatureSchema, step: int, gradient_norm: float | None = None
) -> str:
    """Where a loss went wrong: the candidates whose vectors are not finite, or else the rows."""
    where = f"Degenerate loss in step {step}: "
    broken = output.candidates.items_U[~output.items_Ud.isfinite().all(1)]
    if len(broken):
        return (
            f"{where}the vectors of {len(broken)} of {len(output.items_Ud)} candidates are not finite, for instance of "
            f"items {broken[:5].tolist()}: look at their item_features, then at the learning rate"
        )
    users_B, items_B = batch[USER], batch[features.item_id.column]
    rows = ~(output.losses_B * batch["weight"]).isfinite()
    if not bool(rows.any()) and gradient_norm is not None:
        return (
            f"{where}every loss is finite, but the norm of the gradient is {gradient_norm}. The batch has (user_index, "
            f"item_index) {_pairs(users_B, items_B)}: look at the learning rate, then at training.precision"
        )
    if not bool(rows.any()):
        return f"{where}rows of another process have a loss that is not finite; its message names them"
    return (
        f"{where}{int(rows.sum())} of {len(rows)} rows have a loss that is not finite, for instance those with "
        f"(user_index, item_index) {_pairs(users_B[rows], items_B[rows])}: look at their user features and weights in "
        "samples, then at the learning rate"
    )


def _pairs(users_B: Tensor, items_B: Tensor) -> str:
    return ", ".join(f"({user}, {item})" for user, item in zip(users_B[:5].tolist(), items_B[:5].tolist(), strict=True))

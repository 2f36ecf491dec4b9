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
from torch import Tensor
from tqdm import tqdm

from model.data.batching import plan_epoch
from model.data.catalogue import Catalogue, SamplingProbabilities
from model.data.petastorm_reader import USER, SampleReader, SharedSampleReader, sample_columns
from model.distributed.collectives import rank, sum_over_ranks, world_size
from model.distributed.replicated_embedding import distribute, exchange_gradients, replicated_tables
from model.distributed.sharded_embedding import local_rows, parameter_count, restore, shares_of, whole_state
from model.io.tensor_file import StreamedTensor, TensorFile
from model.loss.self_supervision import SelfSupervision, require_views
from model.loss.streaming_frequency import FrequencyEstimator
from model.network.embeddings import Batch, table_name
from model.network.two_tower import TwoTower
from model.seeds import derive_seed
from model.training.checkpoint import WarmStartError, read_state, save_checkpoint, state_file, warm_start
from model.training.health import measure_health
from model.training.optimisers import (
    build_optimizers,
    clip_gradients,
    optimizer_state,
    resume_optimizers,
    set_learning_rates,
)
from model.training.progress_lines import ProgressLines
from model.training.recorder import Recorder
from model.training.resume import Progress, find_progress, identity, save_progress
from model.training.spec import EpochMetrics, TrainingResult, TrainingSpec
from model.training.step import FIGURES, RetrievalStep, StepOutput
from model.training.trainable_rows import drop_default_row_gradients, train_only_id_tables
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema

log = logging.getLogger(__name__)


class DegenerateLossError(RuntimeError):
    """The loss is no longer a number: nothing that follows could be (exit 1)."""

    exit_code = 1


def train(spec: TrainingSpec) -> TrainingResult:
    """Train as `spec` says and write its checkpoint. In a process group every rank calls this with the same spec.

    Raises DegenerateLossError, WarmStartError, ColumnError or TooFewRowGroupsError; then no checkpoint is written.
    """
    with torch.random.fork_rng(devices=[]):  # The caller's random numbers are none of ours.
        started = time.perf_counter()
        step = build_step(spec)
        fit = TrainingLoop(step, spec)
        epochs, recorder = fit.run(), fit.recorder
        result = TrainingResult(
            parameters=parameter_count(step.towers),
            steps=recorder.step,
            rows=round(recorder.total("rows")),
            metrics=recorder.points,
            epochs=epochs,
            masked={"shared": round(recorder.total("masked_shared")), "hard": round(recorder.total("masked_hard"))},
            rows_without_negatives=round(recorder.total("rows_without_negatives")),
            temperature=float(torch.as_tensor(step.temperature).detach()),
            seconds=time.perf_counter() - started,
        )
        reset_unseen_items(step)
        save_checkpoint(spec.output, step.towers, fit.state(), result)
        return result


def build_step(spec: TrainingSpec) -> RetrievalStep:
    """The model to train, from nothing or from last night's, with the tables that its loss reads."""
    torch.manual_seed(derive_seed(spec.seed, "parameters"))
    training = spec.training
    # An update within the day changes no row that it has not met, so that what it changes stays small.
    sparse = 1 if spec.incremental else training.embedding_rows_sparse
    towers = TwoTower(spec.features, spec.model, sparse, training.embedding_rows_sharded)
    before = warm_start(towers, spec.warm_start) if spec.warm_start else None
    if spec.loss.correction == "none" and not spec.item_stats:
        q = SamplingProbabilities(*(torch.zeros(spec.features.item_id.size) for _ in range(3)))
    else:
        q = SamplingProbabilities.read(spec.features, spec.item_stats)
    catalogue = Catalogue.read(spec.features, spec.item_features, spec.training.catalogue_memory_mb, spec.item_versions)
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
    require_views(towers)
    return SelfSupervision(config, catalogue, spec.seed, spec.item_relations)


# Prefixes of what is kept beside a model: the estimator's arrays, the optimisers', in the middle of a run the parameters.
FREQUENCY, OPTIMIZER, PARAMETER = "frequency.", "optimizer.", "parameter."


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
    state = read_state(spec.warm_start, FREQUENCY)
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
def reset_unseen_items(step: RetrievalStep) -> None:
    """Items that read the default row get its values as their own: with their first positive they go on from there.

    Every rank sees to what it holds.
    """
    ids = step.towers.schema.item_id
    if ids.rows is None or ids.hashed:
        return
    items = step.catalogue.present
    unseen = items[step.catalogue.columns[ids.rows.column].gather(step.catalogue.rows(items)) == DEFAULT]
    table = step.towers.tables[table_name(ids)]
    default_1e = table(torch.tensor([DEFAULT]))
    values, places = local_rows(table, unseen)
    values[places] = default_1e


class TrainingLoop:
    """The loop over epochs and steps, with all that changes on the way."""

    def __init__(self, step: RetrievalStep, spec: TrainingSpec) -> None:
        """From the beginning, or from the checkpoint on the way of the same run, where there is one."""
        self.step, self.spec, self.run_id = step, spec, identity(spec)
        if spec.incremental:
            train_only_id_tables(step)
        self.optimizers = build_optimizers(step, spec.training)
        found = find_progress(spec.resume, self.run_id) if spec.resume else None
        self.progress = found[0] if found else None
        a_epoch = self.samples(world_size()).steps
        if self.progress:
            a_first = self.samples(self.progress.shards).steps
            done = self.progress.recorder.step - self.progress.steps_of_epoch
            self.total_steps = done + a_first + a_epoch * (spec.epochs - self.progress.epoch - 1)
        else:
            self.total_steps = a_epoch * spec.epochs
        self.recorder = Recorder(self.total_steps)
        self.lines: ProgressLines | None = None  # On rank 0, where no bar is shown.
        self.epochs: list[EpochMetrics] = []
        if found:
            self._resume(*found)
        elif spec.warm_start:
            self._warm_start(spec.warm_start)
        # After the tensors are there: those of rank 0 are spread.
        # Gradients are averaged over ranks; the step has multiplied its loss by their number, so they are the whole's.
        self.module = distribute(step) if world_size() > 1 else step
        self.replicated = list(replicated_tables(step).values())

    def run(self) -> list[EpochMetrics]:
        """Train to the end. Returns what is known of each epoch."""
        shown = self.spec.progress and rank() == 0
        bar = tqdm(total=self.total_steps, initial=self.recorder.step, unit="step", disable=not shown)
        self.lines = None if shown or rank() else ProgressLines(self.total_steps, self.recorder)
        progress = self.progress
        for epoch in range(progress.epoch if progress else 0, self.spec.epochs):
            self._epoch(epoch, bar, progress)
            progress = None
        bar.close()
        return self.epochs

    def state(self) -> dict[str, Tensor | StreamedTensor]:
        """What the next night goes on with, beside the parameters."""
        frequency = self.step.frequency.state_dict() if self.step.frequency else {}
        return {f"{FREQUENCY}{name}": values for name, values in frequency.items()} | self._gathered()

    def _gathered(self) -> dict[str, Tensor | StreamedTensor]:
        gathered = optimizer_state(self.step, self.optimizers)
        return {f"{OPTIMIZER}{name}": values for name, values in gathered.items()}

    def samples(self, shards: int) -> SharedSampleReader:
        """The rows of an epoch, in so many shares."""
        spec = self.spec
        columns = sample_columns(spec.features, versions=bool(spec.item_versions))
        return SharedSampleReader(
            spec.train, columns, spec.training, spec.seed, rank(), world_size(), shards, not spec.incremental
        )

    def _epoch(self, epoch: int, bar: tqdm, progress: Progress | None) -> None:
        """One pass, from its middle where `progress` says so."""
        started = time.perf_counter()
        shards = progress.shards if progress else world_size()
        skipped = progress.steps_of_epoch if progress else 0
        before = progress.loss_before if progress else self.recorder.total("loss")
        samples = self.samples(shards)
        # An update within the day drops no ids and learns no frequencies: both are of the whole that a night sees.
        self.step.train(not self.spec.incremental)
        with samples.epoch(epoch, skipped) as batches:
            for done, (waited, batch) in enumerate(_timed(batches), start=skipped + 1):
                self._step(batch, samples.capacity, waited)
                bar.update()
                if self.lines:
                    self.lines.after_step()
                every = self.spec.training.checkpoint_steps
                # Not after the last step of an epoch: what follows it is no step.
                if self.spec.resume and every and self.recorder.step % every == 0 and done < samples.steps:
                    self._save(epoch, done, shards, before)
        loss = (self.recorder.total("loss") - before) / samples.steps
        valid_started = time.perf_counter()
        self.step.eval()
        valid_loss, valid_recall = validate(self.step, self.spec)
        self.recorder.skip_time(time.perf_counter() - valid_started)
        self.epochs.append(
            EpochMetrics(
                epoch=epoch,
                loss=loss,
                valid_loss=valid_loss,
                valid_recall_in_batch=valid_recall,
                weights=self.step.tower_weights(batch),
                seconds=time.perf_counter() - started,
            )
        )
        if rank() == 0:
            log.info("epoch %d of %d: %s", epoch + 1, self.spec.epochs, self.epochs[-1])

    def _step(self, batch: Batch, capacity: int, waited: float) -> None:
        number, config = self.recorder.step, self.spec.training
        # What is random in a step depends on its number alone, so that a run can go on anywhere.
        torch.manual_seed(derive_seed(self.spec.seed, "dropout", number, rank()))
        if self.step.self_supervision:
            self.step.self_supervision.start_step(number)
        set_learning_rates(self.optimizers, number, self.total_steps, config)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            output: StepOutput = self.module(batch, capacity)
        figures = sum_over_ranks(output.figures)
        if not math.isfinite(float(figures[FIGURES.index("loss")] + figures[FIGURES.index("self_loss")])):
            raise DegenerateLossError(_describe(output, batch, self.spec.features, number + 1))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        output.loss.backward()
        exchange_gradients(self.replicated)
        if self.spec.incremental:
            drop_default_row_gradients(self.step)
        norm = clip_gradients(self.step.parameters(), shares_of(self.step), config.gradient_clip)
        if not math.isfinite(norm):
            raise DegenerateLossError(_describe(output, batch, self.spec.features, number + 1, norm))
        for optimizer in self.optimizers:
            optimizer.step()
        self.step.limit_temperature()
        rate = float(self.optimizers[0].param_groups[0]["lr"])
        self.recorder.add(figures, norm, waited, rate, partial(measure_health, self.step, output))

    def _save(self, epoch: int, done: int, shards: int, loss_before: float) -> None:
        if self.spec.resume is None:
            return
        progress = Progress(
            run=self.run_id,
            epoch=epoch,
            steps_of_epoch=done,
            shards=shards,
            loss_before=loss_before,
            epochs=self.epochs,
            recorder=self.recorder.state(),
        )
        # The estimator is a part of the step.
        parameters = {f"{PARAMETER}{name}": values for name, values in whole_state(self.step).items()}
        save_progress(self.spec.resume, progress, parameters | self._gathered())

    def _warm_start(self, before: str) -> None:
        """The optimisers go on from last night's too: Adam without its averages takes its first steps blindly."""
        try:
            with state_file(before) as file:
                resume_optimizers(self.step, self.optimizers, file, OPTIMIZER)
        except ValueError as error:
            log.info("%s: %s; the optimisers begin anew", before, error)

    def _resume(self, progress: Progress, tensors: str) -> None:
        with TensorFile(tensors) as file:
            restore(self.step, file, PARAMETER)
            resume_optimizers(self.step, self.optimizers, file, OPTIMIZER)
        self.recorder.resume(progress.recorder)
        self.epochs = list(progress.epochs)
        if rank() == 0:
            log.info(
                "going on after step %d of %d (epoch %d)", self.recorder.step, self.total_steps, progress.epoch + 1
            )


def validate(step: RetrievalStep, spec: TrainingSpec) -> tuple[float | None, float | None]:
    """Mean loss and recall@10 among the shared candidates on the valid split; (None, None) without one.

    Every rank reads all of the split and takes its part of each batch: a split is small, may have fewer row groups than
    there are ranks, and gives the same figures on any number of them. `step` is in eval mode.
    """
    if not sum(file.rows for file in spec.valid):
        return None, None
    columns = sample_columns(spec.features, versions=bool(spec.item_versions))
    samples = SampleReader(spec.valid, columns, spec.training, spec.seed, rank=0, world_size=1)
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

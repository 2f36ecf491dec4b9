"""The training loop, on one process or on several.

Shapes: U shared candidates, B rows of this rank, d vector length.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from model.data.petastorm_reader import SharedSampleReader, sample_columns
from model.distributed.collectives import rank, sum_over_ranks, world_size
from model.distributed.replicated_embedding import distribute, exchange_gradients, replicated_tables
from model.distributed.sharded_embedding import parameter_count, restore, shares_of, whole_state
from model.io.tensor_file import StreamedTensor, TensorFile
from model.network.embeddings import Batch
from model.network.two_tower import TwoTower
from model.seeds import derive_seed
from model.training.build import build_step
from model.training.checkpoint import FREQUENCY, OPTIMIZER, PARAMETER, save_checkpoint, state_file
from model.training.degenerate_loss import degenerate_loss
from model.training.device import on_device, training_device
from model.training.early_stopping import BestEpoch, best_epoch
from model.training.hard_ramp import hard_scale
from model.training.health import measure_health
from model.training.optimisers import (
    build_optimizers,
    clip_gradients,
    optimizer_state,
    rate_share,
    resume_optimizers,
    set_learning_rates,
)
from model.training.progress_lines import ProgressLines, log_epoch, log_resume, log_start
from model.training.recorder import Recorder
from model.training.resume import Progress, find_progress, identity, save_progress
from model.training.row_decay import ItemDecay
from model.training.spec import EpochMetrics, TrainingResult, TrainingSpec
from model.training.step import FIGURES, LOSSES, RetrievalStep, StepOutput
from model.training.trainable_rows import drop_default_row_gradients, train_only_id_tables
from model.training.unseen_items import reset_unseen_items
from model.training.validation import validate

log = logging.getLogger(__name__)
AfterEpoch = Callable[[list[EpochMetrics], TwoTower], None]


def train(spec: TrainingSpec, after_epoch: AfterEpoch | None = None) -> TrainingResult:
    """Train as `spec` says and write the checkpoint. In a process group every rank calls this with the same spec.

    `after_epoch` gets the metrics of all epochs so far and the towers in eval mode, which it must not change. If it raises,
    training ends with that error.

    Raises DegenerateLossError, WarmStartError, ColumnError or TooFewRowGroupsError; no checkpoint is written then.
    """
    device = training_device(spec.training)
    # Leaves the caller's random state as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        started = time.perf_counter()
        step = build_step(spec)
        loop = TrainingLoop(step, spec, after_epoch)
        epochs, recorder = loop.run(), loop.recorder
        result = TrainingResult(
            parameters=parameter_count(step.towers),
            steps=recorder.step,
            rows=round(recorder.total("rows")),
            metrics=recorder.points,
            epochs=epochs,
            best_epoch=best_epoch(epochs) if spec.early_stopping else None,
            masked={"shared": round(recorder.total("masked_shared")), "hard": round(recorder.total("masked_hard"))},
            rows_without_negatives=round(recorder.total("rows_without_negatives")),
            temperature=float(torch.as_tensor(step.temperature).detach()),
            lift=spec.loss.lift,
            seconds=time.perf_counter() - started,
        )
        reset_unseen_items(step)
        save_checkpoint(spec.output, step.towers, loop.state(), result)
        return result


class TrainingLoop:
    """Epochs and steps, with the state that changes from step to step: optimisers, recorder, progress."""

    def __init__(self, step: RetrievalStep, spec: TrainingSpec, after_epoch: AfterEpoch | None = None) -> None:
        """Starts at step 0, or resumes from the newest intermediate checkpoint of the same run in `spec.resume`."""
        self.step, self.spec, self.run_id = step, spec, identity(spec)
        self.after_epoch = after_epoch
        if spec.incremental:
            train_only_id_tables(step)
        self.optimizers = build_optimizers(step, spec.training)
        saved = find_progress(spec.resume, self.run_id) if spec.resume else None
        self.progress = saved[0] if saved else None
        self.total_steps = self._count_steps()
        self.recorder = Recorder(self.total_steps)
        self.lines: ProgressLines | None = None  # On rank 0 only, if there is no progress bar.
        self.epochs: list[EpochMetrics] = []
        self.best: BestEpoch | None = None
        if spec.early_stopping and spec.resume:
            self.best = BestEpoch(spec.early_stopping, spec.resume, self.run_id, spec.epochs)
        if saved:
            self._resume(*saved)
        elif spec.warm_start:
            self._warm_start(spec.warm_start)
        # Only after the tensors have been loaded: DDP broadcasts those of rank 0.
        # DDP averages gradients over ranks. The step multiplies its loss by their number, so the average is the sum.
        self.module = distribute(step) if world_size() > 1 else step
        self.replicated = list(replicated_tables(step).values())
        self.item_decay = ItemDecay(step, spec) if spec.training.embedding_weight_decay else None

    def run(self) -> list[EpochMetrics]:
        """Train to the end; with early stopping, go back to the best epoch. Returns the metrics of each epoch."""
        show_bar = self.spec.progress and rank() == 0
        log_start(self.spec, self.total_steps, self.step.device.type)
        bar = tqdm(total=self.total_steps, initial=self.recorder.step, unit="step", disable=not show_bar)
        self.lines = None if show_bar or rank() else ProgressLines(self.total_steps, self.recorder)
        progress = self.progress
        for epoch in range(progress.epoch if progress else 0, self.spec.epochs):
            self._epoch(epoch, bar, progress)
            progress = None
            if self.after_epoch:
                called = time.perf_counter()
                self.after_epoch(self.epochs, self.step.towers)
                self.recorder.skip_time(time.perf_counter() - called)
            if self.best:
                is_over = self.best.after_epoch(self.epochs, self._whole_state())
                if not self.spec.training.checkpoint_steps:  # There is no checkpoint that may need an earlier state.
                    self.best.delete_others(self.epochs)
                if is_over:
                    break
        bar.close()
        if self.best and (tensors := self.best.to_load(self.epochs)):
            for optimizer in self.optimizers:
                optimizer.state.clear()
            self._load_whole_state(tensors)
        return self.epochs

    def state(self) -> dict[str, Tensor | StreamedTensor]:
        """State that the next night continues from besides the parameters: frequency estimator and optimisers."""
        frequency = self.step.frequency.state_dict() if self.step.frequency else {}
        return {f"{FREQUENCY}{name}": values for name, values in frequency.items()} | self._optimizer_state()

    def samples(self, shards: int) -> SharedSampleReader:
        """The train split, read in `shards` shards."""
        spec = self.spec
        columns = sample_columns(spec.features, versions=bool(spec.item_versions), packing=spec.packing)
        shuffle = not spec.incremental
        return SharedSampleReader(
            spec.train, columns, spec.training, spec.seed, rank(), world_size(), shards, shuffle, spec.packing
        )

    def _count_steps(self) -> int:
        """Steps of the whole run. An epoch that is resumed keeps the number of shards that it began with."""
        steps_per_epoch = self.samples(world_size()).steps
        if self.progress is None:
            return steps_per_epoch * self.spec.epochs
        steps_before = self.progress.recorder.step - self.progress.steps_of_epoch
        resumed_epoch = self.samples(self.progress.shards).steps
        return steps_before + resumed_epoch + steps_per_epoch * (self.spec.epochs - self.progress.epoch - 1)

    def _epoch(self, epoch: int, bar: tqdm, progress: Progress | None) -> None:
        """One pass over the train split, then validation. `progress`: where to resume within the epoch."""
        started = time.perf_counter()
        shards = progress.shards if progress else world_size()
        skipped = progress.steps_of_epoch if progress else 0
        loss_before = progress.loss_before if progress else self.recorder.total("loss")
        samples = self.samples(shards)
        # An incremental update uses eval mode: no id dropout, and the frequency estimator does not learn. Both describe
        # the whole day, of which an update sees only a part.
        self.step.train(not self.spec.incremental)
        with samples.epoch(epoch, skipped) as batches:
            for done, (waited, batch) in enumerate(_timed(batches, self.step.device), start=skipped + 1):
                self._step(batch, samples.capacity, waited)
                bar.update()
                if self.lines:
                    self.lines.after_step()
                every = self.spec.training.checkpoint_steps
                # Not after the last step of an epoch: a resumed epoch needs at least one step.
                if self.spec.resume and every and self.recorder.step % every == 0 and done < samples.steps:
                    self._save(self.spec.resume, epoch, done, shards, loss_before)
        loss = (self.recorder.total("loss") - loss_before) / samples.steps
        valid_started = time.perf_counter()
        self.step.eval()
        valid = validate(self.step, self.spec)
        self.recorder.skip_time(time.perf_counter() - valid_started)
        self.epochs.append(
            EpochMetrics(
                epoch=epoch,
                loss=loss,
                valid_loss=valid.loss,
                valid_recall_in_batch=valid.recall_in_batch,
                step=self.recorder.step,
                weights=self.step.tower_weights(batch),
                seconds=time.perf_counter() - started,
            )
        )
        if not self.best:  # It logs its epochs itself.
            log_epoch(self.epochs[-1], self.spec.epochs)

    def _step(self, batch: Batch, capacity: int | None, waited: float) -> None:
        """One optimiser step. `capacity`: see RetrievalStep.forward. `waited`: seconds spent waiting for the batch."""
        number, config = self.recorder.step, self.spec.training
        # Random numbers of a step depend only on its number, so that a run can resume at any step.
        torch.manual_seed(derive_seed(self.spec.seed, "dropout", number, rank()))
        if self.step.self_supervision:
            self.step.self_supervision.start_step(number)
        if not self.spec.incremental:  # An update continues a trained model.
            self.step.hard_scale = hard_scale(number, self.total_steps, self.spec.loss.hard_ramp)
        set_learning_rates(self.optimizers, number, self.total_steps, config)
        with torch.autocast(self.step.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            output: StepOutput = self.module(batch, capacity)
        figures = sum_over_ranks(output.figures)
        if not math.isfinite(sum(float(figures[FIGURES.index(part)]) for part in LOSSES)):
            raise degenerate_loss(output, batch, self.spec.features, number + 1)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        output.loss.backward()
        exchange_gradients(self.replicated)
        if self.spec.incremental:
            drop_default_row_gradients(self.step)
        norm = clip_gradients(self.step.parameters(), shares_of(self.step), config.gradient_clip)
        if not math.isfinite(norm):
            raise degenerate_loss(output, batch, self.spec.features, number + 1, norm)
        if self.item_decay:
            rate = config.embedding_learning_rate * rate_share(number, self.total_steps, config)
            self.item_decay.apply(rate * config.embedding_weight_decay)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step.limit_temperature()
        rate = float(self.optimizers[0].param_groups[0]["lr"])
        self.recorder.add(figures, norm, waited, rate, partial(measure_health, self.step, output))

    def _optimizer_state(self) -> dict[str, Tensor | StreamedTensor]:
        state = optimizer_state(self.step, self.optimizers)
        return {f"{OPTIMIZER}{name}": values for name, values in state.items()}

    def _save(self, folder: str, epoch: int, done: int, shards: int, loss_before: float) -> None:
        """Write an intermediate checkpoint after step `done` of an epoch."""
        progress = Progress(
            run=self.run_id,
            epoch=epoch,
            steps_of_epoch=done,
            shards=shards,
            loss_before=loss_before,
            epochs=self.epochs,
            recorder=self.recorder.state(),
        )
        save_progress(folder, progress, self._whole_state())
        if self.best:
            self.best.delete_others(self.epochs)

    def _whole_state(self) -> dict[str, Tensor | StreamedTensor]:
        # The frequency estimator is a submodule of the step, so these hold its arrays too.
        parameters = {f"{PARAMETER}{name}": values for name, values in whole_state(self.step).items()}
        return parameters | self._optimizer_state()

    def _load_whole_state(self, tensors: str) -> None:
        """`tensors`: URL of what `_whole_state` returned."""
        with TensorFile(tensors) as file:
            restore(self.step, file, PARAMETER)
            resume_optimizers(self.step, self.optimizers, file, OPTIMIZER)

    def _warm_start(self, checkpoint: str) -> None:
        """Load last night's optimiser state: without moment estimates the first steps of Adam have no sensible scale."""
        try:
            with state_file(checkpoint) as file:
                resume_optimizers(self.step, self.optimizers, file, OPTIMIZER)
        except ValueError as error:
            log.info("%s: %s; the optimisers start without state", checkpoint, error)

    def _resume(self, progress: Progress, tensors: str) -> None:
        """Load an intermediate checkpoint. `tensors`: URL of its tensors."""
        self._load_whole_state(tensors)
        self.recorder.resume(progress.recorder)
        self.epochs = list(progress.epochs)
        log_resume(self.recorder.step, self.total_steps, progress.epoch)


def _timed(batches: Iterator[dict[str, Tensor]], device: torch.device) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Each batch, on the device, with the seconds spent waiting for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        batch = on_device(batch, device)
        yield time.perf_counter() - started, batch

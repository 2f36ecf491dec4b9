"""Train the two towers on the samples of a day, starting from last night's model (or, in a first night, from scratch).

For an update within the day (jobs/incremental.py): train on its samples in the order of time, and only the embedding tables
of ids.
"""

import sys
from contextlib import nullcontext
from typing import Any

from jobs.common import progress
from jobs.common.config import Config
from jobs.common.console import shows_bars
from jobs.common.plots import loss_curve, tower_weights
from jobs.common.runner import Context, log, main, parser
from jobs.common.stopping import Stopped
from jobs.morning.at_end import refresh_night
from jobs.night.mutual_information import item_relations
from jobs.night.preconditions import require_trainers
from jobs.night.steps import as_job, require_model
from jobs.night.training_inputs import TrainingInputs
from jobs.release.heldout import test_then_train, test_update
from jobs.release.item_item import add_item_item, fit_of_night, model_of_update
from jobs.tracking.datasets import datasets_of
from jobs.tracking.job_run import JobRun
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.system_metrics import system_metrics
from jobs.tracking.tracker import Tracker
from model.config import TrainingConfig
from model.io.urls import checksum
from model.training.checkpoint import ITEM_ITEM, PARAMETERS, STATE, has_item_item
from model.training.health import Health
from model.training.launch import launch
from model.training.resume import saved_steps
from model.training.spec import EarlyStopping, EpochMetrics, TrainingResult, TrainingSpec
from pipelines.contract.errors import UsageError
from pipelines.contract.schema import FeatureSchema
from pipelines.storage.dates import shift

CURVE_POINTS = 150  # more cannot be told apart on a page


def run(context: Context, tracker: Tracker) -> None:
    """Write `models` of ds, and log the training to MLflow."""
    warehouse, ds = context.warehouse, context.ds
    inputs = TrainingInputs.require(context)
    existing = warehouse.manifest("models", ds)
    if existing and existing.made_by(inputs.recipe) and not context.force:
        log.info("train %s: already done (loss %.4f)", ds, existing.facts["loss"])
        return
    require_trainers(context)
    if inputs.before:
        require_model(context, shift(ds, -1), "")
    offered, schema = inputs.schemas(context.config)
    training = training_of_night(context, inputs)
    # Measure the release in use on the events of the day before the new model has learned from them.
    if warehouse.update:
        tested: dict[str, Any] = {"within_day": test_update(context, tracker)}
    else:
        tested = {"day_recall": test_then_train(context, tracker)}
    staging = warehouse.new_staging("models", ds)
    if context.force:
        warehouse.delete_progress("models", ds)
    with tracker.job("train") as job, system_metrics(job):
        spec = training_spec(context, inputs, schema, training, staging)
        _record_inputs(context, inputs, spec, job)
        if context.config.loss.self_supervision and not warehouse.update:
            spec = spec.model_copy(update={"item_relations": item_relations(context, offered.item, schema.item, job)})
        fit = fit_of_night(context, spec)
        result = _train(context, spec)
        with warehouse.deleted_on_error(staging):
            add_item_item(spec, fit)
        # Write the table before logging: if MLflow does not answer, hours of training must not be lost.
        loss = result.kept_epoch.loss
        warehouse.finish_folder(staging, "models", ds, inputs.recipe, _facts(spec, result) | tested)
        warehouse.delete_progress("models", ds)
        _record_result(result, job)
        if fit:
            job.metrics({f"train/item_item/{name}": float(getattr(fit, name)) for name in ("items", "users", "pairs")})
        job.outcome = f"loss {loss:.4f}, {result.rows:,} rows in {result.steps:,} steps"
    log.info(
        "train %s: %s rows in %s steps, %.1f s, loss %.4f", ds, f"{result.rows:,}", result.steps, result.seconds, loss
    )


def training_of_night(context: Context, inputs: TrainingInputs) -> TrainingConfig:
    """The training config with the processes and learning rates of this night."""
    training = context.config.training
    # An update within the day has few rows and learns at the full rate.
    scale = training.warm_start_scale if inputs.before and not context.warehouse.update else 1.0
    rates = {name: getattr(training, name) * scale for name in ("learning_rate", "embedding_learning_rate")}
    return training.model_copy(update=rates | {"processes": inputs.processes(context)})


def training_spec(
    context: Context, inputs: TrainingInputs, schema: FeatureSchema, training: TrainingConfig, staging: str
) -> TrainingSpec:
    """Everything that the training processes need."""
    config, warehouse, ds = context.config, context.warehouse, context.ds
    update, before = warehouse.update, inputs.before
    # An update finds the model of the update before it under the date of yesterday.
    warm_start = warehouse.path("models", shift(ds, -1)) if before else None

    def files(table: str) -> list[str]:
        return warehouse.data_files(warehouse.path(table, ds))

    return TrainingSpec(
        features=schema,
        train=inputs.row_groups(context, "train"),
        valid=inputs.row_groups(context, "valid"),
        item_features=files("item_features"),
        item_versions=files("item_versions") if inputs.tables["item_versions"].rows else [],
        item_stats=files("item_stats"),
        item_relations=None,
        negatives=inputs.samples.facts["negatives"],
        pack=inputs.samples.facts.get("pack"),
        model=model_of_update(config.model, warm_start) if update and warm_start else config.model,
        loss=config.loss.model_copy(update={"self_supervision": None}) if update else config.loss,
        training=training,
        seed=config.seed,
        epochs=1 if update else config.training.epochs if before else _bootstrap_epochs(training),
        early_stopping=None if before else early_stopping(config, ds, inputs.positives("valid")),
        incremental=update is not None,
        warm_start=warm_start,
        output=staging,
        resume=warehouse.progress_folder("models", ds, inputs.recipe.inputs),
        progress=shows_bars() and (training.processes == 1 or config.training.launcher == "torchrun"),
        log_level=log.getEffectiveLevel(),
    )


def _bootstrap_epochs(training: TrainingConfig) -> int:
    """The number of passes of a first night, or the largest number if it is chosen while training."""
    return training.bootstrap_max_epochs if training.bootstrap_epochs == "auto" else training.bootstrap_epochs


def early_stopping(config: Config, ds: str, rows: int) -> EarlyStopping | None:
    """How a first night chooses its number of passes; None: the config has a number.

    `rows`: positives in the valid split. Logs a warning if they are few. Raises UsageError if there are none.
    """
    if config.training.bootstrap_epochs != "auto":
        return None
    of_hours = f"in the last hours of ds={ds} (positives.valid_hours = {config.positives.valid_hours:g})"
    if not rows:
        raise UsageError(
            f"training.bootstrap_epochs: auto measures each pass on the positives {of_hours}, and there is none: raise "
            "positives.valid_hours, or set a number of passes"
        )
    if rows < config.gates.least_users:
        log.warning(
            "training.bootstrap_epochs: auto measures each pass on %d positives %s. With so few, the choice is mostly chance: "
            "raise positives.valid_hours or training.bootstrap_patience, or set a number of passes", rows, of_hours,
        )  # fmt: skip
    return EarlyStopping(patience=config.training.bootstrap_patience)


def _train(context: Context, spec: TrainingSpec) -> TrainingResult:
    """Run the training. If the job is stopped, log from which step the next run resumes."""
    logs_itself = spec.training.processes > 1 and spec.training.launcher == "torchrun"
    with context.warehouse.deleted_on_error(spec.output):
        try:
            with progress.activity("") if logs_itself else nullcontext():
                return launch(spec)
        except Stopped:
            log.info("train %s: %s", context.ds, _place_to_resume(spec))
            raise


def _place_to_resume(spec: TrainingSpec) -> str:
    saved = saved_steps(spec.resume) if spec.resume else []
    if saved:
        return f"the training resumes from step {saved[-1]:,}, its last checkpoint"
    return (
        "the training has no checkpoint yet (training.checkpoint_steps = "
        f"{spec.training.checkpoint_steps}): it starts again from its first step"
    )


def _facts(spec: TrainingSpec, result: TrainingResult) -> dict[str, Any]:
    """The facts in the manifest of the model."""
    last = result.kept_metrics.model_dump()
    files = (PARAMETERS, STATE, *([ITEM_ITEM] if has_item_item(spec.output) else []))
    return {
        "content": [checksum(f"{spec.output}/{name}") for name in files],
        "loss": result.kept_epoch.loss,
        "steps": result.steps,
        "rows": result.rows,
        "epochs": result.kept_epoch.epoch + 1,
        "curve": _curve(result),
        "health": {name: last[name] for name in Health.model_fields},
        "schema": spec.features.model_dump(mode="json"),
    }


def _curve(result: TrainingResult) -> dict[str, list[list[float | None]]]:
    """The loss for the page of the night: about CURVE_POINTS of [step, loss], and [step, loss, validation loss] by epoch."""
    every = 1 + len(result.metrics) // CURVE_POINTS
    points = [*result.metrics[:-1:every], *result.metrics[-1:]]
    return {
        "steps": [[point.step, point.loss] for point in points],
        "epochs": [[epoch.step, epoch.loss, epoch.valid_loss] for epoch in result.epochs],
    }


def _record_inputs(context: Context, inputs: TrainingInputs, spec: TrainingSpec, job: JobRun) -> None:
    job.inputs(datasets_of(context, inputs.recipe.inputs), "training")
    for name in ("model", "loss", "training"):
        job.params({name: getattr(context.config, name).model_dump()})
    epochs = f"auto, at most {spec.epochs}" if spec.early_stopping else spec.epochs
    job.params({"epochs": epochs, "warm_start": inputs.before.ds if inputs.before else "none"})


def _record_result(result: TrainingResult, job: JobRun) -> None:
    points = [point.model_dump() for point in result.metrics]
    job.series(points, "step", "train/step/")
    job.series([_epoch_metrics(epoch) for epoch in result.epochs], "epoch", "train/epoch/")
    figures = ("parameters", "steps", "rows", "rows_without_negatives", "temperature", "seconds")
    totals = {name: float(getattr(result, name)) for name in figures} | {"loss": result.kept_epoch.loss}
    totals |= {f"masked_{name}": float(count) for name, count in result.masked.items()}
    totals["epochs"] = float(result.kept_epoch.epoch + 1)
    job.metrics({f"train/{name}": value for name, value in totals.items()})
    job.figure(loss_curve(points), "loss")
    if weights := result.kept_epoch.weights:
        job.figure(tower_weights(weights), "tower_weights")


def _epoch_metrics(epoch: EpochMetrics) -> dict[str, float]:
    """The metrics of an epoch, from 1. The weights of the towers are named weight/SIDE.NAME."""
    values = epoch.model_dump(exclude={"weights", "step"}, exclude_none=True) | {"epoch": epoch.epoch + 1}
    return values | {f"weight/{name}": weight for name, weight in epoch.weights.items()}


if __name__ == "__main__":
    job = as_job("train", run, refresh_night)
    sys.exit(main(parser("train", __doc__), job, before_spark=require_record))

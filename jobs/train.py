"""Train the two towers on a day's samples, from last night's model or (first night) from nothing.

Of an update within the day (jobs/incremental.py): on its samples, in the order of time, embedding tables of ids alone.
"""

import sys
from collections.abc import Mapping
from typing import Any

from jobs.common.plots import loss_curve, tower_weights
from jobs.common.runner import Context, log, main, parser
from jobs.common.stopping import Stopped
from jobs.night.mutual_information import item_relations
from jobs.night.preconditions import require_trainers
from jobs.night.sample_schema import schema_of
from jobs.night.steps import alone, require_model
from jobs.release.heldout import test_then_train, test_update
from jobs.tracking.tracker import Tracker
from model.io.urls import checksum
from model.training.checkpoint import PARAMETERS, STATE
from model.training.health import Health
from model.training.launch import launch
from model.training.resume import saved_steps
from model.training.spec import EpochMetrics, TrainingSpec
from pipelines.contract.errors import InputError, UsageError
from pipelines.contract.schema import FeatureSchema
from pipelines.storage.dates import shift
from pipelines.storage.lineage import common_lineage, one_lineage
from pipelines.storage.manifest import Manifest, Recipe

READ = ("samples", "item_features", "item_versions", "item_stats")
HASHED = ("features", "model", "loss", "training")


def run(context: Context, tracker: Tracker) -> None:
    """Write `models` for ds, and record the training."""
    config, warehouse, ds = context.config, context.warehouse, context.ds
    remedy = f"run build_negatives for ds={ds} first"
    made = {table: warehouse.require(table, ds, remedy) for table in READ}
    _refuse_stale(context, made["samples"], "positives", ds, remedy)
    first_night = made["samples"].facts["bootstrap_days"] > 0
    inputs = {table: manifest.fingerprint for table, manifest in made.items()}
    before, yesterday = None, shift(ds, -1)
    if not first_night:
        remedy = f"run train for ds={yesterday} first: nights build on each other"
        before = warehouse.require("models", yesterday, remedy)
        _refuse_stale(context, before, "samples", yesterday, f"run train for ds={yesterday} again")
        inputs[f"models@{yesterday}"] = before.fingerprint
    lineage = _lineage(made, before)
    recipe = Recipe(config.hash_of(*HASHED), inputs, lineage)
    existing = warehouse.manifest("models", ds)
    if existing and existing.made_by(recipe) and not context.force:
        log.info("train %s: already done (loss %.4f)", ds, existing.facts["loss"])
        return
    require_trainers(context)
    if before:
        require_model(context, yesterday, "")
    update = warehouse.update
    offered = schema_of(made["samples"], config)
    schema = _without(offered, config.model.leave_out)
    processes = _processes(context, made["samples"])
    if update:
        tested: dict[str, Any] = {"within_day": test_update(context, tracker)}
    else:
        tested = {"day_recall": test_then_train(context, tracker)}
    staging = warehouse.new_staging("models", ds)
    if context.force:
        warehouse.delete_progress("models", ds)
    epochs = config.training.bootstrap_epochs if first_night else 1 if update else config.training.epochs
    # An update learns what is new today, from few rows.
    scale = config.training.warm_start_scale if before and not update else 1.0
    training = config.training.model_copy(
        update={name: getattr(config.training, name) * scale for name in ("learning_rate", "embedding_learning_rate")}
        | {"processes": processes}
    )
    with tracker.job("train") as job:
        job.inputs(warehouse.root, inputs)
        for name in ("model", "loss", "training"):
            job.params({name: getattr(config, name).model_dump()})
        job.params({"epochs": epochs, "warm_start": before.ds if before else "none"})
        relations = None
        if config.loss.self_supervision and not update:
            relations = item_relations(context, offered.item, schema.item, job)
        spec = TrainingSpec(
            features=schema,
            train=_files(context, made["samples"], "train"),
            valid=_files(context, made["samples"], "valid"),
            item_features=warehouse.data_files(warehouse.path("item_features", ds)),
            item_versions=warehouse.data_files(warehouse.path("item_versions", ds))
            if made["item_versions"].rows
            else [],
            item_stats=warehouse.data_files(warehouse.path("item_stats", ds)),
            item_relations=relations,
            negatives=made["samples"].facts["negatives"],
            model=config.model,
            loss=config.loss.model_copy(update={"self_supervision": None}) if update else config.loss,
            training=training,
            seed=config.seed,
            epochs=epochs,
            incremental=update is not None,
            warm_start=warehouse.path("models", yesterday) if before else None,
            output=staging,
            resume=warehouse.progress_folder("models", ds, inputs),
            progress=sys.stderr.isatty() and (processes == 1 or config.training.launcher == "torchrun"),
        )
        with warehouse.deleted_on_error(staging):
            try:
                result = launch(spec)
            except Stopped:
                log.info("train %s: %s", ds, _place_to_resume(spec))
                raise
        loss, points = result.epochs[-1].loss, [point.model_dump() for point in result.metrics]
        facts = {
            "content": [checksum(f"{staging}/{name}") for name in (PARAMETERS, STATE)],
            "loss": loss,
            "steps": result.steps,
            "rows": result.rows,
            "epochs": epochs,
            "health": {name: points[-1][name] for name in Health.model_fields},
            "schema": schema.model_dump(mode="json"),
            **tested,  # Of the release in use, before it knew these events.
        }
        # Before it is recorded: the record may not answer, and hours of training would be lost with it.
        warehouse.finish_folder(staging, "models", ds, recipe, facts)
        warehouse.delete_progress("models", ds)
        job.series(points, "step")
        job.series([_figures(epoch) for epoch in result.epochs], "epoch")
        job.metrics({f"masked.{name}": float(count) for name, count in result.masked.items()})
        job.metrics(
            {
                "parameters": result.parameters,
                "steps": result.steps,
                "rows": result.rows,
                "rows_without_negatives": result.rows_without_negatives,
                "temperature": result.temperature,
                "train_seconds": result.seconds,
            }
        )
        job.figure(loss_curve(points), "loss")
        if weights := result.epochs[-1].weights:
            job.figure(tower_weights(weights), "tower_weights")
    tracker.night_metrics({"loss": loss})
    log.info(
        "train %s: %s rows in %s steps, %.1f s, loss %.4f", ds, f"{result.rows:,}", result.steps, result.seconds, loss
    )


def _place_to_resume(spec: TrainingSpec) -> str:
    """Where a training that was stopped resumes."""
    saved = saved_steps(spec.resume) if spec.resume else []
    if saved:
        return f"the training resumes from step {saved[-1]:,}, its last checkpoint"
    return (
        "the training has no checkpoint yet (training.checkpoint_steps = "
        f"{spec.training.checkpoint_steps}): it starts again from its first step"
    )


def _figures(epoch: EpochMetrics) -> dict[str, float]:
    """What is known of an epoch, the weights of the towers as weight.SIDE.NAME."""
    values = epoch.model_dump(exclude={"weights"}, exclude_none=True)
    return values | {f"weight.{name}": weight for name, weight in epoch.weights.items()}


def _without(offered: FeatureSchema, leave_out: list[str]) -> FeatureSchema:
    """The features that the model reads. UsageError where the config leaves out what is not there."""
    try:
        return offered.without(leave_out)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _refuse_stale(context: Context, manifest: Manifest, source: str, ds: str, remedy: str) -> None:
    """InputError where a partition was made from another `source` than the one that is there now."""
    now = context.warehouse.manifest(source, ds)
    if now is not None and now.fingerprint != manifest.inputs[source]:
        raise InputError(
            f"table {manifest.table} ds={ds} was made from an earlier {source}, which has been written anew: {remedy}"
        )


def _lineage(made: Mapping[str, Manifest], before: Manifest | None) -> str:
    """The lineage that samples and last night's model share. InputError where they do not."""
    ds = made["samples"].ds
    lineage = one_lineage(
        {f"table {t} ds={ds}": m for t, m in made.items()}, f"run build_positives and build_negatives for ds={ds} again"
    )
    if before is None:
        return lineage
    remedy = f"run build_negatives and train for ds={before.ds} again, then train for ds={ds}"
    return common_lineage({f"table samples ds={ds}": lineage, f"table models ds={before.ds}": before.lineage}, remedy)


def _processes(context: Context, samples: Manifest) -> int:
    """Training processes. UsageError if the samples have too few row groups for as many as the config asks for.

    An update within the day has few rows by nature: it takes as many processes as have something to read.
    """
    wanted, groups = context.config.training.processes, len(_files(context, samples, "train"))
    if groups >= wanted or not groups:
        return wanted
    if context.warehouse.update:
        log.info("train %s: %d processes, since the update has so many row groups", context.ds, groups)
        return groups
    raise UsageError(
        f"training.processes: {wanted} processes cannot share the {groups} row groups of samples ds={context.ds} "
        f"({samples.facts['splits']['train']['rows']:,} rows for training): lower training.processes to {groups}, or raise "
        "samples.trainers or lower samples.row_group_rows and run build_negatives again"
    )


def _files(context: Context, samples: Manifest, split: str) -> list[dict[str, object]]:
    """Row groups of a split as whole URLs with their rows, from the manifest."""
    folder = context.warehouse.path("samples", context.ds)
    groups = samples.facts["splits"].get(split, {"groups": []})["groups"]
    return [{"url": f"{folder}/{group['path']}", "rows": group["rows"]} for group in groups]


if __name__ == "__main__":
    sys.exit(main(parser("train", __doc__), alone(run)))

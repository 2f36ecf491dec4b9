"""Runs the steps of a night, and opens what they share: the day with its window, and the config of sample tables."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.common import progress
from jobs.common.config import Config
from jobs.common.runner import Context, log
from jobs.tracking.tracker import Tracker
from model.io.urls import checksum
from model.training.checkpoint import ITEM_ITEM, PARAMETERS, STATE
from pipelines.contract.errors import InputError
from pipelines.contract.log_lines import duration
from pipelines.night import Night, SampleConfig
from pipelines.storage.locks import locked
from pipelines.storage.manifest import Manifest

Step = Callable[[Context, Tracker], None]


@dataclass(frozen=True)
class StepsResult:
    """How far the steps of a night got. `error`: what `failed`, the last step that started, raised; None if all succeeded."""

    seconds: dict[str, float]  # of each finished step
    failed: str | None = None
    error: BaseException | None = None


# Called when the steps have ended, while the MLflow run is still open.
AtEnd = Callable[[Context, Tracker, StepsResult], None]
# Called when a job that runs alone has ended, while the MLflow run of its night is still open.
AfterJob = Callable[[Context, Tracker], None]


def sample_config(config: Config) -> SampleConfig:
    """The parts of the config that determine the sample tables."""
    return SampleConfig(config.features, config.positives, config.negatives, config.samples, config.checks)


def open_night(context: Context, bootstrap_days: int | None = None) -> Night:
    """The night of the context. By default the number of bootstrap days comes from the manifest of positives."""
    config = context.config
    if bootstrap_days is None:
        manifest = context.warehouse.manifest("positives", context.ds)
        bootstrap_days = int(manifest.facts["bootstrap_days"]) if manifest else 0
    return Night.open(
        context.warehouse, config.inputs, context.ds, config.seed, bootstrap_days, config.checks, config.features
    )


def require_model(context: Context, ds: str, remedy: str) -> Manifest:
    """The manifest of a night's model. Raises InputError if its files are missing or were changed after they were written."""
    warehouse = context.warehouse
    manifest, folder = warehouse.require("models", ds, remedy), warehouse.path("models", ds)
    # A model without an item-item part has two files.
    for name, digest in zip((PARAMETERS, STATE, ITEM_ITEM), manifest.facts["content"]):
        if not warehouse.exists(f"{folder}/{name}") or checksum(f"{folder}/{name}") != digest:
            raise InputError(
                f"table models ds={ds}: {folder}/{name} is not what was written: it is damaged or gone. Restore it, or "
                f"delete the folder {folder} and run the night of ds={ds} again to train the model anew"
            )
    return manifest


def run_steps(context: Context, steps: Sequence[tuple[str, Step]], at_end: AtEnd | None = None) -> None:
    """Run the steps of a night, or of an update within the day, under one MLflow run. `at_end` must not raise."""
    tracker = Tracker(context.config, context.warehouse, context.ds)
    started, seconds, name = time.perf_counter(), dict[str, float](), ""
    try:
        for number, (name, step) in enumerate(steps, 1):
            since = time.perf_counter()
            with progress.step(f"{name} {tracker.name}", f"step {number} of {len(steps)}"):
                step(context, tracker)
            seconds[name] = time.perf_counter() - since
        name = "report"
        if at_end:
            at_end(context, tracker, StepsResult(seconds))
    except BaseException as error:
        if at_end:
            at_end(context, tracker, StepsResult(seconds, name, error))
        tracker.close_night("FAILED")
        raise
    tracker.close_night("FINISHED")
    log.info(
        "%s: all steps done in %s, recorded in %s", tracker.title, duration(time.perf_counter() - started), tracker.uri
    )


def as_job(name: str, step: Step, after: AfterJob | None = None) -> Callable[[Context], None]:
    """A step as a separate job: it holds the lock of the day, and adds a child run to the MLflow run of its night.

    `after` is also called if the step fails, and must not raise.
    """

    def run(context: Context) -> None:
        with locked(context.warehouse, context.ds, name):
            recorded(context)

    def recorded(context: Context) -> None:
        tracker = Tracker(context.config, context.warehouse, context.ds, join_finished=True)
        try:
            with progress.step(f"{name} {tracker.name}"):
                step(context, tracker)
        except BaseException:
            if after:
                after(context, tracker)
            tracker.close_night("FAILED")
            raise
        if after:
            after(context, tracker)
        tracker.close_night("FINISHED")

    return run

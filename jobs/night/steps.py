"""What the jobs of a night share: the day with its window, the config that shapes tables, the record."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.common.config import Config
from jobs.common.runner import Context, log
from jobs.tracking.tracker import Tracker
from model.io.urls import checksum
from model.training.checkpoint import PARAMETERS, STATE
from pipelines.contract.errors import InputError
from pipelines.night import Night, SampleConfig
from pipelines.storage.locks import locked
from pipelines.storage.manifest import Manifest

Step = Callable[[Context, Tracker], None]


def sample_config(config: Config) -> SampleConfig:
    """The parts of the config that shape the sample tables."""
    return SampleConfig(config.features, config.positives, config.negatives, config.samples, config.checks)


def open_night(context: Context, bootstrap_days: int | None = None) -> Night:
    """The night of the context. How many days it began with is known from its positives, once they are written."""
    config = context.config
    if bootstrap_days is None:
        manifest = context.warehouse.manifest("positives", context.ds)
        bootstrap_days = int(manifest.facts["bootstrap_days"]) if manifest else 0
    return Night.open(
        context.warehouse, config.inputs, context.ds, config.seed, bootstrap_days, config.checks, config.features
    )


def require_model(context: Context, ds: str, remedy: str) -> Manifest:
    """The manifest of a night's model, whose files are those that it was written with. InputError where they are not."""
    warehouse = context.warehouse
    manifest, folder = warehouse.require("models", ds, remedy), warehouse.path("models", ds)
    for name, digest in zip((PARAMETERS, STATE), manifest.facts["content"], strict=True):
        if not warehouse.exists(f"{folder}/{name}") or checksum(f"{folder}/{name}") != digest:
            raise InputError(
                f"table models ds={ds}: {folder}/{name} is not what was written: it is damaged or gone. Put it back, or "
                f"delete the folder {folder} and run the night of ds={ds} again: the model is trained anew"
            )
    return manifest


def run_steps(context: Context, steps: Sequence[tuple[str, Step]]) -> None:
    """The steps of a night, or of an update within the day, under one run of the record."""
    tracker = Tracker(context.config, context.warehouse, context.ds)
    started = time.perf_counter()
    try:
        for name, step in steps:
            since = time.perf_counter()
            step(context, tracker)
            log.info("%s %s: %.1f s", name, tracker.name, time.perf_counter() - since)
    except BaseException:
        tracker.close_night("FAILED")
        raise
    tracker.close_night("FINISHED")
    log.info("night %s: %.1f s; the record is in %s", tracker.name, time.perf_counter() - started, tracker.uri)


def alone(step: Step) -> Callable[[Context], None]:
    """A step as a job of its own: it holds the day's lock, and adds itself to the record of its night."""

    def run(context: Context) -> None:
        # Its module is called __main__ where the job is the program.
        with locked(context.warehouse, context.ds, Path(step.__code__.co_filename).stem):
            recorded(context)

    def recorded(context: Context) -> None:
        tracker = Tracker(context.config, context.warehouse, context.ds, join_finished=True)
        try:
            step(context, tracker)
        except BaseException:
            tracker.close_night("FAILED")
            raise
        tracker.close_night("FINISHED")

    return run

"""The night of a day without interactions: copies state and model to the new date. The release in use stays."""

from jobs.common.runner import Context, log
from jobs.night.steps import open_night, require_model
from jobs.tracking.datasets import datasets_of
from jobs.tracking.tracker import Tracker
from pipelines.lost_day import CARRIED_FROM, CarriedState, carried_from, carry_state
from pipelines.storage.dates import shift
from pipelines.storage.manifest import MANIFEST, Manifest, Recipe

OF_ONE_DAY = ("day_recall", "within_day")  # facts of a model about the events of its own day


def carry_night(context: Context, tracker: Tracker) -> None:
    """Write the tables that the next night needs, and log where they come from."""
    before = require_model(
        context, shift(context.ds, -1), "a day without data needs a night before it; run that one first"
    )
    carried = carry_state(open_night(context, 0), force=context.force)
    model_done = _carry_model(context, before, carried)
    if not carried.done and not model_done:
        log.info("nightly %s: already carried forward from %s", context.ds, carried.day)
        return
    waiting = carried.manifests["positives"].rows
    with tracker.job("carry_forward") as job:
        job.inputs(datasets_of(context, {f"models@{before.ds}": before.fingerprint}), "carry_forward")
        job.tags({"no_data": f"state and model of {carried.day}"})
        job.metrics({"rows.waiting": float(waiting)})
        job.outcome = f"no data, as {carried.day}"
    log.info(
        "nightly %s: no data; state and model are those of %s, %s held-out rows wait for the next night, the release stays",
        context.ds,
        carried.day,
        f"{waiting:,}",
    )


def night_before(context: Context) -> str:
    """The last day with data before ds. It is earlier than the day before if days without data lie between."""
    yesterday = shift(context.ds, -1)
    return carried_from(context.warehouse.manifest("models", yesterday)) or yesterday


def _carry_model(context: Context, before: Manifest, carried: CarriedState) -> bool:
    """Copy the model of the night before. Returns whether anything was done."""
    warehouse, ds = context.warehouse, context.ds
    inputs = {f"models@{before.ds}": before.fingerprint}
    inputs |= {table: carried.manifests[table].fingerprint for table in ("item_features", "item_stats")}
    recipe = Recipe("no-data", inputs, carried.manifests["item_stats"].lineage)
    existing = warehouse.manifest("models", ds)
    if existing and existing.made_by(recipe) and not context.force:
        return False
    staging = warehouse.new_staging("models", ds)
    with warehouse.deleted_on_error(staging):
        warehouse.copy(warehouse.path("models", before.ds), staging)
        # Without a manifest the folder counts as incomplete if the job is killed here.
        warehouse.delete(f"{staging}/{MANIFEST}")
    facts = {name: fact for name, fact in before.facts.items() if name not in OF_ONE_DAY}
    warehouse.finish_folder(staging, "models", ds, recipe, facts | {CARRIED_FROM: carried.day})
    return True

"""A day without interactions: copies the tables of the night before to this ds, so that the next night can use them."""

from dataclasses import dataclass, replace

from pipelines.contract.errors import InputError, UsageError
from pipelines.files.table_files import list_files
from pipelines.night import STATE_TABLES, Night
from pipelines.storage.lineage import lineage_of_night
from pipelines.storage.manifest import Manifest, Recipe

CARRIED_FROM = "carried_from"  # fact of a manifest: the last day with data, from which the rows come
CARRIED_TABLES = (*STATE_TABLES, "item_features")


@dataclass(frozen=True)
class CarriedState:
    """The result of `carry_state`."""

    manifests: dict[str, Manifest]  # by table
    day: str  # the last day with data
    done: bool  # False if the step was skipped


def carry_state(night: Night, *, force: bool = False) -> CarriedState:
    """Copy the state tables and item_features of the night before to this ds, and its held-back rows to `positives`.

    No training has used the held-back (validation) rows yet, so the next night trains on them. Raises UsageError if ds has
    interactions, InputError if tables of the night before are missing.
    """
    _refuse_a_day_with_data(night)
    warehouse, ds, yesterday = night.warehouse, night.ds, night.yesterday
    assert yesterday is not None, "--no-data needs a night before"
    before = night.state()
    remedy = f"run ds={yesterday} first"
    before |= {table: warehouse.require(table, yesterday, remedy) for table in ("item_features", "positives")}
    day = carried_from(before["vocabularies"]) or yesterday
    fingerprints = {f"{table}@{yesterday}": manifest.fingerprint for table, manifest in before.items()}
    recipe = Recipe("no-data", fingerprints)
    recipe = replace(recipe, lineage=lineage_of_night(warehouse, ds, before.values(), recipe))
    written = {table: warehouse.manifest(table, ds) for table in before}
    complete = {table: made for table, made in written.items() if made is not None and made.made_by(recipe)}
    if len(complete) == len(before) and not force:
        return CarriedState(complete, day, False)

    warehouse.retract(tuple(before), ds)
    manifests = {
        table: warehouse.write(
            warehouse.read(table, yesterday), table, ds, recipe, facts=before[table].facts | {CARRIED_FROM: day}
        )
        for table in CARRIED_TABLES
    }
    held_back = warehouse.read("positives", yesterday).where("split = 'valid'")
    facts = {"schema": before["positives"].facts["schema"], "bootstrap_days": 0, CARRIED_FROM: day}
    manifests["positives"] = warehouse.write(
        held_back,
        "positives",
        ds,
        recipe,
        facts=lambda staged, _: facts | {"counts": {"held_back": staged.count()}},
        may_be_empty=True,
    )
    return CarriedState(manifests, day, True)


def carried_from(manifest: Manifest | None) -> str | None:
    """The last day with data if the partition was copied over days without data; else None."""
    return manifest.facts.get(CARRIED_FROM) if manifest else None


def _refuse_a_day_with_data(night: Night) -> None:
    """Raises UsageError if ds has interactions."""
    if night.ds not in night.inputs.days("interactions"):
        return
    uri = f"{night.inputs.uri('interactions')}/ds={night.ds}"
    if not list_files(night.warehouse, night.inputs.uri("interactions"), [night.ds]).data:
        return
    try:
        rows = night.inputs.count("interactions", night.ds)
    except InputError as error:
        raise InputError(f"--no-data: cannot tell whether ds={night.ds} has rows: {error}") from None
    if rows:
        raise UsageError(
            f"--no-data: table interactions has {rows:,} rows for ds={night.ds} ({uri}). Run the night without --no-data, "
            "or move this partition away if the model must not learn from it"
        )

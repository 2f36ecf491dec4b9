"""A day without interactions: the tables of the night before under the date of this day, so that the next night finds them."""

from dataclasses import dataclass, replace

from pipelines.contract.errors import InputError, UsageError
from pipelines.files.table_files import list_files
from pipelines.night import STATE_TABLES, Night
from pipelines.storage.lineage import lineage_of_night
from pipelines.storage.manifest import Manifest, Recipe

CARRIED_FROM = "carried_from"  # Fact of a manifest: the last day with data, whose rows these are.
CARRIED_TABLES = (*STATE_TABLES, "item_features")


@dataclass(frozen=True)
class Carried:
    """What `carry_state` wrote: the manifests by table, the last day with data, and whether anything was done."""

    manifests: dict[str, Manifest]
    day: str
    done: bool


def carry_state(night: Night, *, force: bool = False) -> Carried:
    """Write the state tables, item_features and positives of the night before again, as those of this ds.

    `positives` holds the validation rows of the night before: no training has had them, so the next night trains on them.
    Raises UsageError where ds has interactions, InputError where there is no night before.
    """
    _refuse_a_day_with_data(night)
    warehouse, ds, yesterday = night.warehouse, night.ds, night.yesterday
    assert yesterday is not None, "a bootstrap has no night before"
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
        return Carried(complete, day, False)

    warehouse.retract(tuple(before), ds)
    manifests = {
        table: warehouse.write(
            warehouse.read(table, yesterday), table, ds, recipe, facts=before[table].facts | {CARRIED_FROM: day}
        )
        for table in CARRIED_TABLES
    }
    waiting = warehouse.read("positives", yesterday).where("split = 'valid'")
    facts = {"schema": before["positives"].facts["schema"], "bootstrap_days": 0, CARRIED_FROM: day}
    manifests["positives"] = warehouse.write(
        waiting,
        "positives",
        ds,
        recipe,
        facts=lambda staged, _: facts | {"counts": {"held_back": staged.count()}},
        may_be_empty=True,
    )
    return Carried(manifests, day, True)


def carried_from(manifest: Manifest | None) -> str | None:
    """The last day with data, where a partition was carried forward over days without any; else None."""
    return manifest.facts.get(CARRIED_FROM) if manifest else None


def _refuse_a_day_with_data(night: Night) -> None:
    """UsageError where the night could be an ordinary one."""
    if night.ds not in night.inputs.days("interactions"):
        return
    uri = f"{night.inputs.uri('interactions')}/ds={night.ds}"
    if not list_files(night.warehouse, night.inputs.uri("interactions"), [night.ds]).data:
        return
    try:
        rows = night.inputs.count("interactions", night.ds)
    except InputError as error:
        raise InputError(f"--no-data: whether ds={night.ds} has rows is not known: {error}") from None
    if rows:
        raise UsageError(
            f"--no-data: table interactions has {rows:,} rows for ds={night.ds} ({uri}). Run the night without --no-data, "
            "or move this partition away if it must not be learned from"
        )

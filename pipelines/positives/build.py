"""The step build_positives: reads the state of yesterday and the inputs of ds, and writes the tables of users and items.

It writes vocabularies, user_histories, positives, item_stats, item_features and item_versions.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace

from pipelines.night import POSITIVE_TABLES, Night, SampleConfig, is_done
from pipelines.positives import popularity
from pipelines.positives.held_back import held_back_positives
from pipelines.positives.items import write_items
from pipelines.positives.read import InputDays, find_days, read_inputs, refuse_changed_buckets, refuse_other_items
from pipelines.positives.step import PositivesStep, persisted
from pipelines.positives.training_rows import write_positives_and_stats
from pipelines.positives.users import write_histories, write_holdout
from pipelines.positives.vocabularies import write_vocabularies
from pipelines.storage.lineage import lineage_of_night
from pipelines.storage.manifest import Manifest, Recipe, digest


def build_positives(
    night: Night, config: SampleConfig, config_hash: str, *, keep_last_out: bool = False, force: bool = False
) -> tuple[Manifest, bool]:
    """Write the tables of this step. Returns the manifest of `positives`, and False if the step was skipped.

    `keep_last_out`: write the last positive of each user only to `holdout` (for data in which users come once).
    Raises InputError if an input breaks its contract or the state of yesterday is missing; no table has changed then.
    """
    before = night.state()
    days = find_days(night, config)
    held_back = held_back_positives(night)
    recipe = _recipe(night, config_hash, days, before | ({"positives": held_back} if held_back else {}))
    tables = (*POSITIVE_TABLES, "holdout") if keep_last_out else POSITIVE_TABLES
    if is_done(night, tables, recipe, force):
        return night.warehouse.require("positives", night.ds, ""), False

    previous_facts = before["vocabularies"].facts if before else {}
    refuse_changed_buckets(night, config.features, previous_facts)
    inputs = read_inputs(night, config, days, keep_last_out)
    try:
        with persisted(popularity.count_days(inputs.events)) as item_days:
            refuse_other_items(night, inputs, item_days, days)
            # Write from here on: a night that is refused leaves the tables as they were.
            night.inputs.write_quarantine(night.ds, recipe, ("interactions", "items", "users"))
            night.warehouse.retract(tables, night.ds)
            step = PositivesStep(night, config, recipe, days, inputs, item_days, held_back)
            vocabularies = write_vocabularies(step, previous_facts)
            write_holdout(step, vocabularies)
            write_histories(step, vocabularies)
            manifest = write_positives_and_stats(step, vocabularies)
            write_items(step, vocabularies)
            return manifest, True
    finally:
        inputs.unpersist()


def _recipe(night: Night, config_hash: str, days: InputDays, before: Mapping[str, Manifest]) -> Recipe:
    """The fingerprints of all inputs. `before`: manifests of the tables of the night before, by table."""
    fingerprints = {
        "interactions": night.inputs.fingerprint("interactions", days.interactions),
        "items": night.inputs.fingerprint("items", days.items.to_read),
        "users": night.inputs.fingerprint("users", days.user_snapshots),
    }
    if night.warehouse.update:
        fingerprints["update"] = digest(asdict(night.warehouse.update))
    fingerprints |= {f"{table}@{night.yesterday}": manifest.fingerprint for table, manifest in before.items()}
    recipe = Recipe(config_hash, fingerprints)
    return replace(recipe, lineage=lineage_of_night(night.warehouse, night.ds, before.values(), recipe))

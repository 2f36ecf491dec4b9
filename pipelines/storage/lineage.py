"""Lineages: all nights that continue from one bootstrap. User and item indices have the same meaning only within a lineage.

A bootstrap names its lineage. Every table, model and release made from it inherits the name in its manifest. Manifests of
earlier versions have no name: build_positives derives it, and until then they match any lineage.
"""

from collections.abc import Iterable, Mapping

from pipelines.contract.errors import InputError
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest, Recipe, digest
from pipelines.storage.warehouse import Warehouse

UNKNOWN = ""


def lineage_of_bootstrap(ds: str, recipe: Recipe | Manifest) -> str:
    """The name of the lineage that a bootstrap starts: its day and a hash of its config and inputs.

    The same command on the same inputs gives the same name.
    """
    return f"{ds}-{digest([ds, recipe.config_hash, dict(recipe.inputs)])[:8]}"


def lineage_of_night(warehouse: Warehouse, ds: str, before: Iterable[Manifest], recipe: Recipe) -> str:
    """The lineage of ds. `before`: manifests of the state of the night before; empty if ds is a bootstrap with this recipe.

    Raises InputError if the state belongs to more than one lineage.
    """
    state = {f"{manifest.table} ds={manifest.ds}": manifest for manifest in before}
    if not state:
        return lineage_of_bootstrap(ds, recipe)
    remedy = "run build_positives again for every day from the first of the two, or start again with --bootstrap-days"
    lineage = one_lineage(state, remedy)
    return lineage or _derive_from_manifests(Warehouse(warehouse.spark, warehouse.root), shift(ds, -1))


def one_lineage(manifests: Mapping[str, Manifest], remedy: str) -> str:
    """The common lineage of manifests, given by name; UNKNOWN if none of them has a lineage.

    Raises InputError with two names whose lineages differ, and the remedy.
    """
    return common_lineage({name: manifest.lineage for name, manifest in manifests.items()}, remedy)


def common_lineage(lineages: Mapping[str, str], remedy: str) -> str:
    """The common lineage, from name -> lineage. See `one_lineage`."""
    named = [(name, lineage) for name, lineage in lineages.items() if lineage != UNKNOWN]
    for name, lineage in named[1:]:
        if lineage != named[0][1]:
            raise InputError(
                f"{named[0][0]} comes from the bootstrap of {described(named[0][1])}, and {name} from the bootstrap of "
                f"{described(lineage)}: the same index means a different user or item in each, so they cannot be used "
                f"together. Remedy: {remedy}"
            )
    return named[0][1] if named else UNKNOWN


def described(lineage: str) -> str:
    """The lineage as text: ds=2024-03-02 (lineage 2024-03-02-1a2b3c4d)."""
    return f"ds={lineage[:10]} (lineage {lineage})" if lineage else "an earlier version, which recorded no lineage"


def _derive_from_manifests(warehouse: Warehouse, ds: str) -> str:
    """The lineage of tables that an earlier version wrote, from the oldest night that their manifests still lead back to."""
    manifest = warehouse.require("vocabularies", ds, "run build_positives for this ds first")
    while True:
        day = shift(manifest.ds, -1)
        before = warehouse.manifest("vocabularies", day)
        if before is None or manifest.inputs.get(f"vocabularies@{day}") != before.fingerprint:
            return lineage_of_bootstrap(manifest.ds, manifest)
        if before.lineage != UNKNOWN:
            return before.lineage
        manifest = before

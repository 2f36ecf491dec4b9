"""Lineages: all nights that go on from one bootstrap. Indices of users and items mean the same within one, and nowhere else.

A bootstrap names its lineage; every table, model and release made from it inherits the name in its manifest. Manifests of
earlier versions have none: build_positives finds the name that they would have, and until then they match any lineage.
"""

from collections.abc import Iterable, Mapping

from pipelines.contract.errors import InputError
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest, Recipe, digest
from pipelines.storage.warehouse import Warehouse

UNKNOWN = ""


def lineage_of_bootstrap(ds: str, recipe: Recipe | Manifest) -> str:
    """The name of the lineage that a bootstrap begins: its day, and a digest of its config and inputs.

    The same command on the same inputs gives the same name.
    """
    return f"{ds}-{digest([ds, recipe.config_hash, dict(recipe.inputs)])[:8]}"


def lineage_of_night(warehouse: Warehouse, ds: str, before: Iterable[Manifest], recipe: Recipe) -> str:
    """The lineage of ds. `before`: the state of the night before; none: ds is a bootstrap with this recipe.

    Raises InputError where that state is of several lineages.
    """
    state = {f"{manifest.table} ds={manifest.ds}": manifest for manifest in before}
    if not state:
        return lineage_of_bootstrap(ds, recipe)
    remedy = "run build_positives again for every day from the first of the two, or start anew with --bootstrap-days"
    lineage = one_lineage(state, remedy)
    return lineage or _found_in_manifests(Warehouse(warehouse.spark, warehouse.root), shift(ds, -1))


def one_lineage(manifests: Mapping[str, Manifest], remedy: str) -> str:
    """The lineage that all of these share, by what they are called; UNKNOWN where none says so.

    Raises InputError that names two that differ, and the remedy.
    """
    return agreed({name: manifest.lineage for name, manifest in manifests.items()}, remedy)


def agreed(lineages: Mapping[str, str], remedy: str) -> str:
    """The only lineage among these, by what has it; see `one_lineage`."""
    known = [(name, lineage) for name, lineage in lineages.items() if lineage != UNKNOWN]
    for name, lineage in known[1:]:
        if lineage != known[0][1]:
            raise InputError(
                f"{known[0][0]} goes back to the bootstrap of {described(known[0][1])}, and {name} to the bootstrap of "
                f"{described(lineage)}: the same index is another user or item in each, so they are not used together. "
                f"Remedy: {remedy}"
            )
    return known[0][1] if known else UNKNOWN


def described(lineage: str) -> str:
    """ds=2024-03-02 (lineage 2024-03-02-1a2b3c4d)."""
    return f"ds={lineage[:10]} (lineage {lineage})" if lineage else "an earlier version, which named no lineage"


def _found_in_manifests(warehouse: Warehouse, ds: str) -> str:
    """The name of an older lineage, from the first night that its manifests still lead back to."""
    manifest = warehouse.require("vocabularies", ds, "run build_positives for this ds first")
    while True:
        day = shift(manifest.ds, -1)
        before = warehouse.manifest("vocabularies", day)
        if before is None or manifest.inputs.get(f"vocabularies@{day}") != before.fingerprint:
            return lineage_of_bootstrap(manifest.ds, manifest)
        if before.lineage != UNKNOWN:
            return before.lineage
        manifest = before

"""Stores releases: one folder per release, with an id and checksums. `current.json` names the release in use."""

import json
import re
from dataclasses import asdict, dataclass, field

from jobs.common.runner import Context, log
from model.serving.release import Release
from pipelines.contract.errors import InputError
from pipelines.storage.dates import shift
from pipelines.storage.lineage import UNKNOWN, common_lineage, described
from pipelines.storage.update import Update
from pipelines.storage.warehouse import Warehouse

FOLDER = "releases"
GATES = "gates.json"  # Next to the manifest of a release, and not one of its checked files.
NAME = re.compile(r"\w[\w-]*")


@dataclass(frozen=True)
class Current:
    """The content of `current.json`: the release in use, and releases that were rolled back.

    A release that was rolled back becomes current again only by name or with --force.
    """

    release_id: str = ""
    ds: str = ""
    rolled_back: list[str] = field(default_factory=list)


def folder_of(warehouse: Warehouse, release_id: str) -> str:
    """The folder of a release."""
    return f"{warehouse.root}/{FOLDER}/{release_id}"


def current_uri(warehouse: Warehouse) -> str:
    """The URI of `current.json`."""
    return f"{warehouse.root}/{FOLDER}/current.json"


def read_current(warehouse: Warehouse) -> Current:
    """Read `current.json`. The id is empty before the first release."""
    uri = current_uri(warehouse)
    if not warehouse.exists(uri):
        return Current()
    try:
        return Current(**json.loads(warehouse.read_text(uri)))
    except (ValueError, TypeError):
        raise InputError(
            f"{uri} is damaged: it names no release. Delete it, then name the release in use with `jobs.releases rollback "
            "RELEASE` (`jobs.releases list` shows the releases)"
        ) from None


def write_current(warehouse: Warehouse, current: Current) -> None:
    """Atomically update `current.json`."""
    warehouse.write_text(current_uri(warehouse), json.dumps(asdict(current)))


def all_releases(warehouse: Warehouse) -> list[Release]:
    """All releases, newest day first."""
    releases, folder = [], f"{warehouse.root}/{FOLDER}"
    for entry in warehouse.entries(folder) if warehouse.exists(folder) else []:
        uri = folder_of(warehouse, entry.name)
        if warehouse.exists(f"{uri}/manifest.json"):
            manifest = json.loads(warehouse.read_text(f"{uri}/manifest.json"))
            releases.append(Release(manifest["release_id"], uri, manifest))
    return sorted(releases, key=_age, reverse=True)


def _age(release: Release) -> tuple[str, bool, int, str]:
    """Sort key. The release of a night comes after the updates of its day."""
    update = update_of(release)
    return release.manifest["ds"], update is None, update.number if update else 0, release.release_id


def find_release(context: Context, release_id: str | None = None) -> Release:
    """The named release, or the current one. Raises InputError if it does not exist."""
    warehouse = context.warehouse
    if release_id is None:
        release_id = read_current(warehouse).release_id
        if not release_id:
            raise InputError(
                f"nothing is published yet in {warehouse.root}/{FOLDER}: run publish_items for a night first"
            )
    uri = folder_of(warehouse, release_id)
    if not NAME.fullmatch(release_id) or not warehouse.exists(f"{uri}/manifest.json"):
        raise InputError(
            f"release {release_id!r} is not in {warehouse.root}/{FOLDER}: `jobs.releases list` shows the releases"
        )
    return Release(release_id, uri, json.loads(warehouse.read_text(f"{uri}/manifest.json")))


def update_of(release: Release) -> Update | None:
    """The update within the day that a release belongs to; None for the release of a night."""
    update = release.manifest.get("update")
    return Update(**update) if update else None


def night_of(context: Context, release: Release) -> Release:
    """The night's release that an update continues from; the release itself if it is not an update."""
    update = update_of(release)
    return find_release(context, update.night) if update else release


def current_release(context: Context) -> Release | None:
    """The release in use, or None before the first release."""
    return find_release(context) if context.warehouse.exists(current_uri(context.warehouse)) else None


def comparable_release(context: Context) -> Release | None:
    """The release that tonight's release is compared with: the one in use, if it is comparable.

    - If it is an update within the day: the night's release that the update continues from.
    - If it belongs to this night (which runs again): the release that it replaced.
    - None if it belongs to a later night (tonight is a back-fill), or to another lineage. A bootstrap assigns new indices,
      so users and items of one lineage cannot be looked up in a release of another.
    """
    in_use = current_release(context)
    current = night_of(context, in_use) if in_use else None
    if current is not None and current.manifest["ds"] == context.ds:
        current = _replaced_by(context, current)
    if current is None or current.manifest["ds"] > context.ds:
        return None
    samples = context.warehouse.manifest("samples", context.ds)
    if samples is None:
        return None
    of_release = lineage_of(current)
    if UNKNOWN in (of_release, samples.lineage):
        return current if _is_unbroken(context.warehouse, "samples", current.manifest["ds"], context.ds) else None
    if of_release == samples.lineage:
        return current
    log.info(
        "%s: tonight is not compared with release %s, which goes back to the bootstrap of %s; tonight goes back to that of %s",
        context.ds, current.release_id, described(of_release), described(samples.lineage),
    )  # fmt: skip
    return None


def lineage_of(release: Release) -> str:
    """The lineage of a release; UNKNOWN if an earlier version of Nightjar wrote it."""
    return str(release.manifest.get("lineage", UNKNOWN))


def require_same_lineage(context: Context, release: Release) -> None:
    """Raises InputError if indices in the tables of ds and in a release mean different users and items.

    A release of an earlier version names no lineage. It passes if no bootstrap lies between its night and ds, and if the
    tables of its night are still those that it was made from.
    """
    warehouse, ds = context.warehouse, context.ds
    tables = warehouse.require("user_histories", ds, f"run build_positives for ds={ds} first")
    of_release, name = lineage_of(release), f"release {release.release_id}"
    remedy = (
        f"finish the night of ds={ds} (build_negatives, train, publish_items), so that a release of its lineage is in use; "
        "or name such a release with --release (jobs.releases list); or use a --ds of the lineage of this release"
    )
    if UNKNOWN not in (of_release, tables.lineage):
        common_lineage({name: of_release, f"table user_histories ds={ds}": tables.lineage}, remedy)
        return
    night = night_of(context, release)
    first, last = sorted((str(night.manifest["ds"]), ds))
    made_from = warehouse.manifest("item_features", night.manifest["ds"])
    unchanged = made_from is not None and made_from.fingerprint == night.manifest["inputs"]["item_features"]
    if not unchanged or not _is_unbroken(warehouse, "positives", first, last):
        raise InputError(
            f"{name} was written by an earlier version and names no lineage, and the tables from ds={first} to ds={last} do "
            f"not show that they continue from one bootstrap. Remedy: {remedy}"
        )


def _is_unbroken(warehouse: Warehouse, table: str, since: str, until: str) -> bool:
    """Whether every night after `since`, up to and including `until`, has this table and is not a bootstrap."""
    day = shift(since, 1)
    while day <= until:
        manifest = warehouse.manifest(table, day)
        if manifest is None or manifest.facts["bootstrap_days"]:
            return False
        day = shift(day, 1)
    return True


def _replaced_by(context: Context, release: Release) -> Release | None:
    """The release that `release` was compared with and replaced; None if it does not exist any more."""
    uri = f"{release.uri}/{GATES}"
    against = json.loads(context.warehouse.read_text(uri))["against"] if context.warehouse.exists(uri) else None
    exists = against and context.warehouse.exists(f"{folder_of(context.warehouse, against)}/manifest.json")
    return find_release(context, against) if exists else None

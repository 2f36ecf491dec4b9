"""Releases: one folder, one id, checksums; `current.json` names the one in use and moves last."""

import json
import re
from dataclasses import asdict, dataclass, field

from jobs.support.runner import Context
from model.release import Release
from pipelines.errors import InputError
from pipelines.storage import Update, Warehouse, shift

FOLDER = "releases"
GATES = "gates.json"  # Beside the manifest of a release, and not among its files: it is said of the release.
NAME = re.compile(r"\w[\w-]*")


@dataclass(frozen=True)
class Current:
    """What `current.json` says: the release in use, and those that were in use and must not be again by themselves."""

    release_id: str = ""
    ds: str = ""
    rolled_back: list[str] = field(default_factory=list)


def folder_of(warehouse: Warehouse, release_id: str) -> str:
    """Where a release lives."""
    return f"{warehouse.root}/{FOLDER}/{release_id}"


def current_uri(warehouse: Warehouse) -> str:
    """The file that names the release in use."""
    return f"{warehouse.root}/{FOLDER}/current.json"


def read_current(warehouse: Warehouse) -> Current:
    """The release in use; an empty id before the first one."""
    uri = current_uri(warehouse)
    return Current(**json.loads(warehouse.read_text(uri))) if warehouse.exists(uri) else Current()


def write_current(warehouse: Warehouse, current: Current) -> None:
    """Lead readers to a release, in one move."""
    warehouse.write_text(current_uri(warehouse), json.dumps(asdict(current)))


def all_releases(warehouse: Warehouse) -> list[Release]:
    """Every release, the newest day first."""
    found = []
    for status in warehouse.children(f"{warehouse.root}/{FOLDER}"):
        uri = folder_of(warehouse, status.getPath().getName())
        if warehouse.exists(f"{uri}/manifest.json"):
            manifest = json.loads(warehouse.read_text(f"{uri}/manifest.json"))
            found.append(Release(manifest["release_id"], uri, manifest))
    return sorted(found, key=_age, reverse=True)


def _age(release: Release) -> tuple[str, bool, int, str]:
    """The night of a day comes after the updates within it."""
    update = update_of(release)
    return release.manifest["ds"], update is None, update.number if update else 0, release.release_id


def find_release(context: Context, release_id: str | None = None) -> Release:
    """The named release, or the current one. InputError where there is none."""
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
            f"release {release_id!r} is not in {warehouse.root}/{FOLDER}: `jobs.releases list` says which there are"
        )
    return Release(release_id, uri, json.loads(warehouse.read_text(f"{uri}/manifest.json")))


def update_of(release: Release) -> Update | None:
    """The update within the day that a release is of; None for the release of a night."""
    told = release.manifest.get("update")
    return Update(**told) if told else None


def night_of(context: Context, release: Release) -> Release:
    """The release of a night that an update goes on from; the release itself where it is none."""
    update = update_of(release)
    return find_release(context, update.night) if update else release


def current_release(context: Context) -> Release | None:
    """The release in use; None before the first one."""
    return find_release(context) if context.warehouse.exists(current_uri(context.warehouse)) else None


def comparable_release(context: Context) -> Release | None:
    """The release in use, where it is of an earlier night and speaks of the same users and items; else None.

    Where it is an update within the day: the night's release that it goes on from, since nights know nothing of updates.
    Where it is of this night, which is done again: the one that it took the place of. None where it is of a later one: a
    back-fill takes nobody's place.
    A night that begins from raw logs (--bootstrap-days) gives indices anew: a release from before it cannot be asked for
    users and items by those of after.
    """
    in_use = current_release(context)
    current = night_of(context, in_use) if in_use else None
    if current is not None and current.manifest["ds"] == context.ds:
        current = _replaced_by(context, current)
    if current is None or current.manifest["ds"] > context.ds:
        return None
    day = shift(current.manifest["ds"], 1)
    while day <= context.ds:
        samples = context.warehouse.manifest("samples", day)
        if samples is None or samples.facts["bootstrap_days"]:
            return None
        day = shift(day, 1)
    return current


def _replaced_by(context: Context, release: Release) -> Release | None:
    """The release that one was compared with before it took its place, where it is still there."""
    uri = f"{release.uri}/{GATES}"
    against = json.loads(context.warehouse.read_text(uri))["against"] if context.warehouse.exists(uri) else None
    there = against and context.warehouse.exists(f"{folder_of(context.warehouse, against)}/manifest.json")
    return find_release(context, against) if there else None

"""Releases: one folder, one id, checksums; `current.json` names the one in use and moves last."""

import json
from dataclasses import dataclass
from typing import Any

from jobs.support.runner import Context
from pipelines.errors import InputError
from pipelines.storage import Warehouse, shift

FOLDER = "releases"


@dataclass(frozen=True)
class Release:
    """A published release: its id, its folder, its manifest."""

    release_id: str
    uri: str
    manifest: dict[str, Any]


def folder_of(warehouse: Warehouse, release_id: str) -> str:
    """Where a release lives."""
    return f"{warehouse.root}/{FOLDER}/{release_id}"


def current_uri(warehouse: Warehouse) -> str:
    """The file that names the release in use."""
    return f"{warehouse.root}/{FOLDER}/current.json"


def find_release(context: Context, release_id: str | None = None) -> Release:
    """The named release, or the current one. InputError where there is none."""
    warehouse = context.warehouse
    if release_id is None:
        if not warehouse.exists(current_uri(warehouse)):
            raise InputError(
                f"nothing is published yet in {warehouse.root}/{FOLDER}: run publish_items for a night first"
            )
        release_id = str(json.loads(warehouse.read_text(current_uri(warehouse)))["release_id"])
    uri = folder_of(warehouse, release_id)
    if not warehouse.exists(f"{uri}/manifest.json"):
        raise InputError(f"release {release_id!r} is not in {warehouse.root}/{FOLDER}")
    return Release(release_id, uri, json.loads(warehouse.read_text(f"{uri}/manifest.json")))


def current_release(context: Context) -> Release | None:
    """The release in use; None before the first one."""
    return find_release(context) if context.warehouse.exists(current_uri(context.warehouse)) else None


def comparable_release(context: Context) -> Release | None:
    """The release in use, where it is of an earlier night and speaks of the same users and items; else None.

    A night that begins from raw logs (--bootstrap-days) gives indices anew: a release from before it cannot be asked for
    users and items by those of after.
    """
    current = current_release(context)
    if current is None or current.manifest["ds"] >= context.ds:
        return None
    day = shift(current.manifest["ds"], 1)
    while day <= context.ds:
        samples = context.warehouse.manifest("samples", day)
        if samples is None or samples.facts["bootstrap_days"]:
            return None
        day = shift(day, 1)
    return current

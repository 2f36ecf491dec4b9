"""Manifests: what each written partition contains and what it was made from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

MANIFEST = "_manifest.json"


def code_version() -> str:
    """The installed version of Nightjar, as recorded in manifests and runs."""
    try:
        return version("nightjar")
    except PackageNotFoundError:
        return "unknown"


def digest(value: Any) -> str:
    """A short stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """What a partition is made from: a hash of the config that shapes it, and the fingerprints of its inputs.

    `lineage` (pipelines/storage/lineage.py) follows from the inputs, so `Manifest.made_by` does not compare it.
    """

    config_hash: str
    inputs: Mapping[str, str]
    lineage: str = ""


@dataclass(frozen=True)
class Manifest:
    """The description of a written partition. Readers require it."""

    table: str
    ds: str
    config_hash: str
    inputs: dict[str, str]
    rows: int
    facts: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    written_at: str = ""
    lineage: str = ""  # The bootstrap that the partition descends from. Empty if an earlier version wrote it.

    @property
    def fingerprint(self) -> str:
        """Identity of the content. Excludes the time and the code version: the same recipe gives the same rows."""
        content = self.facts.get("content")  # The checksum of a checkpoint: training need not be bit-exact.
        return digest([self.table, self.ds, self.config_hash, self.inputs, self.rows, content])

    def made_by(self, recipe: Recipe) -> bool:
        """Whether `recipe` would write this partition again."""
        return self.config_hash == recipe.config_hash and self.inputs == dict(recipe.inputs)

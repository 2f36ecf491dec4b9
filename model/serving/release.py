"""A release as its readers see it: one folder, what its manifest says, and whether its files are what was published."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow.fs as pafs

from model.io.urls import checksum, read_bytes, resolve

MODEL, INDEX, ITEMS, VOCABULARIES = "model", "index.faiss", "items", "vocabularies"  # What readers read.
DIGEST = "digest"  # In a manifest: of all the rest of it, the checksums of the files included.
SERVED = (MODEL, INDEX, ITEMS, VOCABULARIES)


class ReleaseError(ValueError):
    """A release that is not there, or not what was published (exit 3)."""

    exit_code = 3


@dataclass(frozen=True)
class Release:
    """A release: its id, its folder, its manifest."""

    release_id: str
    uri: str
    manifest: dict[str, Any]

    def files(self, *parts: str) -> list[str]:
        """URIs of the files of some parts (folders or files), in order; checked. Raises ReleaseError for a damaged one."""
        if fault := self._fault_of_manifest():
            raise self.error("manifest.json", fault)
        names = sorted(name for name in self._checksums if name.partition("/")[0] in parts)
        lacking = sorted(set(parts) - {name.partition("/")[0] for name in names})
        if lacking:
            raise ReleaseError(f"release {self.release_id} has no {lacking[0]}: {self._remedy}")
        for name in names:
            if fault := self._fault(name):
                raise self.error(f"file {name}", fault)
        return [f"{self.uri}/{name}" for name in names]

    def faults(self) -> dict[str, str]:
        """Every file that is not what was published, and what is wrong with it."""
        found = {"manifest.json": self._fault_of_manifest()} | {
            name: self._fault(name) for name in sorted(self._checksums)
        }
        return {name: fault for name, fault in found.items() if fault}

    def error(self, what: str, fault: str) -> ReleaseError:
        """What to raise for a fault of some part: with the release and the remedy."""
        return ReleaseError(f"release {self.release_id}, {what}: {fault}. {self._remedy}")

    @property
    def _checksums(self) -> Mapping[str, str]:
        return self.manifest.get("files", {})

    def _fault_of_manifest(self) -> str | None:
        """What is wrong with the manifest; releases of earlier versions have no digest of it."""
        digest = self.manifest.get(DIGEST)
        if digest is None or digest == digest_of(self.manifest):
            return None
        return "was changed after it was published (its own digest differs)"

    def _fault(self, name: str) -> str | None:
        url = f"{self.uri}/{name}"
        filesystem, path = resolve(url)
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            return "is missing"
        found = _known_checksum(url, info.size, info.mtime_ns)
        if found == self._checksums[name]:
            return None
        return f"is not what was published (SHA-256 {found[:12]}…, the manifest says {self._checksums[name][:12]}…)"

    @property
    def _remedy(self) -> str:
        return (
            f"Publish it again (jobs.publish_items --ds {self.manifest.get('ds')} --force), or go back to an earlier one "
            "(jobs.releases rollback)"
        )


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over a manifest but for its own digest: one value for all that belongs together in a release."""
    text = json.dumps({name: value for name, value in manifest.items() if name != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def open_release(uri: str) -> Release:
    """The release of a folder: a local path, or any URI that Arrow reads. ReleaseError where there is none."""
    uri = uri.rstrip("/")
    try:
        manifest = json.loads(read_bytes(f"{uri}/manifest.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReleaseError(
            f"there is no release in {uri}: name a folder under releases/ that has a manifest.json"
        ) from None
    return Release(manifest["release_id"], uri, manifest)


@lru_cache(maxsize=4096)
def _known_checksum(url: str, size: int, modified: int) -> str:
    """A file is read once a process for its checksum, and again only when its size or time have changed."""
    return checksum(url)

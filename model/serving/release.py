"""Opens a release: one folder with a manifest. Checks each file against the checksum in the manifest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow.fs as pafs

from model.io.urls import checksum, read_bytes, resolve

MODEL, INDEX, ITEMS, VOCABULARIES = "model", "index.faiss", "items", "vocabularies"
PRIOR = "prior"  # Key in the manifest of a release with a recency prior: what was chosen, and how.
DIGEST = (
    "digest"  # Key in the manifest: SHA-256 of the rest of the manifest, which includes the checksums of the files.
)
SERVED = (MODEL, INDEX, ITEMS, VOCABULARIES)


class ReleaseError(ValueError):
    """The release is missing or differs from what was published (exit 3)."""

    exit_code = 3


@dataclass(frozen=True)
class Release:
    """A release: id, folder and manifest."""

    release_id: str
    uri: str
    manifest: dict[str, Any]

    def files(self, *parts: str) -> list[str]:
        """Check the files of some parts (folders or files) and return their URIs, sorted.

        Raises ReleaseError if a part is missing or a file is damaged.
        """
        if fault := self._fault_of_manifest():
            raise self.error("manifest.json", fault)
        names = sorted(name for name in self._checksums if name.partition("/")[0] in parts)
        missing = sorted(set(parts) - {name.partition("/")[0] for name in names})
        if missing:
            raise ReleaseError(f"release {self.release_id} has no {missing[0]}: {self._remedy}")
        for name in names:
            if fault := self._fault(name):
                raise self.error(f"file {name}", fault)
        return [f"{self.uri}/{name}" for name in names]

    def faults(self) -> dict[str, str]:
        """Every file that differs from what was published -> what is wrong with it."""
        files = {name: self._fault(name) for name in sorted(self._checksums)}
        return {name: fault for name, fault in ({"manifest.json": self._fault_of_manifest()} | files).items() if fault}

    def error(self, what: str, fault: str) -> ReleaseError:
        """The error to raise for a fault in a part. Its message names the release and the remedy."""
        return ReleaseError(f"release {self.release_id}, {what}: {fault}. {self._remedy}")

    @property
    def has_integer_ids(self) -> bool:
        """Whether item ids of requests and answers are integers, as in the items table. The files of the release have text."""
        fields = self.manifest.get("request", [])
        return bool(fields) and fields[-1]["type"] == "integer"  # the last field is the history

    @property
    def _checksums(self) -> Mapping[str, str]:
        return self.manifest.get("files", {})

    def _fault_of_manifest(self) -> str | None:
        """What is wrong with the manifest, or None. Releases of earlier versions have no digest, so they pass."""
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
        actual = _cached_checksum(url, info.size, info.mtime_ns)
        if actual == self._checksums[name]:
            return None
        return f"is not what was published (SHA-256 {actual[:12]}…, the manifest says {self._checksums[name][:12]}…)"

    @property
    def _remedy(self) -> str:
        return (
            f"Publish it again (jobs.publish_items --ds {self.manifest.get('ds')} --force), or go back to an earlier one "
            "(jobs.releases rollback)"
        )


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its digest. It covers all files of the release through their checksums."""
    text = json.dumps({name: value for name, value in manifest.items() if name != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def open_release(uri: str) -> Release:
    """Open the release in a folder: a local path or any URI that Arrow reads. Raises ReleaseError if it has no manifest."""
    uri = uri.rstrip("/")
    try:
        manifest = json.loads(read_bytes(f"{uri}/manifest.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReleaseError(
            f"there is no release in {uri}: name a folder under releases/ that has a manifest.json"
        ) from None
    return Release(manifest["release_id"], uri, manifest)


@lru_cache(maxsize=4096)
def _cached_checksum(url: str, size: int, modified: int) -> str:
    """Checksum of a file, computed once per process unless the size or the time of the file changes."""
    return checksum(url)

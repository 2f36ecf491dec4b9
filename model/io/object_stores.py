"""Arrow's file systems of object stores, with the credentials that Spark's Hadoop has (docs/stores.md).

Hadoop and Arrow read one warehouse. The driver translates Hadoop's settings (pipelines/files/object_stores.py) into one
environment variable, which trainers and Spark's Python workers inherit. Processes without Spark (servers) may set it
themselves. Without it, Arrow looks for credentials where the store's own tools do.
"""

import importlib
import json
import os
from functools import lru_cache
from typing import Any
from urllib.parse import urlparse

import pyarrow.fs as pafs

# JSON: {store or store://BUCKET: options}, the options those of pyarrow's S3FileSystem or GcsFileSystem, or of the fsspec
# package of a store. Those of a bucket (abfs: an account) come on top of those of its store.
OPTIONS = "NIGHTJAR_STORES"
# The schemes of Hadoop and of other tools -> the store.
STORES = {
    "s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs",
    "abfs": "abfs", "abfss": "abfs", "wasb": "abfs", "wasbs": "abfs", "oss": "oss",
}  # fmt: skip
# Stores that pyarrow has no file system of its own for: store -> (package, module, class).
FSSPEC = {"abfs": ("adlfs", "adlfs", "AzureBlobFileSystem"), "oss": ("ossfs", "ossfs", "OSSFileSystem")}


class StoreError(ValueError):
    """A store that this process cannot read (exit 2)."""

    exit_code = 2


def store_of(url: str) -> str | None:
    """The object store of a URL; None for other file systems."""
    return STORES.get(urlparse(url).scheme)


def open_store(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of an object's URL, and the path in it: BUCKET/KEY. Raises StoreError where a package is missing."""
    parts, store = urlparse(url, allow_fragments=False), store_of(url)
    assert store is not None
    # abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY: the account is what is connected to.
    bucket, _, host = parts.netloc.partition("@")
    key = url.split("://", 1)[1].partition("/")[2]
    place = host.partition(".")[0] if store == "abfs" else bucket
    return _file_system(store, place, os.environ.get(OPTIONS, "{}")), f"{bucket}/{key}".rstrip("/")


@lru_cache(maxsize=32)
def _file_system(store: str, place: str, given: str) -> pafs.FileSystem:
    known: dict[str, dict[str, Any]] = json.loads(given)
    options = known.get(store, {}) | known.get(f"{store}://{place}", {})
    if store == "s3":
        return pafs.S3FileSystem(**options)
    if store == "gs":
        return pafs.GcsFileSystem(**options)
    package, module, name = FSSPEC[store]
    if store == "abfs" and place:
        options = {"account_name": place} | options
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError:
        raise StoreError(
            f"{store}:// is read through the Python package {package}, which is not installed: add it to the environment "
            "of the jobs, of the trainers and of Spark's workers (pip install " + package + ")"
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(kind(**options)))

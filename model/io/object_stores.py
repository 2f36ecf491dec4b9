"""Opens object stores with pyarrow, with the same credentials as Spark's Hadoop (docs/stores.md).

Hadoop and Arrow read the same warehouse. The driver translates Hadoop's settings (pipelines/files/object_stores.py) into
one environment variable. Trainers and Spark's Python workers inherit it. Processes without Spark, such as servers, can set
it themselves. If it is not set, Arrow uses the default credential chain of the store.
"""

import importlib
import json
import os
from functools import lru_cache
from typing import Any
from urllib.parse import urlparse

import pyarrow.fs as pafs

# JSON: {STORE or STORE://BUCKET: options}. The options are those of pyarrow's S3FileSystem or GcsFileSystem, or of the
# store's fsspec package. Options of a bucket (abfs: of an account) override those of its store.
OPTIONS = "NIGHTJAR_STORES"
# URL schemes of Hadoop and of other tools -> the store.
STORES = {
    "s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs",
    "abfs": "abfs", "abfss": "abfs", "wasb": "abfs", "wasbs": "abfs", "oss": "oss",
}  # fmt: skip
# Stores without a pyarrow file system: store -> (package, module, class).
FSSPEC = {"abfs": ("adlfs", "adlfs", "AzureBlobFileSystem"), "oss": ("ossfs", "ossfs", "OSSFileSystem")}


class StoreError(ValueError):
    """This process cannot read the store (exit 2)."""

    exit_code = 2


def store_of(url: str) -> str | None:
    """The object store of a URL, or None for other file systems."""
    return STORES.get(urlparse(url).scheme)


def open_store(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URL and the path in it (BUCKET/KEY). Raises StoreError if a package is missing."""
    parts, store = urlparse(url, allow_fragments=False), store_of(url)
    assert store is not None
    # abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY: options and the connection belong to the account.
    bucket, _, host = parts.netloc.partition("@")
    key = url.split("://", 1)[1].partition("/")[2]
    account_or_bucket = host.partition(".")[0] if store == "abfs" else bucket
    return _file_system(store, account_or_bucket, os.environ.get(OPTIONS, "{}")), f"{bucket}/{key}".rstrip("/")


@lru_cache(maxsize=32)
def _file_system(store: str, account_or_bucket: str, options_json: str) -> pafs.FileSystem:
    by_store: dict[str, dict[str, Any]] = json.loads(options_json)
    options = by_store.get(store, {}) | by_store.get(f"{store}://{account_or_bucket}", {})
    if store == "s3":
        return pafs.S3FileSystem(**options)
    if store == "gs":
        return pafs.GcsFileSystem(**options)
    package, module, name = FSSPEC[store]
    if store == "abfs" and account_or_bucket:
        options = {"account_name": account_or_bucket} | options
    try:
        filesystem = getattr(importlib.import_module(module), name)
    except ImportError:
        raise StoreError(
            f"{store}:// is read with the Python package {package}, which is not installed: add it to the environment "
            "of the jobs, of the trainers and of Spark's workers (pip install " + package + ")"
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem(**options)))

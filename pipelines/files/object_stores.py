"""Translates Hadoop's object store settings for Arrow, so that Python processes use the same credentials as Spark."""

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlparse

from pyspark.sql import SparkSession

OPTIONS = "NIGHTJAR_STORES"  # Environment variable that model/io/object_stores.py reads.
Lookup = Callable[[str], str | None]
# Hadoop key under fs.s3a. -> option of pyarrow.fs.S3FileSystem
S3 = {
    "access.key": "access_key",
    "secret.key": "secret_key",
    "session.token": "session_token",
    "endpoint.region": "region",
    "assumed.role.arn": "role_arn",
}
# Hadoop key under fs.oss. -> option of ossfs
OSS = {"accessKeyId": "key", "accessKeySecret": "secret", "endpoint": "endpoint", "securityToken": "token"}
ANONYMOUS = "AnonymousAWSCredentialsProvider"
# Prefixes of keys that contain the name of a bucket or account, so the keys must be listed.
NAMED_KEYS = ("fs.s3a.bucket.", "fs.azure.account.key.")
BUCKET, ACCOUNT = re.compile(r"fs\.s3a\.bucket\.([^.]+)\."), re.compile(r"fs\.azure\.account\.key\.([^.]+)\.")


def share_stores(spark: SparkSession) -> None:
    """Set the store options in the environment of this process, its children and Spark's Python workers.

    An existing value of NIGHTJAR_STORES is kept.
    """
    if OPTIONS not in os.environ:
        conf: Any = spark._jsc.hadoopConfiguration()
        # Each key costs a JVM call, so list only the keys whose names are not fixed.
        keys = [f"{prefix}{key}" for prefix in NAMED_KEYS for key in conf.getPropsWithPrefix(prefix).keySet()]

        def lookup(key: str) -> str | None:
            secret = conf.getPassword(key)  # Also reads Hadoop credential providers.
            return None if secret is None else "".join(secret)

        if options := store_options(keys, lookup):
            os.environ[OPTIONS] = json.dumps(options)
    if OPTIONS in os.environ:
        spark.sparkContext.environment[OPTIONS] = os.environ[OPTIONS]


def store_options(keys: Collection[str], lookup: Lookup) -> dict[str, dict[str, Any]]:
    """Options per store, and per store://BUCKET (Azure: per account) if Hadoop has settings for it.

    >>> settings = {"fs.s3a.access.key": "me", "fs.s3a.endpoint": "http://127.0.0.1:9000"}
    >>> store_options(settings, settings.get)
    {'s3': {'access_key': 'me', 'scheme': 'http', 'endpoint_override': '127.0.0.1:9000'}}
    """
    buckets = sorted({match[1] for key in keys if (match := BUCKET.match(key))})
    options_by_store = {"s3": _s3(lookup, "fs.s3a.")}
    options_by_store |= {f"s3://{bucket}": _s3(lookup, f"fs.s3a.bucket.{bucket}.") for bucket in buckets}
    for key in sorted(keys):
        if account := ACCOUNT.match(key):
            options_by_store[f"abfs://{account[1]}"] = {"account_key": lookup(key)}
    options_by_store["oss"] = _renamed(lookup, "fs.oss.", OSS)
    return {store: options for store, options in options_by_store.items() if options}


def _s3(lookup: Lookup, prefix: str) -> dict[str, Any]:
    options = _renamed(lookup, prefix, S3)
    if ANONYMOUS in (lookup(f"{prefix}aws.credentials.provider") or ""):
        options = {"anonymous": True}
    if lookup(f"{prefix}connection.ssl.enabled") == "false":
        options["scheme"] = "http"
    if endpoint := lookup(f"{prefix}endpoint"):
        parts = urlparse(endpoint if "://" in endpoint else f"//{endpoint}")
        options |= {"scheme": parts.scheme} if parts.scheme else {}
        options["endpoint_override"] = parts.netloc
        if lookup(f"{prefix}path.style.access") == "false":
            options["force_virtual_addressing"] = True
    return options


def _renamed(lookup: Lookup, prefix: str, names: Mapping[str, str]) -> dict[str, Any]:
    return {option: value for key, option in names.items() if (value := lookup(f"{prefix}{key}"))}

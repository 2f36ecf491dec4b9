"""Two ways of executing joins. Tests of the pipelines hold under both; `make test` runs them under each."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.sql import SparkSession

from pipelines.joins import BROADCAST_ROWS

# Nothing is broadcast, every join sorts and merges, and partitions stay as many as they are.
SHUFFLED = {
    BROADCAST_ROWS: "0",
    "spark.sql.autoBroadcastJoinThreshold": "-1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.adaptive.coalescePartitions.enabled": "false",
    "spark.sql.shuffle.partitions": "3",
}


def chosen_joins() -> dict[str, str]:
    """Spark settings of this run of the tests: NIGHTJAR_JOINS is `shuffled`, or not set for Spark's own choice."""
    name = os.environ.get("NIGHTJAR_JOINS", "")
    assert name in ("", "shuffled"), f"NIGHTJAR_JOINS={name!r}: write shuffled, or leave it out"
    return SHUFFLED if name else {}


@contextmanager
def joins(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """These settings within the block; then those of before."""
    before = {key: spark.conf.get(key, None) for key in settings}
    for key, value in settings.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, value)

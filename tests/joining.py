"""Two ways of executing joins. Tests marked `joins` must pass with both; `make test` runs them with each."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.sql import SparkSession

from pipelines.joins import BROADCAST_ROWS

# Spark interprets expressions. Compiling them takes a part of the time of a small night.
INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}

# Every join sorts and merges, nothing is broadcast, the number of partitions is fixed.
SHUFFLED = INTERPRETED | {
    BROADCAST_ROWS: "0",
    "spark.sql.autoBroadcastJoinThreshold": "-1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.adaptive.coalescePartitions.enabled": "false",
    "spark.sql.shuffle.partitions": "3",
}


def chosen_joins() -> dict[str, str]:
    """Spark settings of this run of the tests: `NIGHTJAR_JOINS=shuffled`, or unset to let Spark choose."""
    name = os.environ.get("NIGHTJAR_JOINS", "")
    assert name in ("", "shuffled"), f"NIGHTJAR_JOINS={name!r}: set it to shuffled, or unset it"
    return SHUFFLED if name else {}


@contextmanager
def joins(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Apply these settings within the block, then restore the previous ones."""
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

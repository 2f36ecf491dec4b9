"""Broadcast hints: which frames Spark may send whole to every executor for a join.

A broadcast hint overrides `spark.sql.autoBroadcastJoinThreshold`, so all hints of the project are set here, under one
limit: the Spark setting `spark.nightjar.broadcastRows`. 0 disables all hints.

No result may depend on the limit. A broadcast join keeps the partitions and the order of rows; a sort-merge join changes
both. Code that needs the rows of a user in one partition, or in an order, must request that after the last join.
"""

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.contract.errors import UsageError

BROADCAST_ROWS = "spark.nightjar.broadcastRows"
DEFAULT_ROWS = 250_000  # with rows of a text id and an index: about 15 MB on each executor
NARROW = 8  # a row of one or two numbers takes an eighth of that


def broadcast_small(frame: DataFrame, rows: int | None, *, narrow: bool = False) -> DataFrame:
    """Adds a broadcast hint if the number of rows is known and within the limit; else Spark decides.

    `narrow`: the frame has one or two columns of numbers, so the limit is NARROW times higher.
    """
    limit = broadcast_limit(frame.sparkSession) * (NARROW if narrow else 1)
    return F.broadcast(frame) if rows is not None and rows <= limit else frame


def broadcast_few(frame: DataFrame) -> DataFrame:
    """Adds a broadcast hint to a frame that is small by design (totals, days, row groups), unless the limit is 0."""
    return F.broadcast(frame) if broadcast_limit(frame.sparkSession) else frame


def broadcast_limit(spark: SparkSession) -> int:
    """The largest number of rows to broadcast. Raises UsageError if the setting is not a whole number of at least 0."""
    value = spark.conf.get(BROADCAST_ROWS, str(DEFAULT_ROWS)) or ""
    if not value.strip().isdecimal():
        raise UsageError(f"spark setting {BROADCAST_ROWS} = {value!r}: write a whole number, 0 for no broadcast at all")
    return int(value)

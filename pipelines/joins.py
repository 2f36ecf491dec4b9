"""Which side of a join Spark sends whole to every executor.

A broadcast hint overrides `spark.sql.autoBroadcastJoinThreshold`, so every hint of the project is given here, under one
limit: the Spark setting `spark.nightjar.broadcastRows`. 0 switches all of them off.

No result may depend on the limit. A broadcast join leaves rows in their partition and in their order; a sort-merge join
moves and sorts them. Code that needs the rows of a user in one partition, or in an order, must ask for both after the
last join.
"""

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.contract.errors import UsageError

BROADCAST_ROWS = "spark.nightjar.broadcastRows"
DEFAULT_ROWS = 250_000  # rows of an id as text and an index: some 15 MB on each executor
NARROW = 8  # rows of one or two numbers take an eighth of that


def broadcast_small(frame: DataFrame, rows: int | None, *, narrow: bool = False) -> DataFrame:
    """The frame with a broadcast hint if its number of rows is known and within the limit; else Spark decides.

    `narrow`: its columns are numbers only, so that the limit is NARROW times as many rows.
    """
    limit = broadcast_limit(frame.sparkSession) * (NARROW if narrow else 1)
    return F.broadcast(frame) if rows is not None and rows <= limit else frame


def broadcast_few(frame: DataFrame) -> DataFrame:
    """A frame that is small by design (totals, days, row groups) with a broadcast hint, unless the limit is 0."""
    return F.broadcast(frame) if broadcast_limit(frame.sparkSession) else frame


def broadcast_limit(spark: SparkSession) -> int:
    """The number of rows up to which a frame is broadcast. UsageError if the setting is not a whole number from 0 on."""
    value = spark.conf.get(BROADCAST_ROWS, str(DEFAULT_ROWS)) or ""
    if not value.strip().isdecimal():
        raise UsageError(f"spark setting {BROADCAST_ROWS} = {value!r}: write a whole number, 0 for no broadcast at all")
    return int(value)

"""Two nights with 400,000 items at the default settings, in a process with a larger heap than the shared session.

Above 250,000 rows the tables of items are no longer broadcast (pipelines/joins.py).
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.feature_config import Features
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.session import open_session
from pipelines.storage.table_keys import KEYS
from pipelines.storage.warehouse import Warehouse

DAYS = ["2024-03-01", "2024-03-02"]
ITEMS, USERS, CLICKS = 400_000, 20_000, 10  # clicks per user and day
SPARK = {"spark.master": "local[2]", "spark.driver.memory": "6g", "spark.sql.shuffle.partitions": "8"}
CONFIG = SampleConfig(
    Features.model_validate({"item": [{"kind": "categorical", "name": "category"}], "history": {"length": 20}}),
    Positives(),
    Negatives(coarse=0, fine=0),
    Samples(),
)


def write_inputs(spark: SparkSession, warehouse: Warehouse) -> None:
    """Write the input tables. Second and item of each click follow from its number."""
    for number, ds in enumerate(DAYS):
        clicks = spark.range(USERS * CLICKS).select(
            F.lit(ds).alias("ds"),
            F.concat(F.lit("u"), F.col("id") % USERS).alias("user_id"),
            F.pmod(F.xxhash64("id", F.lit(number)), F.lit(ITEMS)).alias("item_id"),
            F.timestamp_seconds(F.unix_timestamp(F.lit(f"{ds} 00:00:00")) + F.col("id") % 86_400).alias("event_time"),
            F.lit("click").alias("action"),
            F.lit(None).cast("string").alias("request_id"),
        )
        warehouse.write_input(clicks, "interactions")
    category = F.concat(F.lit("c"), F.col("id") % 50).alias("category")
    items = spark.range(ITEMS).select(F.lit(DAYS[0]).alias("ds"), F.col("id").alias("item_id"), category)
    warehouse.write_input(items.withColumn("publish_time", F.lit(None).cast("timestamp")), "items")
    users = spark.range(USERS).select(F.lit("2024-02-29").alias("ds"), F.concat(F.lit("u"), "id").alias("user_id"))
    warehouse.write_input(users, "users")


def build_and_check_nights(root: str) -> None:
    """Build both nights in a session of this process, and check keys and row counts of each."""
    spark = open_session("large-night", SPARK)
    warehouse = Warehouse(spark, root)
    write_inputs(spark, warehouse)
    for ds, days in zip(DAYS, (1, 0)):
        night = Night.open(warehouse, Inputs(), ds, 17, days)
        build_positives(night, CONFIG, "config")
        build_negatives(night, CONFIG, "config")
        for table in ("vocabularies", "user_histories", "item_stats", "item_features", "positives", "samples"):
            rows = warehouse.read(table, ds)
            for key in KEYS[table]:
                assert rows.select(*key).distinct().count() == rows.count(), (table, key)
        assert warehouse.read("user_histories", ds).count() == USERS
        assert warehouse.read("item_stats", ds).count() == ITEMS
    spark.stop()


@pytest.mark.long
def test_no_key_is_repeated_with_400_000_items(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(build_and_check_nights, str(tmp_path)).result(timeout=1800)

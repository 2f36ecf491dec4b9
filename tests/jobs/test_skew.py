"""A night with one very active user, one very popular item and one request of 100,000 items needs only a small heap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.session import find_java_home
from pipelines.storage.warehouse import Warehouse

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
DS = "2024-03-02"
HEAVY, OTHERS, ITEMS = 120_000, 60_000, 100_000
CONFIG = {
    "features": {"item": [{"kind": "categorical", "name": "category"}], "history": {"length": 20}},
    "positives": {"deduplicate": False, "per_user_cap": None, "downsample": None, "valid_hours": 0},
    "negatives": {"uniform": 1, "popularity": 1, "coarse": 1, "fine": 1},
    "spark": {"spark.driver.memory": "900m", "spark.sql.shuffle.partitions": 8},
}


def skewed(spark: SparkSession) -> dict[str, DataFrame]:
    """Input tables: user 0 has two thirds of the events, and item 1 has half of the clicks of every user."""
    day = F.lit(DS).alias("ds")
    # Times differ, because exact duplicates count once.
    seconds = F.unix_timestamp(F.lit(f"{DS} 00:00:00")) + F.col("id") * (80_000.0 / (HEAVY + OTHERS))
    moment = F.timestamp_micros((seconds * 1_000_000).cast("long"))
    clicks = spark.range(HEAVY + OTHERS).select(
        day,
        F.when(F.col("id") < HEAVY, 0).otherwise(F.col("id") % 5000 + 1).alias("user_id"),
        F.when(F.col("id") % 2 == 0, 1).otherwise(F.pmod(F.xxhash64("id", F.lit(1)), F.lit(ITEMS))).alias("item_id"),
        moment.alias("event_time"),
        F.lit("click").alias("action"),
        F.when(F.col("id") < HEAVY, "wide").otherwise(F.concat(F.lit("r"), F.col("id") % 5000)).alias("request_id"),
    )
    wide = spark.range(ITEMS).select(
        day,
        F.lit("wide").alias("request_id"),
        F.lit(0).cast("long").alias("user_id"),
        F.col("id").alias("item_id"),
        F.lit(f"{DS} 00:00:00").cast("timestamp").alias("event_time"),
        F.when(F.col("id") % 4 == 0, "fine").otherwise("coarse").alias("stage"),
        F.col("id").cast("int").alias("position"),
    )
    items = spark.range(ITEMS).select(day, F.col("id").alias("item_id"), (F.col("id") % 7).alias("category"))
    users = spark.range(1).select(F.lit("2024-03-01").alias("ds"), F.col("id").alias("user_id"))
    return {"interactions": clicks, "ranking_logs": wide, "items": items, "users": users}


@pytest.fixture(scope="module")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("skew")
    for table, rows in skewed(spark).items():
        Warehouse(spark, str(root)).write_input(rows, table)
    (root / "night.yaml").write_text(json.dumps(CONFIG | {"warehouse": str(root)}))
    return root


def test_a_night_of_one_user_one_item_and_one_request_fits_a_small_heap(warehouse: Path) -> None:
    for job, flags in (("build_positives", ["--bootstrap-days", "1"]), ("build_negatives", [])):
        command = [sys.executable, "-m", f"jobs.{job}", "--config", str(warehouse / "night.yaml"), "--ds", DS, *flags]
        environment = os.environ | {"JAVA_HOME": str(find_java_home())}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    positives = json.loads((warehouse / f"positives/ds={DS}/_manifest.json").read_text())
    counts, skew = positives["facts"]["counts"], positives["facts"]["skew"]
    assert counts["interactions"] == HEAVY + OTHERS
    assert counts["kept"] == positives["rows"] == HEAVY + OTHERS
    assert (skew["heaviest_user"], skew["heaviest_item"]) == ("0", "1")
    assert skew["heaviest_user_share"] > 0.6
    assert skew["heaviest_item_share"] == pytest.approx(0.5, abs=0.01)
    samples = json.loads((warehouse / f"samples/ds={DS}/_manifest.json").read_text())
    assert samples["rows"] == positives["rows"]
    # The heavy user clicked nearly all items; its hard negatives are the other items of its only request.
    assert samples["facts"]["kinds"]["coarse"] > 0
    assert samples["facts"]["kinds"]["fine"] > 0

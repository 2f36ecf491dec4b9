"""Clicks after midnight use the request that they name, which is in the ranking logs of the day before."""

import shutil
from pathlib import Path

import pytest
from pyspark.sql import functions as F

from pipelines.config import Inputs
from pipelines.contract.negative_kinds import COARSE, FINE
from pipelines.night import Night
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, SECOND, logs

pytestmark = [pytest.mark.joins, pytest.mark.slow]

RANKED = "ds string, request_id string, user_id string, item_id int, event_time timestamp, stage string, position int"


def has_early_request(user: str) -> bool:
    return user[1:].isdigit() and int(user[1:]) % 4 == 2


@pytest.fixture(scope="module")
def moved(nights: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """The second night. The requests of every fourth user are logged ten minutes before midnight."""
    folder = tmp_path_factory.mktemp("midnight") / "warehouse"
    shutil.copytree(Path(nights.root.removeprefix("file://")), folder)
    warehouse = Warehouse(nights.spark, str(folder))
    early = F.expr("ds = '2024-03-03' AND int(substring(user_id, 2)) % 4 = 2")
    rows = nights.spark.createDataFrame(logs()[1], RANKED)
    rows = rows.withColumn(
        "event_time", F.when(early, F.expr("timestamp'2024-03-02 23:50:00'")).otherwise(F.col("event_time"))
    )
    warehouse.write_input(rows.withColumn("ds", F.when(early, FIRST).otherwise(F.col("ds"))), "ranking_logs")
    build_negatives(Night.open(warehouse, Inputs(), SECOND, 17), CONFIG, "moved")
    return warehouse


def test_clicks_after_midnight_get_the_hard_negatives_and_exclusions_of_their_request(moved: Warehouse) -> None:
    item = {r["item_index"]: int(r["item_id"]) for r in moved.read("item_stats", SECOND).collect()}
    stages: dict[tuple[str, int], str] = {(r[2], r[3]): r[5] for r in logs()[1] if r[0] == SECOND}
    rows = moved.read("samples", SECOND).where(f"event_time >= '{SECOND}'").collect()
    counts = {COARSE: 0, FINE: 0}
    for row in rows:
        for index, kind in zip(row["negatives"], row["negative_kinds"]):
            stage = stages.get((row["user_id"], item[index]))
            assert stage != "exposed"
            if kind in counts:
                assert stage in ({COARSE: ("coarse",), FINE: ("fine", "rerank")}[kind])
                counts[kind] += has_early_request(row["user_id"])
    early_rows = sum(has_early_request(row["user_id"]) for row in rows)
    assert early_rows > 5
    assert counts == {COARSE: 2 * early_rows, FINE: early_rows}


def test_rows_read_from_the_day_before_do_not_count_as_rows_of_the_night(moved: Warehouse) -> None:
    facts = moved.require("samples", SECOND, "").facts
    moved_rows = sum(has_early_request(row[2]) for row in logs()[1] if row[0] == SECOND)
    rows = sum(row[0] == SECOND for row in logs()[1])
    assert facts["input"]["ranking_logs"]["by_day"] == {SECOND: rows - moved_rows}

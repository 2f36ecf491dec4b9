"""Positives of items that the user had before do not train with `positives.repeats: false`; all else counts them."""

import dataclasses
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Inputs, Positives
from pipelines.histories import user_histories
from pipelines.night import Night
from pipelines.positives import select
from pipelines.positives.build import build_positives
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, SECOND, logs, rows_of, write_inputs

pytestmark = pytest.mark.joins

NOON = datetime(2024, 3, 2, 12)
FIRST_ONLY = Positives(repeats=False, downsample=None, per_user_cap=2)
# user, item, hours after noon, row key; whether the user had the item before, without and with STATE
EVENTS = [
    (("a", "i", 1, 5), False, True),
    (("a", "i", 2, 4), True, True),
    (("a", "j", 1, 3), False, False),
    (("a", "j", 1, 9), True, True),  # at the same instant the lower row key comes first
    (("b", "i", 3, 1), False, False),  # another user
    (("b", "k", 3, 2), False, False),
    (("c", "k", 0, 8), False, False),  # the state lacks this user
]
STATE = [("a", [2, 7]), ("b", None), ("z", [3])]


@pytest.mark.parametrize("with_state", [False, True])
def test_a_positive_is_known_if_its_user_had_the_item_before(spark: SparkSession, with_state: bool) -> None:
    rows = [(user, item, NOON + timedelta(hours=hours), key) for (user, item, hours, key), _, _ in EVENTS]
    events = spark.createDataFrame(rows, "user_id string, item_id string, event_time timestamp, row_key long")
    events = events.withColumns({"user_key": F.xxhash64("user_id"), "ds": F.lit("2024-03-02")})
    assert user_histories.USER == ["user_key", "user_id"]
    items = [(item, "2024-03-02", index, True, 1.0) for index, item in enumerate("ijk", 2)]
    columns = "item_id string, ds string, item_index int, live boolean, keep_probability float"
    chances = spark.createDataFrame(items, columns)
    state = spark.createDataFrame(STATE, "user_id string, known_items array<int>") if with_state else None
    flagged = select.flag(events, chances, FIRST_ONLY, 17, state)
    expected = {key: known for (_, _, _, key), *both in EVENTS for known in [both[with_state]]}
    assert {row["row_key"]: row["known"] for row in flagged.collect()} == expected
    # The cap counts only rows that may train.
    heaviest, over_cap = select.heavy_days(flagged, FIRST_ONLY)
    assert (heaviest, over_cap) == ({"user_id": "a", "user_rows": 4}, 0)
    dropped = {row["row_key"]: row["dropped"] for row in select.choose(flagged, FIRST_ONLY, 17, over_cap).collect()}
    assert dropped == {key: select.KNOWN_ITEM if known else None for key, known in expected.items()}
    everything = select.flag(events, chances, Positives(downsample=None), 17, state).collect()
    assert not any(row["known"] for row in everything)


@pytest.mark.slow
def test_nights_train_on_the_first_positive_of_each_user_and_item(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(spark, str(tmp_path / "first"))
    write_inputs(warehouse)
    config = dataclasses.replace(CONFIG, positives=Positives(repeats=False, downsample=None, per_user_cap=None))
    for ds, days in ((FIRST, 2), (SECOND, 0)):
        night = Night.open(warehouse, Inputs(), ds, 17, days, features=config.features)
        manifest, _ = build_positives(night, config, "first only")
        counts = manifest.facts["counts"]
        own = [row for row in rows_of(warehouse, "positives", ds) if not row["carried"]]
        assert counts["positives"] == len(own)
        assert counts["dropped_known_item"] == sum(row["dropped"] == select.KNOWN_ITEM for row in own) > 0
        clicks = [row for row in logs()[0] if row[4] == "click" and row[0] <= ds]
        first: dict[tuple[str, str], str] = {}
        for day, user, item, *_ in sorted(clicks):
            first.setdefault((user, str(item)), day)
        for row in own:
            if row["dropped"] != "item_not_live":
                is_first = str(row["event_time"].date()) == first[row["user_id"], row["item_id"]]
                assert (row["dropped"] is None) == is_first, row
        # Histories and popularity count all positives.
        seen = {(row["user_id"], row["item_index"]) for row in own}
        known = {
            (row["user_id"], index) for row in rows_of(warehouse, "user_histories", ds) for index in row["known_items"]
        }
        assert seen <= known
        windows = sum(row["window_count"] for row in rows_of(warehouse, "item_stats", ds))
        assert windows > sum(row["dropped"] is None for row in own)

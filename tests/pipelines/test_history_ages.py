"""Ages of the items of a history, in the queries of evaluate and recommend and in the events of the gates."""

from datetime import datetime

import pytest
from pyspark.sql import Row

from pipelines.config import Inputs
from pipelines.day_events import day_events
from pipelines.feature_config import Features
from pipelines.night import Night
from pipelines.queries import user_queries
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, LENGTH, SECOND, clicks_before

pytestmark = pytest.mark.joins

HISTORY = {"length": LENGTH, "ages": True}
FEATURES = Features.model_validate(CONFIG.features.model_dump() | {"history": HISTORY})


def ages_before(user: str, moment: datetime, read_until: datetime) -> list[int]:
    """The ages at `moment` of the user's last clicks before it, out of those before `read_until`."""
    times = [time for time, _ in clicks_before(user, min(moment, read_until))][-LENGTH:]
    return [0] * (LENGTH - len(times)) + [int((moment - time).total_seconds()) for time in times]


def check(row: Row, expected: list[int]) -> bool:
    """Compare the ages of a row, and its padding with that of the history. Returns whether it has a history."""
    assert row["history_ages"] == expected
    assert [age == 0 for age in row["history_ages"]] == [item == 0 for item in row["history"]]
    return any(row["history"])


def test_queries_have_the_ages_at_the_end_of_the_day(nights: Warehouse) -> None:
    rows = user_queries(Night.open(nights, Inputs(), SECOND, 17), FEATURES).collect()
    end = datetime(2024, 3, 4)
    assert sum(check(row, ages_before(row["user_id"], end, end)) for row in rows) > 10
    assert "history_ages" not in user_queries(Night.open(nights, Inputs(), SECOND, 17), CONFIG.features).columns


@pytest.mark.parametrize(("ds", "bootstrap_days"), [(FIRST, 2), (SECOND, 0)])
def test_events_of_the_gates_have_the_ages_at_the_event(nights: Warehouse, ds: str, bootstrap_days: int) -> None:
    night = Night.open(nights, Inputs(), ds, 17, bootstrap_days)
    events = day_events(night, FEATURES, 1000, since=None, new_items_only=False)
    assert events.columns[-4:] == ["history", "history_ages", "item_index", "had"]
    rows = nights.read("positives", ds).select("user_id", "item_index", "event_time").collect()
    times: dict[tuple[str, int], list[datetime]] = {}
    for row in rows:
        times.setdefault((row["user_id"], row["item_index"]), []).append(row["event_time"])
    with_history = 0
    for row in events.collect():
        # A user may have taken the item on several days.
        possible = [ages_before(row["user_id"], at, at) for at in times[row["user_id"], row["item_index"]]]
        assert row["history_ages"] in possible
        with_history += check(row, row["history_ages"])
    assert with_history > 5

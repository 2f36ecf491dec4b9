"""Recent positives per item, and what of them the choice of a prior may see."""

from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.config import Inputs
from pipelines.night import Night
from pipelines.recency import recent_counts
from pipelines.storage.manifest import Recipe
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import DAYS, SECOND, logs

CUT = "2024-03-03 14:00:00"
HALF_LIVES = [1.0, 3.0]
COUNTS = "counts_before_holdout"


def expected(end: datetime, half_life: float, as_of: str) -> dict[str, float]:
    """Clicks before `end` per item, halved with age: an item counts once per user and day, at its last click."""
    last: dict[tuple[str, str, int], datetime] = {}
    for ds, user, item, at, action, _ in logs()[0]:
        if action == "click":
            last[ds, user, item] = max(at, last.get((ds, user, item), at))
    counts: dict[str, float] = {}
    for (ds, _, item), at in last.items():
        if at < end:
            age = max(0, (datetime.fromisoformat(as_of) - datetime.fromisoformat(ds)).days)
            counts[str(item)] = counts.get(str(item), 0.0) + 0.5 ** (age / half_life)
    return counts


@pytest.mark.parametrize("as_of", [SECOND, DAYS[1]])
def test_counts_halve_with_age_and_leave_out_held_out_events(nights: Warehouse, as_of: str) -> None:
    night = Night.open(nights, Inputs(), SECOND, 17)
    rows = recent_counts(night, HALF_LIVES, as_of=as_of, since=CUT, unseen_count=0.5).collect()
    live = {r["item_id"] for r in nights.read("item_stats", SECOND).where("live").collect()}
    assert {row["item_id"] for row in rows} == live
    always = {r["item_id"] for r in nights.read("item_features", SECOND).where("available_from = 0").collect()}
    rows = [row for row in rows if row["item_id"] in always]
    assert len(rows) > 10
    until = min(datetime.fromisoformat(as_of) + timedelta(days=1), datetime(2024, 3, 4))
    number = sum(count for item, count in expected(until, float("inf"), as_of).items() if item in live)
    for place, half_life in enumerate(HALF_LIVES):
        scale = number / sum(count for item, count in expected(until, half_life, as_of).items() if item in live)
        assert scale > 1
        for column, end in (("recent_counts", datetime(2024, 3, 4)), (COUNTS, datetime.fromisoformat(CUT))):
            counts = expected(end, half_life, as_of)
            wanted = [scale * counts.get(r["item_id"], 0) for r in rows]
            assert [row[column][place] for row in rows] == pytest.approx(wanted)
    assert sum(row["recent_counts"][0] - row[COUNTS][0] for row in rows) > 5  # Some clicks are after the cut.


def test_without_a_cut_both_counts_are_equal(nights: Warehouse) -> None:
    night = Night.open(nights, Inputs(), SECOND, 17)
    counts = recent_counts(night, [7.0], as_of=SECOND, since=None, unseen_count=0.5)
    assert counts.where(f"recent_counts != {COUNTS}").isEmpty()


def test_items_of_the_last_days_have_the_counts_of_their_rates(spark: SparkSession, tmp_path: Path) -> None:
    """Ten days, half-life 3: old items, items of the last two days, and items that come after the night."""
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    day = lambda number: 19_000 + number  # noqa: E731
    nothing: list[int] = []
    days = {2: [*range(10)], 3: [0], 5: [9], 6: [8, 9], 8: [6], 11: [8]} | dict.fromkeys((4, 7, 9, 10), nothing)
    first = {2: 0, 3: 0, 4: 0, 5: 8, 6: 8, 7: 9, 8: 9, 9: 12, 10: 9, 11: 8}  # Item 8 was taken before it was published.
    hour = {10: 18, 11: 6, 8: 12}  # of the day of publication; unknown for the others
    stats = [(i, f"i{i}", True, [day(d) for d in taken], [2] * len(taken)) for i, taken in days.items()]
    columns = "item_index int, item_id string, live boolean, day_ordinals array<int>, day_counts array<bigint>"
    ds = (date(1970, 1, 1) + timedelta(day(9))).isoformat()
    recipe = Recipe("test", {})
    warehouse.write(spark.createDataFrame(stats, columns), "item_stats", ds, recipe)
    number = lambda at: int((date(1970, 1, 1) + timedelta(day(at))).strftime("%Y%m%d")) if at else 0  # noqa: E731
    midnight = lambda at: datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(day(at))  # noqa: E731
    published = {i: midnight(first[i]) + timedelta(hours=hours) for i, hours in hour.items()}
    rows = [(i, f"i{i}", number(at), published.get(i)) for i, at in first.items()]
    columns = "item_index int, item_id string, available_from int, publish_time timestamp"
    warehouse.write(spark.createDataFrame(rows, columns), "item_features", ds, recipe)
    night = Night.open(warehouse, Inputs(), ds, 17)
    found = recent_counts(night, [3.0], as_of=ds, since=None, unseen_count=0.5).collect()
    counts = {row["item_index"]: row["recent_counts"][0] for row in found}

    decayed = {i: sum(2 * 0.5 ** ((9 - d) / 3) for d in taken) for i, taken in days.items()}
    scale = sum(2 * len(taken) for taken in days.values()) / sum(decayed.values())
    decayed = {i: scale * count for i, count in decayed.items()}
    start = {i: min([first[i], *days[i]]) for i in days}
    exposure = {i: sum(0.5 ** ((9 - d) / 3) for d in range(start[i], 10)) for i in days}
    missed = {i: (0.5 if i not in hour or start[i] < first[i] else hour[i] / 24) for i in days}  # of the first day
    exposure = {i: E - missed[i] * (0 < start[i] <= 9) * 0.5 ** ((9 - start[i]) / 3) for i, E in exposure.items()}
    rate = sum(decayed.values()) / sum(exposure.values())
    whole = exposure[2]
    for i in days:
        expected = (decayed[i] + 0.5) * (whole + 0.5 / rate) / (exposure[i] + 0.5 / rate) - 0.5
        assert counts[i] == pytest.approx(expected), i
    assert counts[2] == pytest.approx(decayed[2]), "an item that was there all the time keeps its count"
    assert counts[9] == pytest.approx(rate * whole), "an item without a day has the count of the mean item"
    assert counts[4] == 0 < counts[7] < counts[10] < counts[9], "the longer without a positive, the less"
    assert counts[6] > 1.5 * decayed[6], "two positives in two days are a high rate"

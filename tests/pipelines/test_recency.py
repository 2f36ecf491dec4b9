"""Recent positives per item, and what of them the choice of a prior may see."""

from datetime import datetime

import pytest

from pipelines.config import Inputs
from pipelines.night import Night
from pipelines.recency import recent_counts
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
    rows = recent_counts(Night.open(nights, Inputs(), SECOND, 17), HALF_LIVES, as_of=as_of, since=CUT).collect()
    live = {r["item_id"] for r in nights.read("item_stats", SECOND).where("live").collect()}
    assert {row["item_id"] for row in rows} == live
    for place, half_life in enumerate(HALF_LIVES):
        for column, end in (("recent_counts", datetime(2024, 3, 4)), (COUNTS, datetime.fromisoformat(CUT))):
            counts = expected(end, half_life, as_of)
            assert [row[column][place] for row in rows] == pytest.approx([counts.get(r["item_id"], 0) for r in rows])
    assert sum(row["recent_counts"][0] - row[COUNTS][0] for row in rows) > 5  # Some clicks are after the cut.


def test_without_a_cut_both_counts_are_equal(nights: Warehouse) -> None:
    night = Night.open(nights, Inputs(), SECOND, 17)
    assert recent_counts(night, [7.0], as_of=SECOND, since=None).where(f"recent_counts != {COUNTS}").isEmpty()

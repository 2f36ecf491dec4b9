"""The known items that the item-item part is fitted on: which users, which of their items, without the held-out hours."""

from datetime import datetime, timezone

import pytest

from pipelines.config import Inputs
from pipelines.night import Night
from pipelines.queries import known_items
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, SECOND, rows_of

pytestmark = pytest.mark.joins


def chosen(
    warehouse: Warehouse, items: int, users: int, since: str | None = None, seed: int = 17
) -> dict[str, list[int]]:
    night = Night.open(warehouse, Inputs(), SECOND, seed, 0, features=CONFIG.features)
    return {row["user_id"]: row["items"] for row in known_items(night, items, users, since).collect()}


def test_users_are_chosen_by_hash_and_have_their_last_items(nights: Warehouse) -> None:
    state = {row["user_id"]: row["known_items"] for row in rows_of(nights, "user_histories", SECOND)}
    everyone = {user: items for user, items in state.items() if items}
    assert len(everyone) > 20
    assert {user: items[::-1] for user, items in chosen(nights, 999, 999).items()} == everyone
    few = chosen(nights, 3, 7)
    assert len(few) == 7
    assert few == {user: everyone[user][::-1][:3] for user in few}
    assert max(map(len, everyone.values())) > 3
    assert set(chosen(nights, 3, 5)) < set(few)
    assert chosen(nights, 3, 7, seed=18).keys() != few.keys()


def test_positives_at_or_after_a_time_are_left_out(nights: Warehouse) -> None:
    since = datetime(2024, 3, 3, 12, tzinfo=timezone.utc)
    late: dict[str, set[int]] = {}
    times = set()
    for row in rows_of(nights, "positives", SECOND):
        times.add(time := row["event_time"].astimezone(timezone.utc))
        if time >= since:
            late.setdefault(row["user_id"], set()).add(row["item_index"])
    assert since in times, "the time itself is left out"
    everything = chosen(nights, 999, 999)
    early = chosen(nights, 999, 999, since.replace(tzinfo=None).isoformat(" "))
    assert early == {
        user: [item for item in items if item not in late.get(user, ())] for user, items in everything.items()
    }
    assert 0 < sum(map(len, early.values())) < sum(map(len, everything.values()))

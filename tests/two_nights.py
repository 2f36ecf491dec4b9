"""Two small nights that many tests use: funnel logs, ties in time, features that change, an item published late."""

import random
from datetime import datetime, timedelta
from typing import Any

from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.feature_config import Features
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse

DAYS = ["2024-03-01", "2024-03-02", "2024-03-03"]
FIRST, SECOND = DAYS[1], DAYS[2]
LENGTH = 5
CONFIG = SampleConfig(
    Features.model_validate(
        {
            "user": [
                {"kind": "categorical", "name": "age"},
                {"kind": "numeric", "name": "income"},
                {"kind": "vector", "name": "taste", "length": 2},
            ],
            "item": [
                {"kind": "categorical", "name": "category"},
                {"kind": "multi_categorical", "name": "tags", "max_values": 3, "weights": "tag_weights"},
                {"kind": "numeric", "name": "price", "boundaries": [10.0, 20.0]},
                {"kind": "vector", "name": "look", "length": 3, "dropout": 0.5},
            ],
            "context": [
                {"kind": "categorical", "name": "device"},
                {"kind": "multi_categorical", "name": "words", "max_values": 2, "weights": "word_weights"},
                {"kind": "numeric", "name": "load"},
                {"kind": "vector", "name": "query", "length": 2},
                {"kind": "hour"},
                {"kind": "weekday", "zone": "Asia/Tokyo"},
            ],
            "context_zone": "America/New_York",
            "history": {"length": LENGTH},
        }
    ),
    Positives(per_user_cap=4, downsample={"threshold": 0.005}, valid_hours=2.0),
    Negatives(uniform=2, popularity=2, coarse=2, fine=1),
    Samples(row_group_rows=16, trainers=3),
)
LATE_ITEM = 59  # published on the second night
Interaction = tuple[str, str, int, datetime, str, str]


def logs() -> tuple[list[Interaction], list[tuple[Any, ...]]]:
    """Interactions and ranking logs of 25 users and 60 items. Some events of a user have the same time."""
    rng = random.Random(5)
    interactions, rankings = [], []
    for number, ds in enumerate(DAYS):
        midnight = datetime.fromisoformat(ds)
        for user in range(25):
            request = f"{ds}-{user}"
            shown = rng.sample(range(LATE_ITEM), 40)
            for rank, item in enumerate(shown):
                stage = "exposed" if rank < 8 else "rerank" if rank < 12 else "fine" if rank < 20 else "coarse"
                stage = "recall" if rank >= 36 else stage
                rankings.append((ds, request, f"u{user}", item, midnight + timedelta(hours=1), stage, rank + 1))
            for item in shown[: rng.randint(0, 8)]:
                time = midnight + timedelta(hours=rng.randint(1, 23), minutes=rng.choice([0, 30]))
                action = "click" if rng.random() < 0.8 else "view"
                interactions.append((ds, f"u{user}", item, time, action, request))
        if number == 2:
            interactions.append((ds, "newcomer", LATE_ITEM, midnight + timedelta(hours=5), "click", "x"))
    return interactions, rankings


def context_of(row: Interaction) -> tuple[str | None, list[str] | None, list[float], float | None, list[float] | None]:
    """device, words, word_weights, load and query of an interaction."""
    _, user, item, time, _, _ = row
    number = len(user) + item + time.hour
    words = [f"w{number % 3}", f"{time.date()}", "cut"] if number % 4 else None
    query = [float(item), -0.5] if item % 3 else None
    return ["phone", "tv", None][number % 3], words, [2.0, 1.0], float(item) if item % 5 else None, query


def write_inputs(warehouse: Warehouse) -> None:
    """Write the four input tables."""
    spark = warehouse.spark
    interactions, rankings = logs()
    columns = "ds string, user_id string, item_id int, event_time timestamp, action string, request_id string, "
    columns += "device string, words array<string>, word_weights array<double>, load double, query array<float>"
    with_context = [(*row, *context_of(row)) for row in interactions]
    warehouse.write_input(spark.createDataFrame(with_context, columns), "interactions")
    columns = (
        "ds string, request_id string, user_id string, item_id int, event_time timestamp, stage string, position int"
    )
    warehouse.write_input(spark.createDataFrame(rankings, columns), "ranking_logs")
    users = [
        ("2024-02-29", f"u{n}", ["young", "old", None][n % 3], float(n) if n % 4 else None, taste_of(n))
        for n in range(20)
    ]
    # A later snapshot with other ages. Events of its own day must not see it.
    users += [("2024-03-02", f"u{n}", "changed", float(n), taste_of(n)) for n in range(20)]
    columns = "ds string, user_id string, age string, income double, taste array<double>"
    warehouse.write_input(spark.createDataFrame(users, columns), "users")
    items = [
        (
            ds,
            n,
            datetime(2024, 3, 3) if n == LATE_ITEM else None,
            f"c{n % 3}",
            [f"t{n % 5}", f"t{n % 7}"],
            [1.0, 0.5],
            n / 2,
            [n / 7, 0.0, 1.0],
        )
        for ds in (DAYS[0], DAYS[2])
        for n in range(60)
    ]
    columns = "ds string, item_id int, publish_time timestamp, category string, tags array<string>, "
    columns += "tag_weights array<double>, price double, look array<float>"
    warehouse.write_input(spark.createDataFrame(items, columns), "items")


def taste_of(user: int) -> list[float] | None:
    """The vector of a user; every third user has none."""
    return [user / 3, -1.0] if user % 3 else None


def run_nights(warehouse: Warehouse, inputs: Inputs | None = None, last: str = SECOND) -> None:
    """Build FIRST as a bootstrap on two days, then SECOND unless `last` is FIRST."""
    for ds, days in ((FIRST, 2), (SECOND, 0))[: 1 + (last == SECOND)]:
        night = Night.open(warehouse, inputs or Inputs(), ds, 17, days, features=CONFIG.features)
        build_positives(night, CONFIG, "config")
        build_negatives(night, CONFIG, "config")


def rows_of(warehouse: Warehouse, table: str, ds: str) -> list[Any]:
    """The rows of a partition."""
    return warehouse.read(table, ds).collect()


def clicks_before(user: str, time: datetime) -> list[tuple[datetime, str]]:
    """(time, item) of the user's clicks strictly before a time; of an item and day only the last one."""
    last: dict[tuple[str, int], datetime] = {}
    for ds, who, item, when, action, _ in logs()[0]:
        if who == user and action == "click":
            last[ds, item] = max(when, last.get((ds, item), when))
    return sorted((when, str(item)) for (_, item), when in last.items() if when < time)


def item_of_index(warehouse: Warehouse, ds: str) -> dict[int, str]:
    """Item ids by index, from the vocabularies of ds."""
    return {r["index"]: r["value"] for r in rows_of(warehouse, "vocabularies", ds) if r["feature"] == "item_id"}

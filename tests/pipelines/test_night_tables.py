"""Two small nights, table by table: what the sample side promises, on real Spark with real shuffles."""

import random
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from pipelines.build_negatives import build_negatives
from pipelines.build_positives import build_positives
from pipelines.config import Features, Inputs, Negatives, Positives, Samples
from pipelines.draws import COARSE, FINE, POPULARITY, UNIFORM
from pipelines.night import Night, SampleConfig
from pipelines.storage import Warehouse

DAYS = ["2024-03-01", "2024-03-02", "2024-03-03"]
FIRST, SECOND = DAYS[1], DAYS[2]
LENGTH = 5
CONFIG = SampleConfig(
    Features.model_validate(
        {
            "user": [{"kind": "categorical", "name": "age"}, {"kind": "numeric", "name": "income"}],
            "item": [
                {"kind": "categorical", "name": "category"},
                {"kind": "multi_categorical", "name": "tags", "max_values": 3, "weights": "tag_weights"},
                {"kind": "numeric", "name": "price", "boundaries": [10.0, 20.0]},
            ],
            "history": {"length": LENGTH},
        }
    ),
    Positives(per_user_cap=4, downsample={"threshold": 0.02}, valid_hours=2.0),
    Negatives(uniform=2, popularity=2, coarse=2, fine=1),
    Samples(row_group_rows=16, trainers=3),
)
LATE_ITEM = 59  # published on the second night
Interaction = tuple[str, str, int, datetime, str, str]


def logs() -> tuple[list[Interaction], list[tuple[Any, ...]]]:
    """Interactions and ranking logs of 25 users and 60 items, ties in time among them."""
    rng = random.Random(5)
    interactions, rankings = [], []
    for number, ds in enumerate(DAYS):
        midnight = datetime.fromisoformat(ds)
        for user in range(25):
            request = f"{ds}-{user}"
            shown = rng.sample(range(LATE_ITEM), 40)
            for place, item in enumerate(shown):
                stage = "exposed" if place < 8 else "rerank" if place < 12 else "fine" if place < 20 else "coarse"
                stage = "recall" if place >= 36 else stage
                rankings.append((ds, request, f"u{user}", item, midnight + timedelta(hours=1), stage, place + 1))
            for item in shown[: rng.randint(0, 8)]:
                time = midnight + timedelta(hours=rng.randint(1, 23), minutes=rng.choice([0, 30]))
                action = "click" if rng.random() < 0.8 else "view"
                interactions.append((ds, f"u{user}", item, time, action, request))
        if number == 2:
            interactions.append((ds, "newcomer", LATE_ITEM, midnight + timedelta(hours=5), "click", "x"))
    return interactions, rankings


def write_inputs(warehouse: Warehouse) -> None:
    spark = warehouse.spark
    interactions, rankings = logs()
    columns = "ds string, user_id string, item_id int, event_time timestamp, action string, request_id string"
    warehouse.write_input(spark.createDataFrame(interactions, columns), "interactions")
    columns = (
        "ds string, request_id string, user_id string, item_id int, event_time timestamp, stage string, position int"
    )
    warehouse.write_input(spark.createDataFrame(rankings, columns), "ranking_logs")
    people = [("2024-02-29", f"u{n}", ["young", "old", None][n % 3], float(n) if n % 4 else None) for n in range(20)]
    # A later snapshot with other ages: an event of its own day must not see it.
    people += [("2024-03-02", f"u{n}", "changed", float(n)) for n in range(20)]
    warehouse.write_input(
        spark.createDataFrame(people, "ds string, user_id string, age string, income double"), "users"
    )
    things = [
        (
            ds,
            n,
            datetime(2024, 3, 3) if n == LATE_ITEM else None,
            f"c{n % 3}",
            [f"t{n % 5}", f"t{n % 7}"],
            [1.0, 0.5],
            n / 2,
        )
        for ds in (DAYS[0], DAYS[2])
        for n in range(60)
    ]
    columns = "ds string, item_id int, publish_time timestamp, category string, tags array<string>, "
    columns += "tag_weights array<double>, price double"
    warehouse.write_input(spark.createDataFrame(things, columns), "items")


def run_nights(warehouse: Warehouse, seed: int = 17) -> None:
    for ds, days in ((FIRST, 2), (SECOND, 0)):
        night = Night.open(warehouse, Inputs(), ds, seed, days)
        build_positives(night, CONFIG, "config")
        build_negatives(night, CONFIG, "config")


@pytest.fixture(scope="module")
def nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("nights")))
    write_inputs(warehouse)
    run_nights(warehouse)
    return warehouse


def table(warehouse: Warehouse, name: str, ds: str) -> list[Any]:
    return warehouse.read(name, ds).collect()


def clicks_before(user: str, time: datetime, *, deduplicated: bool = True) -> list[tuple[datetime, str]]:
    """The user's clicks strictly before a time, the last of each item and day: the oracle for histories."""
    last: dict[tuple[str, int], datetime] = {}
    for ds, who, item, when, action, _ in logs()[0]:
        if who == user and action == "click":
            last[ds, item] = max(when, last.get((ds, item), when))
    return sorted((when, str(item)) for (_, item), when in last.items() if when < time)


def item_of_index(warehouse: Warehouse, ds: str) -> dict[int, str]:
    return {r["index"]: r["value"] for r in table(warehouse, "vocabularies", ds) if r["feature"] == "item_id"}


@pytest.mark.parametrize("ds", [FIRST, SECOND])
def test_histories_are_the_last_positives_strictly_before_the_event(nights: Warehouse, ds: str) -> None:
    items = item_of_index(nights, ds)
    rows = table(nights, "positives", ds)
    for row in rows:
        past = clicks_before(row["user_id"], row["event_time"])
        assert len(row["history"]) == LENGTH
        filled = [items[index] for index in row["history"] if index]
        assert len(filled) == min(LENGTH, len(past))
        # Among clicks of one instant the order is free, so compare as sets where the cut falls between instants.
        expected = past[-LENGTH:]
        if len(past) <= LENGTH or past[-LENGTH - 1][0] < expected[0][0]:
            assert sorted(filled) == sorted(item for _, item in expected)
    assert sum(1 for row in rows if any(row["history"])) > len(rows) / 3


def test_the_second_night_saw_state_and_not_the_past(nights: Warehouse) -> None:
    recipe = nights.require("positives", SECOND, "").inputs
    assert f"user_histories@{FIRST}" in recipe
    assert nights.require("positives", FIRST, "").facts["bootstrap_days"] == 2
    days = {str(row["event_time"].date()) for row in table(nights, "positives", SECOND)}
    assert days == {SECOND}


def test_user_features_are_of_the_snapshot_before_the_day(nights: Warehouse) -> None:
    words = {(r["feature"], r["value"]): r["index"] for r in table(nights, "vocabularies", SECOND)}
    mean = nights.require("vocabularies", FIRST, "").facts["numeric"]["user.income"]["mean"]
    for row in table(nights, "positives", FIRST):
        number = int(row["user_id"][1:])
        age = ["young", "old", None][number % 3] if number < 20 else None
        assert row["user_age"] == (words["user.age", age] if age else 1)  # never "changed", which came on that day
        income = float(number) if number < 20 and number % 4 else mean
        assert row["user_income"] == pytest.approx(income, rel=1e-5)
    changed = {row["user_age"] for row in table(nights, "positives", SECOND) if row["user_id"] in ("u1", "u2", "u3")}
    assert changed <= {words["user.age", "changed"]}


def test_indices_never_change_their_meaning(nights: Warehouse) -> None:
    first = {(r["feature"], r["value"]): r["index"] for r in table(nights, "vocabularies", FIRST)}
    second = {(r["feature"], r["value"]): r["index"] for r in table(nights, "vocabularies", SECOND)}
    assert first.items() <= second.items()
    assert ("user_id", "newcomer") not in first
    assert second["user_id", "newcomer"] > max(i for (f, _), i in first.items() if f == "user_id")
    for feature in {feature for feature, _ in second}:
        indices = sorted(index for (name, _), index in second.items() if name == feature)
        assert indices == list(range(2, 2 + len(indices)))  # 0 and 1 are taken; no gap, no repeat


def test_the_cap_and_the_down_sampling_are_counted(nights: Warehouse) -> None:
    for ds in (FIRST, SECOND):
        manifest = nights.require("positives", ds, "")
        counts = manifest.facts["counts"]
        dropped = sum(value for name, value in counts.items() if name.startswith("dropped"))
        assert counts["positives"] - dropped == counts["kept"] == manifest.rows
        by_day: dict[tuple[str, str], int] = defaultdict(int)
        for row in table(nights, "positives", ds):
            by_day[row["user_id"], str(row["event_time"].date())] += 1
        assert max(by_day.values()) <= 4


def test_item_stats_count_the_window_and_the_written_rows(nights: Warehouse) -> None:
    clicks: dict[str, int] = defaultdict(int)
    for user in {row[1] for row in logs()[0]}:
        for _, item in clicks_before(user, datetime(2025, 1, 1)):
            clicks[item] += 1
    stats = table(nights, "item_stats", SECOND)
    assert {r["item_id"]: r["window_count"] for r in stats if r["window_count"]} == dict(clicks)
    trained: dict[int, int] = defaultdict(int)
    for row in table(nights, "positives", SECOND):
        trained[row["item_index"]] += row["split"] == "train"
    assert all(r["sampled_count"] == trained[r["item_index"]] for r in stats)
    for q in ("q_in_batch", "q_uniform", "q_popularity"):
        assert sum(r[q] for r in stats) == pytest.approx(1.0)
    total = sum(r["window_count"] ** 0.75 for r in stats if r["live"])
    assert all(r["q_popularity"] == pytest.approx(r["window_count"] ** 0.75 / total) for r in stats if r["live"])


def test_an_item_is_not_there_before_it_is_published(nights: Warehouse) -> None:
    assert LATE_ITEM not in {row["item_id"] for row in table(nights, "item_features", FIRST)}
    assert LATE_ITEM in {row["item_id"] for row in table(nights, "item_features", SECOND)}


@pytest.mark.parametrize("ds", [FIRST, SECOND])
def test_no_negative_is_known_seen_or_shown_and_hard_ones_come_from_the_funnel(nights: Warehouse, ds: str) -> None:
    items = item_of_index(nights, ds)
    interactions, rankings = logs()
    window = DAYS[:2] if ds == FIRST else [SECOND]
    shown = {(row[2], str(row[3])) for row in rankings if row[0] in window and row[5] == "exposed"}
    touched = {(row[1], str(row[2])) for row in interactions if row[0] in window}
    known = {(row[1], str(row[2])) for row in interactions if row[0] <= ds and row[4] == "click"}
    dropped = {
        COARSE: {(row[2], str(row[3])) for row in rankings if row[0] in window and row[5] in ("recall", "coarse")},
        # The last half of the list of 12 (re-ranked and fine): places 15 to 20 of the request.
        FINE: {(row[2], str(row[3])) for row in rankings if row[0] in window and 15 <= row[6] <= 20},
    }
    seen_kinds = set()
    for row in table(nights, "samples", ds):
        assert len(row["negatives"]) == len(row["negative_kinds"]) == len(row["negative_log_q"]) == 7
        filled = [item for item in row["negatives"] if item]
        assert len(filled) == len(set(filled)) == 7
        for item, kind, log_q in zip(row["negatives"], row["negative_kinds"], row["negative_log_q"]):
            pair = (row["user_id"], items[item])
            assert pair not in shown | touched | known
            assert item != row["item_index"]
            assert (log_q < 0) == (kind in (UNIFORM, POPULARITY))
            if kind in dropped:
                assert pair in dropped[kind]
            seen_kinds.add(kind)
    assert seen_kinds == {UNIFORM, POPULARITY, COARSE, FINE}


def test_row_groups_are_equal_and_enough_and_the_manifest_counts_them(nights: Warehouse) -> None:
    manifest = nights.require("samples", FIRST, "")
    splits = manifest.facts["splits"]
    assert sum(split["rows"] for split in splits.values()) == manifest.rows
    train = splits["train"]["groups"]
    assert len(train) % 3 == 0
    assert max(g["rows"] for g in train) - min(g["rows"] for g in train) <= 1
    import pyarrow.parquet as pq

    folder = Path(nights.path("samples", FIRST).removeprefix("file://"))
    for group in train:
        parquet = pq.ParquetFile(folder / group["path"])
        assert (parquet.num_row_groups, parquet.metadata.num_rows) == (1, group["rows"])


def test_the_same_night_twice_gives_the_same_rows_under_other_partitioning(nights: Warehouse, tmp_path: Path) -> None:
    again = Warehouse(nights.spark, str(tmp_path / "again"))
    write_inputs(again)
    before = nights.spark.conf.get("spark.sql.shuffle.partitions")
    nights.spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        run_nights(again)
    finally:
        nights.spark.conf.set("spark.sql.shuffle.partitions", before)
    for name in ("vocabularies", "user_histories", "item_stats", "item_features", "positives", "samples"):
        for ds in (FIRST, SECOND):
            assert sorted(map(repr, table(again, name, ds))) == sorted(map(repr, table(nights, name, ds))), name


def test_another_seed_draws_other_negatives(nights: Warehouse, tmp_path: Path) -> None:
    other = Warehouse(nights.spark, str(tmp_path / "other"))
    write_inputs(other)
    night = Night.open(other, Inputs(), FIRST, 18, 2)
    build_positives(night, CONFIG, "config")
    build_negatives(night, CONFIG, "config")
    ours = {row["row_key"]: row["negatives"] for row in table(nights, "samples", FIRST)}
    theirs = {row["row_key"]: row["negatives"] for row in table(other, "samples", FIRST)}
    common = ours.keys() & theirs.keys()
    assert common
    assert sum(ours[key] != theirs[key] for key in common) > 0.9 * len(common)


def test_a_finished_step_is_skipped_until_an_input_changes(nights: Warehouse) -> None:
    night = Night.open(nights, Inputs(), FIRST, 17, 2)
    before = nights.require("samples", FIRST, "")
    assert build_positives(night, CONFIG, "config")[1] is False
    assert build_negatives(night, CONFIG, "config") == (before, False)
    assert build_negatives(night, CONFIG, "other config")[1] is True
    rewritten = nights.require("samples", FIRST, "")
    assert rewritten.config_hash == "other config"
    assert build_negatives(night, CONFIG, "config")[1] is True  # and back, for the tests that follow


def test_without_ranking_logs_easy_negatives_take_the_places(nights: Warehouse, tmp_path: Path) -> None:
    quiet = Warehouse(nights.spark, str(tmp_path / "quiet"))
    write_inputs(quiet)
    quiet.delete(quiet.path("ranking_logs"))
    night = Night.open(quiet, Inputs(), FIRST, 17, 2)
    build_positives(night, CONFIG, "config")
    manifest, _ = build_negatives(night, CONFIG, "config")
    assert manifest.facts["ranking_logs"] is False
    kinds = manifest.facts["kinds"]
    assert (kinds["coarse"], kinds["fine"], kinds["none"]) == (0, 0, 0)
    assert kinds["uniform"] == 2 * manifest.rows
    assert kinds["popularity"] == 5 * manifest.rows

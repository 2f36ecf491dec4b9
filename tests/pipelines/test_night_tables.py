"""Two small nights: the promises of the tables that build_positives writes, and of histories in samples."""

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import Inputs
from pipelines.contract.schema import FeatureSchema
from pipelines.night import Night
from pipelines.queries import user_queries
from pipelines.storage.warehouse import Warehouse
from tests.joining import SHUFFLED, joins
from tests.two_nights import (
    CONFIG,
    DAYS,
    FIRST,
    LATE_ITEM,
    LENGTH,
    SECOND,
    clicks_before,
    context_of,
    item_of_index,
    logs,
    rows_of,
    run_nights,
    taste_of,
    write_inputs,
)

pytestmark = pytest.mark.joins


@pytest.mark.parametrize("ds", [FIRST, SECOND])
def test_histories_are_the_last_positives_strictly_before_the_event(nights: Warehouse, ds: str) -> None:
    items = item_of_index(nights, ds)
    rows = rows_of(nights, "samples", ds)
    for row in rows:
        past = clicks_before(row["user_id"], row["event_time"])
        assert len(row["history"]) == LENGTH
        filled = [items[index] for index in row["history"] if index]
        if row["event_time"] < datetime.fromisoformat(ds) and ds == SECOND:
            # A carried row: its history is what the state of the first night still holds from before it.
            assert Counter(filled) <= Counter(item for _, item in past)
            assert row["history_until"] == (past[-1][0] if filled else None)
            continue
        assert len(filled) == min(LENGTH, len(past))
        # The order of clicks of one instant is free, so compare without order, and only if the cut falls between instants.
        expected = past[-LENGTH:]
        if len(past) <= LENGTH or past[-LENGTH - 1][0] < expected[0][0]:
            assert sorted(filled) == sorted(item for _, item in expected)
        assert row["history_until"] == (past[-1][0] if past else None)
        assert row["history_until"] is None or row["history_until"] < row["event_time"]
    assert sum(1 for row in rows if any(row["history"])) > len(rows) / 3


def test_ids_are_text_in_all_tables(nights: Warehouse) -> None:
    """The items table has integers. Tables can be joined on their ids without a cast."""
    items = nights.spark.read.parquet(f"{nights.path('items')}/ds={SECOND}")
    assert dict(items.dtypes)["item_id"] == "int"
    tables = ("user_histories", "item_stats", "item_features", "item_versions", "positives", "samples")
    types = {
        (table, name): kind
        for table in tables
        for name, kind in nights.read(table, SECOND).dtypes
        if name in ("user_id", "item_id")
    }
    assert len(types) == 8
    assert set(types.values()) == {"string"}


@pytest.mark.parametrize("ds", [FIRST, SECOND])
def test_an_item_has_its_own_row_from_the_night_that_trains_on_it(nights: Warehouse, ds: str) -> None:
    nights_until = [night for night in (FIRST, SECOND) if night <= ds]
    clicked = {
        r["item_id"] for night in nights_until for r in rows_of(nights, "positives", night) if r["split"] == "train"
    }
    own = {r["item_id"]: r["item_row"] == r["item_index"] for r in rows_of(nights, "item_features", ds)}
    assert {item for item, seen in own.items() if seen} == clicked & set(own)
    waiting = [r["item_row"] for r in rows_of(nights, "item_features", ds) if r["item_id"] not in clicked]
    assert set(waiting) == {1}
    assert nights.require("item_features", ds, "").facts["schema"]["item"][0]["rows"]["hashed"] is False


def test_the_second_night_reads_the_state_and_only_its_own_day(nights: Warehouse) -> None:
    recipe = nights.require("positives", SECOND, "").inputs
    assert f"user_histories@{FIRST}" in recipe
    assert nights.require("positives", FIRST, "").facts["bootstrap_days"] == 2
    days = {str(row["event_time"].date()) for row in rows_of(nights, "positives", SECOND) if not row["carried"]}
    assert days == {SECOND}


def test_rows_held_back_by_the_first_night_train_in_the_second(nights: Warehouse) -> None:
    held_back = {row["row_key"]: row for row in rows_of(nights, "positives", FIRST) if row["split"] == "valid"}
    carried = {row["row_key"]: row for row in rows_of(nights, "positives", SECOND) if row["carried"]}
    assert held_back
    assert held_back.keys() == carried.keys()
    changed = {"split", "carried", "example_age"}
    for key, row in carried.items():
        assert row["split"] == "train"
        assert row["example_age"] == pytest.approx(held_back[key]["example_age"] + 1)
        before, now = (r.asDict() for r in (held_back[key], row))
        assert {n: v for n, v in now.items() if n not in changed} == {
            n: v for n, v in before.items() if n not in changed
        }
    samples = {row["row_key"]: row["split"] for row in rows_of(nights, "samples", SECOND)}
    assert {samples[key] for key in carried} == {"train"}
    # They are events of the first night, so the item statistics of the second must not count them again.
    stats = rows_of(nights, "item_stats", SECOND)
    clicks = {(day, user, item) for day, user, item, _, action, _ in logs()[0] if action == "click" and day >= DAYS[0]}
    assert sum(row["window_count"] for row in stats) == len(clicks)


def test_user_features_come_from_the_snapshot_before_the_day(nights: Warehouse) -> None:
    indices = {(r["feature"], r["value"]): r["index"] for r in rows_of(nights, "vocabularies", SECOND)}
    mean = nights.require("vocabularies", FIRST, "").facts["numeric"]["user.income"]["mean"]
    for row in rows_of(nights, "positives", FIRST):
        number = int(row["user_id"][1:])
        age = ["young", "old", None][number % 3] if number < 20 else None
        assert row["user_age"] == (
            indices["user.age", age] if age else 1
        )  # never "changed", which the snapshot of that day holds
        income = float(number) if number < 20 and number % 4 else mean
        assert row["user_income"] == pytest.approx(income, rel=1e-5)
    tonight = [row for row in rows_of(nights, "positives", SECOND) if not row["carried"]]
    changed = {row["user_age"] for row in tonight if row["user_id"] in ("u1", "u2", "u3")}
    assert changed <= {indices["user.age", "changed"]}


def test_vectors_come_from_the_snapshots_and_are_zero_without_one(nights: Warehouse) -> None:
    for row in rows_of(nights, "positives", FIRST):
        number = int(row["user_id"][1:])
        expected = taste_of(number) if number < 20 else None
        assert row["user_taste"] == pytest.approx(expected or [0.0, 0.0])
    for row in rows_of(nights, "item_features", SECOND):
        assert row["item_look"] == pytest.approx([int(row["item_id"]) / 7, 0.0, 1.0])


def test_context_is_that_of_the_row_and_null_is_default(nights: Warehouse) -> None:
    indices = {(r["feature"], r["value"]): r["index"] for r in rows_of(nights, "vocabularies", SECOND)}
    mean = nights.require("vocabularies", FIRST, "").facts["numeric"]["context.load"]["mean"]
    # The hours of an event in New York (UTC-5 in these days) and its weekday in Tokyo (UTC+9).
    for ds, table in ((FIRST, "positives"), (SECOND, "positives"), (SECOND, "samples")):
        for row in rows_of(nights, table, ds):
            day, at = str(row["event_time"].date()), row["event_time"]
            event = (day, row["user_id"], int(row["item_id"]), at, "click", "")
            device, words, weights, load, query = context_of(event)
            assert row["context_device"] == (indices["context.device", device] if device else 1)
            assert row["context_words"] == ([indices["context.words", word] for word in words[:2]] if words else [0, 0])
            assert row["context_words_weights"] == (weights if words else [0.0, 0.0])
            assert row["context_load"] == pytest.approx(mean if load is None else load, rel=1e-6)
            assert row["context_query"] == (query or [0.0, 0.0])
            assert row["context_hour"] == 2 + (at - timedelta(hours=5)).hour
            assert row["context_weekday"] == 2 + (at + timedelta(hours=9)).weekday()
    assert ("context.words", SECOND) not in {
        (r["feature"], r["value"]) for r in rows_of(nights, "vocabularies", FIRST)
    }, "the vocabulary of a night has no value of a later day"


def test_the_schema_describes_vectors_and_context(nights: Warehouse) -> None:
    schema = FeatureSchema.model_validate(nights.require("samples", SECOND, "").facts["schema"])
    assert {(f.name, f.kind) for f in schema.context} == {
        ("device", "categorical"),
        ("words", "multi_categorical"),
        ("load", "numeric"),
        ("query", "vector"),
        ("hour", "bucket"),
        ("weekday", "bucket"),
    }
    sizes = {f.name: f.size for f in schema.context if f.kind == "bucket"}
    assert sizes == {"hour": 26, "weekday": 9}
    vectors = {f.name: (f.length, f.dropout) for f in (*schema.user, *schema.item) if f.kind == "vector"}
    assert vectors == {"taste": (2, 0.3), "look": (3, 0.5)}


def test_queries_have_the_defaults_of_the_context(nights: Warehouse) -> None:
    mean = nights.require("vocabularies", FIRST, "").facts["numeric"]["context.load"]["mean"]
    night = Night.open(nights, Inputs(), SECOND, 17, features=CONFIG.features)
    rows = user_queries(night, CONFIG.features).collect()
    columns = [name for name in rows[0].asDict() if name.startswith("context_")]
    assert {tuple(map(str, (row[name] for name in columns))) for row in rows} == {
        tuple(map(str, (1, [0, 0], [0.0, 0.0], float(np.float32(mean)), [0.0, 0.0], 1, 1)))
    }


def test_indices_never_change_their_meaning(nights: Warehouse) -> None:
    first = {(r["feature"], r["value"]): r["index"] for r in rows_of(nights, "vocabularies", FIRST)}
    second = {(r["feature"], r["value"]): r["index"] for r in rows_of(nights, "vocabularies", SECOND)}
    assert first.items() <= second.items()
    assert ("user_id", "newcomer") not in first
    assert second["user_id", "newcomer"] > max(i for (f, _), i in first.items() if f == "user_id")
    for feature in {feature for feature, _ in second}:
        indices = sorted(index for (name, _), index in second.items() if name == feature)
        assert indices == list(range(2, 2 + len(indices)))  # 0 and 1 are reserved; no gaps, no repeats


def test_the_manifest_counts_dropped_rows_by_reason(nights: Warehouse) -> None:
    for ds in (FIRST, SECOND):
        manifest = nights.require("positives", ds, "")
        counts = manifest.facts["counts"]
        days = DAYS[:2] if ds == FIRST else [SECOND]
        clicks = [row for row in logs()[0] if row[0] in days and row[4] == "click"]
        dropped = sum(value for name, value in counts.items() if name.startswith("dropped"))
        assert counts["interactions"] == len(clicks)
        assert counts["interactions"] - dropped == counts["kept"]
        assert counts["dropped_over_cap"] > 0
        assert counts["dropped_downsampled"] > 0
        rows = rows_of(nights, "positives", ds)
        assert len({row["row_key"] for row in rows}) == manifest.rows == counts["positives"] + counts["carried"]
        reasons = Counter(row["dropped"] for row in rows)
        for reason in ("item_not_live", "known_item", "downsampled", "over_cap"):
            assert reasons[reason] == counts[f"dropped_{reason}"]
        trained = [row for row in rows if row["dropped"] is None]
        assert {row["split"] for row in trained} == {"train", "valid"}
        assert len(trained) == counts["kept"] + counts["carried"] == nights.require("samples", ds, "").rows
        by_day: dict[tuple[str, str], int] = defaultdict(int)
        for row in trained:
            by_day[row["user_id"], str(row["event_time"].date())] += 1
        assert max(by_day.values()) <= 4


def test_the_manifest_describes_skew_history_and_inputs(nights: Warehouse) -> None:
    facts = nights.require("positives", SECOND, "").facts
    clicks = [row for row in logs()[0] if row[0] == SECOND and row[4] == "click"]
    for column, name in ((1, "user"), (2, "item")):
        heaviest = Counter(str(row[column]) for row in clicks).most_common(1)[0][1]
        assert facts["skew"][f"heaviest_{name}_rows"] == heaviest
        assert facts["skew"][f"heaviest_{name}_share"] == pytest.approx(heaviest / len(clicks))
        count = sum(str(row[column]) == facts["skew"][f"heaviest_{name}"] for row in clicks)
        assert count == heaviest
    assert nights.require("samples", SECOND, "").facts["history"] == "strictly_before"
    assert facts["input"]["interactions"]["rows"] == sum(row[0] == SECOND for row in logs()[0])


def test_item_stats_count_the_window_and_the_written_rows(nights: Warehouse) -> None:
    clicks: dict[str, int] = defaultdict(int)
    for user in {row[1] for row in logs()[0]}:
        for _, item in clicks_before(user, datetime(2025, 1, 1)):
            clicks[item] += 1
    stats = rows_of(nights, "item_stats", SECOND)
    assert {r["item_id"]: r["window_count"] for r in stats if r["window_count"]} == dict(clicks)
    trained: dict[int, int] = defaultdict(int)
    for row in rows_of(nights, "positives", SECOND):
        trained[row["item_index"]] += row["split"] == "train"
    assert all(r["sampled_count"] == trained[r["item_index"]] for r in stats)
    for q in ("q_in_batch", "q_uniform", "q_popularity"):
        assert sum(r[q] for r in stats) == pytest.approx(1.0)
    total = sum(r["window_count"] ** 0.75 for r in stats if r["live"])
    assert all(r["q_popularity"] == pytest.approx(r["window_count"] ** 0.75 / total) for r in stats if r["live"])


def test_an_item_is_absent_before_it_is_published(nights: Warehouse) -> None:
    assert str(LATE_ITEM) not in {row["item_id"] for row in rows_of(nights, "item_features", FIRST)}
    assert str(LATE_ITEM) in {row["item_id"] for row in rows_of(nights, "item_features", SECOND)}


@pytest.mark.slow
@pytest.mark.any_joins
def test_a_repeated_night_gives_the_same_rows_with_any_joins(nights: Warehouse, tmp_path: Path) -> None:
    again = Warehouse(nights.spark, str(tmp_path / "again"))
    write_inputs(again)
    with joins(nights.spark, SHUFFLED | {"spark.sql.shuffle.partitions": "7"}):
        run_nights(again)
    for name in (
        "vocabularies",
        "user_histories",
        "item_stats",
        "item_features",
        "item_versions",
        "positives",
        "samples",
    ):
        for ds in (FIRST, SECOND):
            assert sorted(map(repr, rows_of(again, name, ds))) == sorted(map(repr, rows_of(nights, name, ds))), name

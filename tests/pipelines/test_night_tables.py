"""Two small nights, table by table: what the sample side promises, on real Spark with real shuffles."""

import dataclasses
import shutil
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import Features, Inputs
from pipelines.contract.negative_kinds import COARSE, FINE, POPULARITY, UNIFORM
from pipelines.night import Night
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse
from tests.joining import SHUFFLED, joins
from tests.two_nights import CONFIG, DAYS, FIRST, LATE_ITEM, LENGTH, SECOND, logs, run_nights, write_inputs

pytestmark = pytest.mark.joins


def copy_of(nights: Warehouse, folder: Path) -> Warehouse:
    """A copy of both nights, to build samples again from its positives."""
    root = folder / "copy"
    shutil.copytree(nights.root.removeprefix("file://"), root)
    return Warehouse(nights.spark, str(root))


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
    rows = table(nights, "samples", ds)
    for row in rows:
        past = clicks_before(row["user_id"], row["event_time"])
        assert len(row["history"]) == LENGTH
        filled = [items[index] for index in row["history"] if index]
        if row["event_time"] < datetime.fromisoformat(ds) and ds == SECOND:
            # A carried row: what the state of last night still holds from before it.
            assert Counter(filled) <= Counter(item for _, item in past)
            assert row["history_until"] == (past[-1][0] if filled else None)
            continue
        assert len(filled) == min(LENGTH, len(past))
        # Among clicks of one instant the order is free, so compare as sets where the cut falls between instants.
        expected = past[-LENGTH:]
        if len(past) <= LENGTH or past[-LENGTH - 1][0] < expected[0][0]:
            assert sorted(filled) == sorted(item for _, item in expected)
        assert row["history_until"] == (past[-1][0] if past else None)
        assert row["history_until"] is None or row["history_until"] < row["event_time"]
    assert sum(1 for row in rows if any(row["history"])) > len(rows) / 3


@pytest.mark.parametrize("ds", [FIRST, SECOND])
def test_an_item_has_its_own_row_from_the_night_that_trains_on_it(nights: Warehouse, ds: str) -> None:
    nights_of = [night for night in (FIRST, SECOND) if night <= ds]
    clicked = {r["item_id"] for night in nights_of for r in table(nights, "positives", night) if r["split"] == "train"}
    own = {str(r["item_id"]): r["item_row"] == r["item_index"] for r in table(nights, "item_features", ds)}
    assert {item for item, seen in own.items() if seen} == clicked & set(own)
    waiting = [r["item_row"] for r in table(nights, "item_features", ds) if str(r["item_id"]) not in clicked]
    assert set(waiting) == {1}
    assert nights.require("item_features", ds, "").facts["schema"]["item"][0]["rows"]["hashed"] is False


def test_the_second_night_saw_state_and_not_the_past(nights: Warehouse) -> None:
    recipe = nights.require("positives", SECOND, "").inputs
    assert f"user_histories@{FIRST}" in recipe
    assert nights.require("positives", FIRST, "").facts["bootstrap_days"] == 2
    days = {str(row["event_time"].date()) for row in table(nights, "positives", SECOND) if not row["carried"]}
    assert days == {SECOND}


def test_what_last_night_held_back_is_trained_on_tonight(nights: Warehouse) -> None:
    held = {row["row_key"]: row for row in table(nights, "positives", FIRST) if row["split"] == "valid"}
    carried = {row["row_key"]: row for row in table(nights, "positives", SECOND) if row["carried"]}
    assert held
    assert held.keys() == carried.keys()
    changed = {"split", "carried", "example_age"}
    for key, row in carried.items():
        assert row["split"] == "train"
        assert row["example_age"] == pytest.approx(held[key]["example_age"] + 1)
        before, now = (r.asDict() for r in (held[key], row))
        assert {n: v for n, v in now.items() if n not in changed} == {
            n: v for n, v in before.items() if n not in changed
        }
    samples = {row["row_key"]: row["split"] for row in table(nights, "samples", SECOND)}
    assert {samples[key] for key in carried} == {"train"}
    # They are events of last night: the state of tonight counts each once.
    stats = table(nights, "item_stats", SECOND)
    clicks = {(day, user, item) for day, user, item, _, action, _ in logs()[0] if action == "click" and day >= DAYS[0]}
    assert sum(row["window_count"] for row in stats) == len(clicks)


def test_user_features_are_of_the_snapshot_before_the_day(nights: Warehouse) -> None:
    words = {(r["feature"], r["value"]): r["index"] for r in table(nights, "vocabularies", SECOND)}
    mean = nights.require("vocabularies", FIRST, "").facts["numeric"]["user.income"]["mean"]
    for row in table(nights, "positives", FIRST):
        number = int(row["user_id"][1:])
        age = ["young", "old", None][number % 3] if number < 20 else None
        assert row["user_age"] == (words["user.age", age] if age else 1)  # never "changed", which came on that day
        income = float(number) if number < 20 and number % 4 else mean
        assert row["user_income"] == pytest.approx(income, rel=1e-5)
    tonight = [row for row in table(nights, "positives", SECOND) if not row["carried"]]
    changed = {row["user_age"] for row in tonight if row["user_id"] in ("u1", "u2", "u3")}
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
        days = DAYS[:2] if ds == FIRST else [SECOND]
        clicks = [row for row in logs()[0] if row[0] in days and row[4] == "click"]
        dropped = sum(value for name, value in counts.items() if name.startswith("dropped"))
        assert counts["interactions"] == len(clicks)
        assert counts["interactions"] - dropped == counts["kept"]
        assert counts["dropped_over_cap"] > 0
        assert counts["dropped_downsampled"] > 0
        rows = table(nights, "positives", ds)
        assert len({row["row_key"] for row in rows}) == manifest.rows == counts["positives"] + counts["carried"]
        reasons = Counter(row["dropped"] for row in rows)
        for reason in ("item_not_live", "downsampled", "over_cap"):
            assert reasons[reason] == counts[f"dropped_{reason}"]
        kept = [row for row in rows if row["dropped"] is None]
        assert {row["split"] for row in kept} == {"train", "valid"}
        assert len(kept) == counts["kept"] + counts["carried"] == nights.require("samples", ds, "").rows
        by_day: dict[tuple[str, str], int] = defaultdict(int)
        for row in kept:
            by_day[row["user_id"], str(row["event_time"].date())] += 1
        assert max(by_day.values()) <= 4


def test_the_manifest_tells_of_skew_of_the_history_and_of_the_inputs(nights: Warehouse) -> None:
    facts = nights.require("positives", SECOND, "").facts
    clicks = [row for row in logs()[0] if row[0] == SECOND and row[4] == "click"]
    for column, name in ((1, "user"), (2, "item")):
        heaviest = Counter(str(row[column]) for row in clicks).most_common(1)[0][1]
        assert facts["skew"][f"heaviest_{name}_rows"] == heaviest
        assert facts["skew"][f"heaviest_{name}_share"] == pytest.approx(heaviest / len(clicks))
        held = sum(str(row[column]) == facts["skew"][f"heaviest_{name}"] for row in clicks)
        assert held == heaviest
    assert nights.require("samples", SECOND, "").facts["history"] == "strictly_before"
    assert facts["input"]["interactions"]["rows"] == sum(row[0] == SECOND for row in logs()[0])


def test_ids_in_buckets_and_leave_one_out(nights: Warehouse, tmp_path: Path) -> None:
    other = Warehouse(nights.spark, str(tmp_path / "hashed"))
    write_inputs(other)
    spec = CONFIG.features.model_dump() | {
        "ids": {"user": {"buckets": 5}, "item": {"buckets": 7}},
        "history": {"length": LENGTH, "order": "leave_one_out"},
    }
    config = dataclasses.replace(CONFIG, features=Features.model_validate(spec))
    night = Night.open(other, Inputs(), FIRST, 17, 2)
    manifest, _ = build_positives(night, config, "hashed")
    facts = build_negatives(night, config, "hashed")[0].facts
    assert facts["history"] == "leave_one_out"
    assert facts["checked_history_items"] > 0
    assert "user_id" not in {row["feature"] for row in table(other, "vocabularies", FIRST)}
    assert manifest.facts["schema"]["user"][0]["size"] == 7
    buckets = {row["item_index"]: row["item_row"] for row in table(other, "item_features", FIRST)}
    assert set(buckets.values()) - {1} == set(range(2, 9))
    assert len(buckets) == LATE_ITEM

    items = item_of_index(other, FIRST)
    rows = table(other, "samples", FIRST)
    of_user = {row["user_id"]: row["user_index"] for row in rows}
    assert set(of_user.values()) <= set(range(2, 7))
    state = {row["user_id"]: row["user_index"] for row in table(other, "user_histories", FIRST)}
    assert of_user.items() <= state.items()
    ahead = 0
    for row in rows:
        own = {item: when for when, item in clicks_before(row["user_id"], datetime(2024, 3, 3))}
        others = own.keys() - {row["item_id"]}
        filled = [items[index] for index in row["history"] if index]
        assert len(filled) == len(set(filled)) == min(LENGTH, len(others))
        assert set(filled) <= others
        assert [own[item] for item in filled] == sorted(own[item] for item in filled)
        assert row["history_until"] is None
        ahead += any(own[item] > row["event_time"] for item in filled)
    assert ahead


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
        COARSE: {(row[0], row[2], str(row[3])) for row in rankings if row[5] == "coarse"},
        # The last half of the list of 12 (re-ranked and fine): places 15 to 20 of the request.
        FINE: {(row[0], row[2], str(row[3])) for row in rankings if 15 <= row[6] <= 20},
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
                # A row that the night before held back has the candidates of its own day.
                assert any((day, *pair) in dropped[kind] for day in {*window, str(row["event_time"].date())})
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


@pytest.mark.slow
@pytest.mark.any_joins
def test_the_same_night_twice_gives_the_same_rows_however_joins_are_executed(nights: Warehouse, tmp_path: Path) -> None:
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
            assert sorted(map(repr, table(again, name, ds))) == sorted(map(repr, table(nights, name, ds))), name


def test_another_seed_draws_other_negatives(nights: Warehouse, tmp_path: Path) -> None:
    other = copy_of(nights, tmp_path)
    assert build_negatives(Night.open(other, Inputs(), FIRST, 18, 2), CONFIG, "another seed")[1] is True
    ours = {row["row_key"]: row["negatives"] for row in table(nights, "samples", FIRST)}
    theirs = {row["row_key"]: row["negatives"] for row in table(other, "samples", FIRST)}
    common = ours.keys() & theirs.keys()
    assert common
    assert sum(ours[key] != theirs[key] for key in common) > 0.9 * len(common)


def test_a_finished_step_is_skipped_until_an_input_changes(nights: Warehouse, tmp_path: Path) -> None:
    night = Night.open(nights, Inputs(), FIRST, 17, 2)
    before = nights.require("samples", FIRST, "")
    assert build_positives(night, CONFIG, "config")[1] is False
    assert build_negatives(night, CONFIG, "config") == (before, False)
    other = copy_of(nights, tmp_path)
    # Another config: the catalogue counts as too large to broadcast. The checks on the staged table hold as before.
    shuffled = dataclasses.replace(CONFIG, negatives=CONFIG.negatives.model_copy(update={"broadcast_items": 0}))
    assert build_negatives(Night.open(other, Inputs(), FIRST, 17, 2), shuffled, "other config")[1] is True
    rewritten = other.require("samples", FIRST, "")
    assert rewritten.config_hash == "other config"
    assert (before.facts["sampler"], rewritten.facts["sampler"]) == ("broadcast", "shuffle")
    assert rewritten.rows == before.rows
    hard = ("coarse", "fine")
    assert [rewritten.facts["kinds"][kind] for kind in hard] == [before.facts["kinds"][kind] for kind in hard]
    assert sum(rewritten.facts["kinds"].values()) == sum(before.facts["kinds"].values())
    assert rewritten.facts["kinds"]["none"] <= 2  # places whose draws ran out: other draws, other places


def test_without_ranking_logs_easy_negatives_take_the_places(nights: Warehouse, tmp_path: Path) -> None:
    quiet = copy_of(nights, tmp_path)
    quiet.delete(quiet.path("ranking_logs"))
    manifest, _ = build_negatives(Night.open(quiet, Inputs(), FIRST, 17, 2), CONFIG, "no ranking logs")
    assert manifest.facts["ranking_logs"] is False
    kinds = manifest.facts["kinds"]
    assert (kinds["coarse"], kinds["fine"], kinds["none"]) == (0, 0, 0)
    assert kinds["uniform"] == 2 * manifest.rows
    assert kinds["popularity"] == 5 * manifest.rows

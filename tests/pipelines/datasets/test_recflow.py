"""Import of RecFlow: flags become stages, feedback becomes interactions, and a night draws hard negatives from them."""

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.feather as pf
import pytest
from pyspark.sql import DataFrame, SparkSession

from jobs import import_recflow
from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.contract.errors import InputError
from pipelines.contract.negative_kinds import COARSE, FINE
from pipelines.datasets.feather import find_files
from pipelines.datasets.recflow import COLUMNS, FLAGS, count_rows, ranking_logs, recflow_tables, source_files
from pipelines.feature_config import Features
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.datasets.recflow_files import DAY, NOON, ORDER, source_row, write


def imported(spark: SparkSession, folder: Path) -> tuple[dict[str, list[dict[str, Any]]], Any]:
    tables, counts = recflow_tables(spark, str(folder), source_files(str(folder)))
    return {name: rows_of(frame) for name, frame in tables.items()}, counts


def rows_of(frame: DataFrame) -> list[dict[str, Any]]:
    return sorted((row.asDict() for row in frame.collect()), key=repr)


Imported = tuple[dict[str, list[dict[str, Any]]], Any]


@pytest.fixture(scope="module")
def two_days(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """The tables and counts of a small source: two files, three requests, two days."""
    folder = tmp_path_factory.mktemp("recflow")
    midnight = NOON + DAY // 2
    early = [
        source_row(1, 7, 10, prerank_neg=1),
        source_row(1, 7, 11, coarse_neg=1),
        source_row(1, 7, 12, rank_neg=1, rank_index=14),
        source_row(1, 7, 13, rank_pos=1, rank_index=2),  # a good position in fine ranking, but no flag of a later stage
        source_row(1, 7, 14, rank_pos=1, rerank_neg=1, rank_index=3, rerank_index=12),
        source_row(1, 7, 15, coarse_neg=1, rank_neg=1, rank_index=11),  # contradictory flags: the last stage counts
        source_row(1, 7, 16),  # no stage at all
        source_row(1, 7, 17, rank_neg=1, rank_index=9),
    ]
    # The second file has more rows of the same request, and bools and floats (with NaN) where the first has integers.
    shown = {"realshow": 1, "rank_pos": 1, "rerank_pos": 1, "rank_index": 1}
    late = [
        source_row(1, 7, 17, **shown, rerank_index=1, effective_view=1, like=1),  # rank_neg in the first file
        source_row(1, 7, 18, **shown, rerank_index=np.nan),
        source_row(2, 7, 12, midnight - 1, effective_view=1),  # last millisecond of the day; feedback: shown
        source_row(2, 7, 12, midnight - 1, effective_view=1),  # a repeat of the row above
        source_row(3, 7, 12, midnight, age=4, duration=np.nan, upload_timestamp=0, long_view=1, realshow=1),
        source_row(3, 8, 19, midnight, coarse_neg=1),
    ]
    write(folder / "a" / "first.feather", early)
    write(folder / "b" / "c" / "second part.feather", late, realshow=bool, effective_view=float, like=bool)
    (folder / "b" / "._second part.feather").write_text("written by another system")
    return imported(spark, folder)


def test_flags_become_stages(two_days: Imported) -> None:
    tables, counts = two_days
    stages = {(r["ds"], r["request_id"], r["item_id"]): (r["stage"], r["position"]) for r in tables["ranking_logs"]}
    assert stages == {
        ("2024-01-13", 1, 10): ("recall", None),
        ("2024-01-13", 1, 11): ("coarse", None),
        ("2024-01-13", 1, 12): ("fine", 14),
        ("2024-01-13", 1, 13): ("fine", 2),
        ("2024-01-13", 1, 14): ("rerank", 12),
        ("2024-01-13", 1, 15): ("fine", 11),
        ("2024-01-13", 1, 17): ("exposed", 1),
        ("2024-01-13", 1, 18): ("exposed", None),
        ("2024-01-13", 2, 12): ("exposed", None),
        ("2024-01-14", 3, 12): ("exposed", None),
        ("2024-01-14", 3, 19): ("coarse", None),
    }
    assert len(tables["ranking_logs"]) == len(stages)
    assert (counts.rows, counts.without_stage, counts.answered_unshown) == (14, 1, 2)
    assert counts.stages == {"recall": 1, "coarse": 2, "fine": 4, "rerank": 1, "exposed": 5}


def test_feedback_becomes_interactions(two_days: Imported) -> None:
    tables, _ = two_days
    interactions = sorted((r["event_time"], r["item_id"], r["action"], r["request_id"]) for r in tables["interactions"])
    last = datetime(2024, 1, 13, 23, 59, 59, 999_000)
    assert interactions == [
        (datetime(2024, 1, 13, 12), 17, "effective_view", 1),
        (datetime(2024, 1, 13, 12), 17, "like", 1),
        (last, 12, "effective_view", 2),
        (datetime(2024, 1, 14), 12, "long_view", 3),
    ]


def test_the_first_snapshot_has_every_user_and_later_ones_the_newest_values(two_days: Imported) -> None:
    tables, _ = two_days
    ages = {(r["ds"], r["user_id"]): r["age"] for r in tables["users"]}
    assert ages == {
        **{("2024-01-12", 7): 2, ("2024-01-13", 7): 2, ("2024-01-14", 7): 4},
        **{("2024-01-12", 8): 3, ("2024-01-14", 8): 3, ("2024-01-13", 8): 3},
    }
    assert len(tables["users"]) == len(ages)


def test_each_snapshot_has_all_videos_up_to_its_day_with_their_newest_values(two_days: Imported) -> None:
    tables, _ = two_days
    first = {r["item_id"]: r for r in tables["items"] if r["ds"] == "2024-01-13"}
    second = {r["item_id"]: r for r in tables["items"] if r["ds"] == "2024-01-14"}
    assert (sorted(first), sorted(second)) == (list(range(10, 19)), list(range(10, 20)))
    assert len(tables["items"]) == len(first) + len(second)
    assert (first[12]["duration"], first[12]["publish_time"]) == (15_000, datetime(2024, 1, 1, 0, 0, 12))
    assert (second[12]["duration"], second[12]["publish_time"], second[12]["author_id"]) == (None, None, 5)


def test_zero_based_positions_are_shifted_to_start_at_one(spark: SparkSession) -> None:
    rows = [source_row(1, 7, video, rank_neg=True, rank_index=video) for video in range(3)]
    rows.append(source_row(1, 7, 9, rerank_neg=True, rank_index=4, rerank_index=5))
    flags = dict.fromkeys(FLAGS, bool)
    frame = spark.createDataFrame(pd.DataFrame(rows).astype(flags))
    zero_based = count_rows(frame, "").zero_based
    assert zero_based == {"rank_index"}
    assert {r["item_id"]: r["position"] for r in rows_of(ranking_logs(frame, zero_based))} == {0: 1, 1: 2, 2: 3, 9: 5}


def test_all_files_that_cannot_be_imported_are_named(spark: SparkSession, tmp_path: Path) -> None:
    row = source_row(1, 7, 10, prerank_neg=1)
    write(tmp_path / "good.feather", [row])
    write(tmp_path / "text.feather", [row], user_id=str)
    pd.DataFrame([row])[ORDER].iloc[:0].to_feather(tmp_path / "empty.feather")
    pd.DataFrame([row])[ORDER].drop(columns=["rank_neg", "like"]).to_feather(tmp_path / "short.feather")
    pf.write_feather(pd.DataFrame([row])[ORDER], str(tmp_path / "old.feather"), version=1)
    content = (tmp_path / "good.feather").read_bytes()
    (tmp_path / "torn.feather").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError) as refused:
        imported(spark, tmp_path)
    message = str(refused.value)
    assert message.startswith(f"5 of 6 files in {tmp_path} cannot be imported: ")
    assert "good.feather" not in message
    for part in (
        "empty.feather has no rows",
        "short.feather lacks the columns like, rank_neg",
        "text.feather holds string in column user_id, which must be numeric",
        "old.feather is in Feather version 1",
        "torn.feather is not a Feather file",
    ):
        assert part in message
    with pytest.raises(InputError, match=r"nothing holds no \*\.feather file.*--source"):
        find_files("nothing")


def test_rows_without_a_valid_key_or_time_are_counted_and_refused(spark: SparkSession, tmp_path: Path) -> None:
    seconds = source_row(1, 7, 10, NOON // 1000)
    write(tmp_path / "all.feather", [source_row(1, 7, 11), seconds, source_row(1, np.nan, 12), source_row(2.5, 7, 13)])
    with pytest.raises(
        InputError, match=r"3 of 4 rows lack one of request_id, user_id, video_id.*milliseconds"
    ) as refused:
        imported(spark, tmp_path)
    assert '{"request_id":1,"user_id":7,"video_id":10,"request_timestamp":1705147200}' in str(refused.value)


def request_rows(request: int, user: int, time: int, videos: list[int]) -> list[dict[str, Any]]:
    """The rows of one request. Of 40 videos, best first: 4 shown, 4 re-ranked, 12 fine-ranked, 20 dropped before."""
    rows = []
    for rank, video in enumerate(videos[:40], 1):
        if rank <= 20:
            flags = {"rank_pos": rank <= 8, "rank_neg": rank > 8, "rank_index": rank}
        else:
            flags = {"coarse_neg": rank <= 30, "prerank_neg": rank > 30}
        if rank <= 8:
            flags |= {"rerank_pos": rank <= 4, "rerank_neg": rank > 4, "rerank_index": rank}
        shown = rank <= 4
        flags |= {"realshow": shown, "effective_view": shown}
        rows.append(source_row(request, user, video, time, **{name: int(value) for name, value in flags.items()}))
    return rows


def write_source(folder: Path) -> dict[str, dict[int, set[int]]]:
    """Write two days of 12 users with one request per day, in two files per day. Returns the videos that each stage dropped on
    the last day, by user."""
    dropped: dict[str, dict[int, set[int]]] = {"coarse": {}, "fine": {}}
    rng = np.random.default_rng(3)
    for day in range(2):
        rows = []
        for user in range(12):
            videos = rng.permutation(80).tolist()
            rows += request_rows(100 * day + user, user, NOON + day * DAY + user, videos)
            dropped["coarse"][user] = set(videos[20:40])
            dropped["fine"][user] = set(videos[12:20])  # the last half of the 16 that were ranked and not shown
        write(folder / "all_stage" / f"{day}.feather", rows[::2])
        write(folder / "all_stage" / f"{day}-more.feather", rows[1::2])
        write(folder / "realshow" / f"{day}.feather", [row for row in rows if row["realshow"]])
    return dropped


@pytest.mark.slow
def test_a_night_on_imported_tables_has_hard_negatives(
    spark: SparkSession, warehouse: Warehouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dropped = write_source(tmp_path / "RecFlow")
    (tmp_path / "RecFlow" / "others").mkdir()
    (tmp_path / "RecFlow" / "others" / "rank_test.feather").write_text("not part of the import")
    args = SimpleNamespace(source=f"{tmp_path / 'RecFlow'}/")
    context: Any = SimpleNamespace(spark=spark, warehouse=warehouse, args=args, force=False, config=None)
    with caplog.at_level("INFO", logger="nightjar"):
        import_recflow.run(context)
    assert "imported RecFlow: 4 files, 96 interactions and 960 ranked videos on 2 days" in caplog.text
    uri = warehouse.path("interactions")
    before = warehouse.input_fingerprint(uri, ["2024-01-13"])
    import_recflow.run(context)
    assert warehouse.input_fingerprint(uri, ["2024-01-13"]) == before  # a second run changes nothing

    features = {
        "user": [{"kind": "categorical", "name": "age"}],
        "item": [{"kind": "categorical", "name": "category_level_one"}, {"kind": "numeric", "name": "duration"}],
    }
    actions = {"effective_view": 1.0}
    config = SampleConfig(
        Features.model_validate(features),
        Positives(actions=actions, downsample=None),
        Negatives(uniform=1, popularity=0, coarse=2, fine=2, coarse_stages=["recall", "coarse"]),
        Samples(row_group_rows=64, trainers=1),
    )
    night = Night.open(warehouse, Inputs(), "2024-01-14", seed=5, bootstrap_days=1)
    build_positives(night, config, "a")
    build_negatives(night, config, "a")
    video = {r["item_index"]: int(r["item_id"]) for r in warehouse.read("item_stats", "2024-01-14").collect()}
    rows = (
        warehouse.read("samples", "2024-01-14").select("user_id", "user_age", "negatives", "negative_kinds").collect()
    )
    assert len(rows) == 48
    assert all(row["user_age"] >= 2 for row in rows)  # point in time: ages are those of the snapshot of the day before
    kinds = [kind for row in rows for kind in row["negative_kinds"]]
    assert (kinds.count(COARSE), kinds.count(FINE)) == (96, 96)
    for row in rows:
        for kind, name in ((COARSE, "coarse"), (FINE, "fine")):
            drawn = {video[i] for i, k in zip(row["negatives"], row["negative_kinds"]) if k == kind}
            assert drawn <= dropped[name][int(row["user_id"])]


def test_every_published_column_except_playing_time_is_read() -> None:
    assert set(ORDER) - {"playing_time"} == set(COLUMNS)

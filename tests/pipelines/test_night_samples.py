"""Two small nights: the promises of the samples that build_negatives writes."""

import dataclasses
import shutil
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import Inputs
from pipelines.contract.negative_kinds import COARSE, FINE, POPULARITY, UNIFORM
from pipelines.feature_config import Features
from pipelines.night import Night
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import (
    CONFIG,
    DAYS,
    FIRST,
    LATE_ITEM,
    LENGTH,
    SECOND,
    clicks_before,
    item_of_index,
    logs,
    rows_of,
    write_inputs,
)

pytestmark = pytest.mark.joins


def copy_of(nights: Warehouse, folder: Path) -> Warehouse:
    """A copy of both nights, to build samples again from its positives."""
    root = folder / "copy"
    shutil.copytree(nights.root.removeprefix("file://"), root)
    return Warehouse(nights.spark, str(root))


@pytest.mark.parametrize("ds", [FIRST, SECOND])
def test_negatives_are_new_to_the_user_and_hard_ones_come_from_the_funnel(nights: Warehouse, ds: str) -> None:
    items = item_of_index(nights, ds)
    interactions, rankings = logs()
    window = DAYS[:2] if ds == FIRST else [SECOND]
    shown = {(row[2], str(row[3])) for row in rankings if row[0] in window and row[5] == "exposed"}
    touched = {(row[1], str(row[2])) for row in interactions if row[0] in window}
    known = {(row[1], str(row[2])) for row in interactions if row[0] <= ds and row[4] == "click"}
    dropped = {
        COARSE: {(row[0], row[2], str(row[3])) for row in rankings if row[5] == "coarse"},
        # The last half of the 12 items that reached fine ranking: positions 15 to 20 of the request.
        FINE: {(row[0], row[2], str(row[3])) for row in rankings if 15 <= row[6] <= 20},
    }
    seen_kinds = set()
    for row in rows_of(nights, "samples", ds):
        assert len(row["negatives"]) == len(row["negative_kinds"]) == len(row["negative_log_q"]) == 7
        filled = [item for item in row["negatives"] if item]
        assert len(filled) == len(set(filled)) == 7
        for item, kind, log_q in zip(row["negatives"], row["negative_kinds"], row["negative_log_q"]):
            pair = (row["user_id"], items[item])
            assert pair not in shown | touched | known
            assert item != row["item_index"]
            assert (log_q < 0) == (kind in (UNIFORM, POPULARITY))
            if kind in dropped:
                # A carried row may have candidates of its own day.
                assert any((day, *pair) in dropped[kind] for day in {*window, str(row["event_time"].date())})
            seen_kinds.add(kind)
    assert seen_kinds == {UNIFORM, POPULARITY, COARSE, FINE}


def test_row_groups_are_equal_and_a_multiple_of_the_trainers(nights: Warehouse) -> None:
    manifest = nights.require("samples", FIRST, "")
    splits = manifest.facts["splits"]
    assert sum(split["rows"] for split in splits.values()) == manifest.rows
    train = splits["train"]["groups"]
    assert len(train) % 3 == 0
    assert max(g["rows"] for g in train) - min(g["rows"] for g in train) <= 1
    folder = Path(nights.path("samples", FIRST).removeprefix("file://"))
    for group in train:
        parquet = pq.ParquetFile(folder / group["path"])
        assert (parquet.num_row_groups, parquet.metadata.num_rows) == (1, group["rows"])


def test_another_seed_draws_other_negatives(nights: Warehouse, tmp_path: Path) -> None:
    other = copy_of(nights, tmp_path)
    assert build_negatives(Night.open(other, Inputs(), FIRST, 18, 2), CONFIG, "another seed")[1] is True
    first = {row["row_key"]: row["negatives"] for row in rows_of(nights, "samples", FIRST)}
    second = {row["row_key"]: row["negatives"] for row in rows_of(other, "samples", FIRST)}
    common = first.keys() & second.keys()
    assert common
    assert sum(first[key] != second[key] for key in common) > 0.9 * len(common)


def test_a_finished_step_is_skipped_until_an_input_changes(nights: Warehouse, tmp_path: Path) -> None:
    night = Night.open(nights, Inputs(), FIRST, 17, 2)
    before = nights.require("samples", FIRST, "")
    assert build_positives(night, CONFIG, "config")[1] is False
    assert build_negatives(night, CONFIG, "config") == (before, False)
    other = copy_of(nights, tmp_path)
    # Another config: the catalogue counts as too large to broadcast.
    shuffled = dataclasses.replace(CONFIG, negatives=CONFIG.negatives.model_copy(update={"broadcast_items": 0}))
    assert build_negatives(Night.open(other, Inputs(), FIRST, 17, 2), shuffled, "other config")[1] is True
    rewritten = other.require("samples", FIRST, "")
    assert rewritten.config_hash == "other config"
    assert (before.facts["sampler"], rewritten.facts["sampler"]) == ("broadcast", "shuffle")
    assert rewritten.rows == before.rows
    hard = ("coarse", "fine")
    assert [rewritten.facts["kinds"][kind] for kind in hard] == [before.facts["kinds"][kind] for kind in hard]
    assert sum(rewritten.facts["kinds"].values()) == sum(before.facts["kinds"].values())
    assert rewritten.facts["kinds"]["none"] <= 2  # places whose attempts were used up; these differ between samplers


def test_without_ranking_logs_easy_negatives_replace_hard_ones(nights: Warehouse, tmp_path: Path) -> None:
    quiet = copy_of(nights, tmp_path)
    quiet.delete(quiet.path("ranking_logs"))
    manifest, _ = build_negatives(Night.open(quiet, Inputs(), FIRST, 17, 2), CONFIG, "no ranking logs")
    assert manifest.facts["ranking_logs"] is False
    kinds = manifest.facts["kinds"]
    assert (kinds["coarse"], kinds["fine"], kinds["none"]) == (0, 0, 0)
    assert kinds["uniform"] == 2 * manifest.rows
    assert kinds["popularity"] == 5 * manifest.rows


def test_logs_without_the_stage_of_a_kind_are_pointed_out(
    nights: Warehouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = copy_of(nights, tmp_path)
    for file in Path(other.path("ranking_logs").removeprefix("file://")).rglob("*.parquet"):
        rows = pq.read_table(file)
        stages = ["recall" if stage == "coarse" else stage for stage in rows["stage"].to_pylist()]
        pq.write_table(rows.set_column(rows.schema.get_field_index("stage"), "stage", pa.array(stages)), file)
        file.with_name(f".{file.name}.crc").unlink()
    manifest, _ = build_negatives(Night.open(other, Inputs(), FIRST, 17, 2), CONFIG, "config")
    assert manifest.facts["kinds"]["coarse"] == 0 < manifest.facts["kinds"]["fine"]
    (warning,) = (record.getMessage() for record in caplog.records if "no coarse negative" in record.getMessage())
    assert "whose last stage is coarse" in warning
    assert "Set negatives.coarse_stages to the stages of your logs (if stage `recall` has" in warning


@pytest.mark.slow
def test_hashed_ids_and_leave_one_out_histories(nights: Warehouse, tmp_path: Path) -> None:
    other = Warehouse(nights.spark, str(tmp_path / "hashed"))
    write_inputs(other)
    spec = CONFIG.features.model_dump() | {
        "ids": {"user": {"buckets": 5}, "item": {"buckets": 7}},
        "history": {"length": LENGTH, "order": "leave_one_out"},
    }
    config = dataclasses.replace(CONFIG, features=Features.model_validate(spec))
    night = Night.open(other, Inputs(), FIRST, 17, 2, features=config.features)
    manifest, _ = build_positives(night, config, "hashed")
    facts = build_negatives(night, config, "hashed")[0].facts
    assert facts["history"] == "leave_one_out"
    assert facts["checked_history_items"] > 0
    assert "user_id" not in {row["feature"] for row in rows_of(other, "vocabularies", FIRST)}
    assert manifest.facts["schema"]["user"][0]["size"] == 7
    buckets = {row["item_index"]: row["item_row"] for row in rows_of(other, "item_features", FIRST)}
    assert set(buckets.values()) - {1} == set(range(2, 9))
    assert len(buckets) == LATE_ITEM

    items = item_of_index(other, FIRST)
    rows = rows_of(other, "samples", FIRST)
    of_user = {row["user_id"]: row["user_index"] for row in rows}
    assert set(of_user.values()) <= set(range(2, 7))
    state = {row["user_id"]: row["user_index"] for row in rows_of(other, "user_histories", FIRST)}
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

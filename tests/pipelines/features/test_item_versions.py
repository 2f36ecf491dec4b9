"""Items as of the day before an event: a feature that counts clicks must not include the row's own click, and an item that
has left the catalogue was live before."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession

from model.data.catalogue import Catalogue
from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.contract.negative_kinds import UNIFORM
from pipelines.contract.schema import FeatureSchema
from pipelines.feature_config import Features
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse

pytestmark = pytest.mark.joins

DAYS = ["2024-03-01", "2024-03-02", "2024-03-03"]
BEFORE, LAST = "2024-02-29", DAYS[-1]
GONE, NEW = 7, 20  # an item that the last snapshot lacks, and one that is new in it
CONFIG = SampleConfig(
    Features.model_validate(
        {
            "item": [
                {"kind": "numeric", "name": "clicks", "boundaries": [float(n) for n in range(1, 200)]},
                {"kind": "multi_categorical", "name": "tags", "max_values": 2},
                {"kind": "categorical", "name": "brand", "min_count": 2},
                {"kind": "vector", "name": "look", "length": 2},
            ],
            "history": {"length": 3},
        }
    ),
    Positives(valid_hours=0, downsample=None, per_user_cap=None),
    Negatives(uniform=4, popularity=2, coarse=0, fine=0),
    Samples(row_group_rows=32, trainers=1),
)


def clicks() -> list[tuple[str, str, int, datetime, str]]:
    """Some clicks per day of thirty users, also on NEW on its first day and on GONE on all days."""
    rows = []
    for number, ds in enumerate(DAYS):
        for user in range(30):
            items = {(user * 3 + number) % 20, (user * 5 + number) % 20} | ({NEW} if ds == LAST and user < 6 else set())
            items |= {GONE} if user % 7 == 0 else set()
            for hour, item in enumerate(sorted(items)):
                rows.append((ds, f"u{user}", item, datetime.fromisoformat(ds) + timedelta(hours=hour + 1), "click"))
    return rows


def snapshots() -> list[tuple[Any, ...]]:
    """One snapshot per day, starting on BEFORE. `clicks` counts up to the end of the day, so it includes the day's labels."""
    events, rows = clicks(), []
    for ds in (BEFORE, *DAYS):
        for item in range(21):
            if (item == GONE and ds == LAST) or (item == NEW and ds < LAST):
                continue
            count = sum(day <= ds and clicked == item for day, _, clicked, _, _ in events)
            brand = f"once {ds}" if item == 3 else "always"
            rows.append((ds, item, None, float(count), [f"t{item % 3}", f"d{ds}" if item == 5 else "same"], brand))
    return rows


def write_world(spark: SparkSession, folder: Path) -> Warehouse:
    """A warehouse with the clicks and the snapshots as input tables."""
    warehouse = Warehouse(spark, str(folder))
    columns = "ds string, user_id string, item_id int, event_time timestamp, action string"
    warehouse.write_input(spark.createDataFrame(clicks(), columns), "interactions")
    columns = "ds string, item_id int, publish_time timestamp, clicks double, tags array<string>, brand string, "
    items = [(*row, [row[3], 0.5]) for row in snapshots()]  # a vector that changes with the clicks
    warehouse.write_input(spark.createDataFrame(items, columns + "look array<double>"), "items")
    return warehouse


def run_night(warehouse: Warehouse, ds: str, bootstrap_days: int, config: SampleConfig) -> None:
    """Write positives and samples of a night."""
    night = Night.open(warehouse, Inputs(), ds, 5, bootstrap_days)
    build_positives(night, config, "config")
    build_negatives(night, config, "config")


@pytest.fixture(scope="module")
def bootstrap(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    warehouse = write_world(spark, tmp_path_factory.mktemp("versions"))
    run_night(warehouse, LAST, 3, CONFIG)
    return warehouse


def gathered_clicks(warehouse: Warehouse) -> set[tuple[str, int]]:
    """(item, clicks) that the trainer gathers for rows of the last night. Asserts that clicks are those before each event."""
    files = {t: warehouse.data_files(warehouse.path(t, LAST)) for t in ("item_features", "item_versions")}
    schema = FeatureSchema.model_validate(warehouse.require("samples", LAST, "").facts["schema"])
    catalogue = Catalogue.read(schema, files["item_features"], None, files["item_versions"])
    count_of = {(ds, str(item)): count for ds, item, _, count, _, _ in snapshots()}
    names = {
        r["index"]: r["value"] for r in warehouse.read("vocabularies", LAST).collect() if r["feature"] == "item_id"
    }
    seen = set()
    for row in warehouse.read("samples", LAST).collect():
        day = row["event_time"].date()
        before = (day - timedelta(days=1)).isoformat()
        assert row["item_snapshot"] == int(before.replace("-", ""))
        for index in (row["item_index"], *row["negatives"]):
            item = names[index]
            expected = count_of.get((before, item))
            if expected is None:  # new on its own day
                assert (item, day.isoformat()) == (str(NEW), LAST), (
                    "a negative must not be newer than the day of its row"
                )
                expected = count_of[LAST, item]
            place = catalogue.rows(torch.tensor([index]), torch.tensor([row["item_snapshot"]]))
            gathered = catalogue.gather(place)
            assert int(gathered["item_clicks"]) == 2 + int(expected), (row, item)
            assert gathered["item_look"].tolist() == [[expected, 0.5]]
            seen.add((item, int(expected)))
    return seen


def test_a_row_sees_the_clicks_of_the_day_before(bootstrap: Warehouse) -> None:
    assert bootstrap.require("samples", LAST, "").rows == len({row[:4] for row in clicks()})
    assert len(gathered_clicks(bootstrap)) > 30


@pytest.mark.slow
def test_a_held_back_row_sees_the_clicks_of_the_day_before_its_own_day(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = write_world(spark, tmp_path)
    config = replace(CONFIG, positives=CONFIG.positives.model_copy(update={"valid_hours": 22.5}))  # from 01:30 on
    run_night(warehouse, DAYS[1], 2, config)
    run_night(warehouse, LAST, 0, config)
    days = [row["event_time"].date().isoformat() for row in warehouse.read("samples", LAST).collect()]
    assert set(days) == {DAYS[1], LAST}
    assert str(GONE) in {item for item, _ in gathered_clicks(warehouse)}
    # The item was live on the day of these rows, so it trains as in a bootstrap, although tonight's catalogue lacks it.
    held_back = warehouse.read("positives", DAYS[1]).where(f"split = 'valid' AND item_id = '{GONE}'").count()
    carried = warehouse.read("positives", LAST).where(f"carried AND split = 'train' AND item_id = '{GONE}'").count()
    assert carried == held_back > 0
    assert warehouse.require("positives", LAST, "").facts["counts"]["carried_not_live"] == 0
    (stats,) = warehouse.read("item_stats", LAST).where(f"item_id = '{GONE}'").collect()
    assert (stats["live"], stats["q_uniform"]) == (False, 0)
    with_gone_negatives = warehouse.read("samples", LAST).where(f"array_contains(negatives, {stats['item_index']})")
    assert with_gone_negatives.isEmpty()


def test_log_q_counts_the_live_items_of_the_day(bootstrap: Warehouse) -> None:
    """Uniform over the 20 items of the last day, and over 19 before, without the new one."""
    live_items = {
        (row["event_time"].date().isoformat(), round(float(np.exp(-log_q))))
        for row in bootstrap.read("samples", LAST).collect()
        for kind, log_q in zip(row["negative_kinds"], row["negative_log_q"])
        if kind == UNIFORM
    }
    assert live_items == {(DAYS[0], 19), (DAYS[1], 19), (LAST, 20)}


def test_only_versions_that_rows_can_see_are_written(bootstrap: Warehouse) -> None:
    """item_features has one row per item of the last snapshot; item_versions has versions that differ from the next one."""
    features = bootstrap.read("item_features", LAST).collect()
    assert {int(r["item_id"]) for r in features} == set(range(21)) - {GONE}
    versions = bootstrap.read("item_versions", LAST).collect()
    clicked = {item for _, _, item, _, _ in clicks()}
    assert {int(r["item_id"]) for r in versions} <= clicked
    last = {r["item_id"] for r in versions if r["valid_before"] == 99_999_999}
    assert last == {str(GONE)}
    row = next(r for r in versions if r["item_id"] == str(GONE) and r["snapshot"] == 20240302)
    assert row["item_row"] == row["item_index"], "the item has its own row of the embedding table"
    assert all(r["snapshot"] < r["valid_before"] for r in versions)
    values = {r["value"] for r in bootstrap.read("vocabularies", LAST).collect() if r["feature"] == "item.tags"}
    assert {f"d{ds}" for ds in (BEFORE, *DAYS)} <= values, "the vocabulary has the values of all snapshots"
    brands = {r["value"] for r in bootstrap.read("vocabularies", LAST).collect() if r["feature"] == "item.brand"}
    assert brands == {"always"}, "min_count counts items, not snapshots"


def test_an_item_that_has_left_trains_and_is_not_recalled(bootstrap: Warehouse) -> None:
    positives = bootstrap.read("positives", LAST).where(f"item_id = '{GONE}'").collect()
    assert {row["dropped"] for row in positives} == {None}
    assert {row["event_time"].date().isoformat() for row in positives} == set(DAYS)
    (stats,) = bootstrap.read("item_stats", LAST).where(f"item_id = '{GONE}'").collect()
    assert not stats["live"]
    assert (stats["q_uniform"], stats["q_popularity"]) == (0, 0)
    assert stats["q_in_batch"] > 0
    index = stats["item_index"]
    assert not any(index in row["negatives"] for row in bootstrap.read("samples", LAST).collect())


def test_the_manifest_lists_the_snapshots_that_rows_see(bootstrap: Warehouse) -> None:
    facts = bootstrap.require("positives", LAST, "").facts
    assert facts["item_snapshots"] == dict(zip(DAYS, (BEFORE, *DAYS)))
    assert facts["later_snapshot_days"] == []
    assert facts["later_snapshot_rows"] == sum(item == NEW for _, _, item, _, _ in clicks())

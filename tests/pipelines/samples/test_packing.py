"""A night with packed samples has the same positives as without: the same rows once they are unpacked."""

import dataclasses
import shutil
from collections import defaultdict
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from model.config import ModelConfig, TrainingConfig
from model.data.petastorm_reader import SampleFile, SampleReader, sample_columns
from model.training.launch import launch
from model.training.spec import TrainingSpec
from pipelines.config import Inputs
from pipelines.contract.errors import InputError
from pipelines.contract.schema import FeatureSchema
from pipelines.feature_config import Features
from pipelines.night import Night, SampleConfig
from pipelines.samples import build
from pipelines.samples.build import build_negatives
from pipelines.samples.checks import check_samples
from pipelines.samples.packing import positives_in, unpacked
from pipelines.storage.update import Update
from pipelines.storage.update_warehouse import UpdateWarehouse
from pipelines.storage.warehouse import Warehouse
from tests.joining import SHUFFLED, joins
from tests.pipelines.samples.test_checks import SETTINGS, context_tables
from tests.two_nights import CONFIG, LENGTH, SECOND, rows_of

pytestmark = pytest.mark.joins

SEED, PACK = 17, 2
AHEAD = {"history": {"length": LENGTH, "order": "ahead", "ages": True}}


def config_of(pack: int | None, *, ahead: bool = False) -> SampleConfig:
    """The config of the small nights with packed rows; `ahead`: also with order ahead and ages."""
    config = dataclasses.replace(CONFIG, samples=CONFIG.samples.model_copy(update={"pack": pack}))
    if not ahead:
        return config
    features = Features.model_validate(CONFIG.features.model_dump() | AHEAD)
    positives = CONFIG.positives.model_copy(update={"ahead_days": 1.5})
    return dataclasses.replace(config, features=features, positives=positives)


def built(nights: Warehouse, folder: Any, config: SampleConfig) -> Warehouse:
    """A copy of the small nights whose second night has samples of another config."""
    root = folder / "warehouse"
    if not root.exists():
        shutil.copytree(nights.root.removeprefix("file://"), root)
    warehouse = Warehouse(nights.spark, str(root))
    build_negatives(Night.open(warehouse, Inputs(), SECOND, SEED), config, "packed", force=True)
    return warehouse


@pytest.fixture(scope="module")
def packed(nights: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    return built(nights, tmp_path_factory.mktemp("packed"), config_of(PACK))


def by_key(frame: DataFrame) -> dict[int, Row]:
    rows = {row["row_key"]: row for row in frame.drop("split", "group").collect()}
    assert len(rows) == frame.count()
    return rows


def schema_of(nights: Warehouse) -> FeatureSchema:
    return FeatureSchema.model_validate(nights.require("samples", SECOND, "").facts["schema"])


def same_positives(nights: Warehouse, plain: DataFrame, together: DataFrame, length: int = LENGTH) -> int:
    """Compare samples with packed ones. Returns how many positives see a shorter history in their packed row."""
    expected, out = by_key(plain), by_key(unpacked(together, schema_of(nights)))
    assert out.keys() == expected.keys()
    shorter = 0
    for key, row in out.items():
        other = expected[key]
        assert set(row.asDict()) == set(other.asDict())
        for name, value in row.asDict().items():
            if name not in ("history", "history_ages"):
                assert value == other[name], name
                continue
            zeros = sum(item == 0 for item in row["history"])
            assert value[zeros:] == other[name][zeros:]
            assert value[:zeros] == [0] * zeros
        seen, whole = (sum(item > 0 for item in each["history"]) for each in (row, other))
        assert min(whole, length - length // 2) <= seen <= whole
        shorter += seen < whole
    return shorter


def test_packed_samples_have_the_same_rows_once_they_are_unpacked(nights: Warehouse, packed: Warehouse) -> None:
    plain, together = nights.read("samples", SECOND), packed.read("samples", SECOND)
    assert unpacked(plain) is plain
    assert unpacked(together, schema_of(nights)).dtypes == plain.dtypes
    without_context = [name for name in plain.columns if not name.startswith("context_")]
    assert unpacked(together).columns == without_context != plain.columns
    assert same_positives(nights, plain, together) > 0
    before, after = (each.require("samples", SECOND, "").facts for each in (nights, packed))
    for name in ("kinds", "rows_fell_back", "fallback_share", "negatives", "quotas", "history"):
        assert after[name] == before[name]
    assert after["checked_history_items"] > 0


@pytest.mark.slow
def test_order_ahead_and_ages_survive_packing(nights: Warehouse, tmp_path: Any) -> None:
    plain = built(nights, tmp_path / "plain", config_of(None, ahead=True)).read("samples", SECOND)
    together = built(nights, tmp_path / "packed", config_of(PACK, ahead=True)).read("samples", SECOND)
    same_positives(nights, plain, together)
    lags = together.select(F.max(F.array_max("request_lag")), F.min(F.array_min("request_lag"))).first()
    assert lags is not None
    assert lags[0] > 0
    assert lags[1] == 0


@pytest.mark.slow
def test_a_row_of_one_positive_sees_its_whole_history(nights: Warehouse, tmp_path: Any) -> None:
    warehouse = built(nights, tmp_path, config_of(1))
    assert same_positives(nights, nights.read("samples", SECOND), warehouse.read("samples", SECOND)) == 0
    facts = warehouse.require("samples", SECOND, "").facts
    assert all(group["rows"] == group["positives"] for group in facts["splits"]["train"]["groups"])


def training_on(warehouse: Warehouse, output: Any) -> TrainingSpec:
    """A training of a sequence tower on the samples of the second night."""
    facts, root = warehouse.require("samples", SECOND, "").facts, warehouse.path("samples", SECOND)
    files = {
        split: [
            SampleFile(url=f"{root}/{group['path']}", rows=group["rows"], positives=group.get("positives"))
            for group in described["groups"]
        ]
        for split, described in facts["splits"].items()
    }
    tables = {name: warehouse.data_files(warehouse.path(name, SECOND)) for name in ("item_features", "item_stats")}
    return TrainingSpec(
        features=facts["schema"],
        **files,
        **tables,
        negatives=facts["negatives"],
        pack=facts.get("pack"),
        model=ModelConfig(tower="sequence"),
        training=TrainingConfig(batch_size=16, threads=1),
        seed=SEED,
        output=str(output),
    )


def read_by_training(spec: TrainingSpec, files: list[SampleFile]) -> list[list[float]]:
    """The positives of an epoch as training reads them, without their histories."""
    columns = sample_columns(spec.features, versions=True, packing=spec.packing)
    rows: list[list[float]] = []
    with SampleReader(files, columns, spec.training, SEED, 0, 1, spec.packing).epoch(0) as batches:
        for batch in batches:
            read = [batch[name].double() for name in columns if name in batch and name != "history"]
            rows += torch.cat([values.reshape(len(values), -1) for values in read], 1).tolist()
    return sorted(rows)


def test_training_reads_the_same_positives_from_packed_samples(
    nights: Warehouse, packed: Warehouse, tmp_path: Any
) -> None:
    plain, together = (training_on(warehouse, tmp_path) for warehouse in (nights, packed))
    assert together.pack == PACK
    for split in ("train", "valid"):
        expected = read_by_training(plain, getattr(plain, split))
        assert read_by_training(together, getattr(together, split)) == expected
    result = launch(together)
    assert result.rows == sum(file.rows for file in plain.train)
    assert result.epochs[0].valid_loss is not None


def test_rows_have_one_user_with_equal_features_and_t_places(packed: Warehouse) -> None:
    positives = {row["row_key"]: row for row in rows_of(packed, "positives", SECOND)}
    rows = rows_of(packed, "samples", SECOND)
    features = defaultdict(set)
    for row in rows:
        number = len(row["row_key"])
        assert 1 <= number <= PACK
        assert [len(row[name]) for name in ("item_index", "weight", "history_seen")] == [PACK] * 3
        assert [len(row[name]) for name in ("negatives", "negative_kinds", "negative_log_q")] == [7 * PACK] * 3
        assert row["event_time"] == sorted(row["event_time"])
        for key in row["row_key"]:
            assert positives[key]["split"] == row["split"]
            for name in ("user_id", "user_index", "user_age", "user_income"):
                assert positives[key][name] == row[name]
        features[row["user_id"]].add(row["user_age"])
    assert max(len(row["row_key"]) for row in rows) == PACK
    assert max(len(values) for values in features.values()) > 1  # carried rows see an earlier snapshot


def test_groups_hold_whole_users_and_the_manifest_counts_their_positives(packed: Warehouse) -> None:
    manifest = packed.require("samples", SECOND, "")
    splits, rows = manifest.facts["splits"], rows_of(packed, "samples", SECOND)
    assert manifest.facts["pack"] == PACK
    assert sum(split["rows"] for split in splits.values()) == manifest.rows == len(rows)
    assert positives_in(manifest) == sum(len(row["row_key"]) for row in rows) > manifest.rows
    assert len(splits["train"]["groups"]) % CONFIG.samples.trainers == 0
    groups = defaultdict(set)
    for row in rows:
        groups[row["split"], row["user_id"]].add(row["group"])
    assert all(len(of_user) == 1 for of_user in groups.values())
    for split in splits.values():
        assert split["positives"] == sum(group["positives"] for group in split["groups"])
        for group in split["groups"]:
            path = packed.path("samples", SECOND).removeprefix("file://")
            parquet = pq.ParquetFile(f"{path}/{group['path']}")
            assert parquet.metadata.num_rows == group["rows"]
            keys = parquet.read(["row_key"]).column("row_key").to_pylist()
            assert sum(len(row) for row in keys) == group["positives"]


@pytest.mark.slow
def test_packed_rows_do_not_depend_on_batches_partitions_or_joins(packed: Warehouse, tmp_path: Any) -> None:
    def files(warehouse: Warehouse) -> dict[str, list[dict[str, Any]]]:
        folder = warehouse.path("samples", SECOND).removeprefix("file://")
        groups = [
            group
            for split in warehouse.require("samples", SECOND, "").facts["splits"].values()
            for group in split["groups"]
        ]
        return {g["path"].rpartition("/")[0]: pq.read_table(f"{folder}/{g['path']}").to_pylist() for g in groups}

    small = {"spark.sql.execution.arrow.maxRecordsPerBatch": "2", "spark.sql.shuffle.partitions": "7"}
    with joins(packed.spark, SHUFFLED | small):
        other = built(packed, tmp_path, config_of(PACK))
    # Row by row: the order within each file is the same too.
    assert files(other) == files(packed)


def test_updates_are_not_packed(packed: Warehouse) -> None:
    update = Update(1, f"{SECOND}T00:00:00", f"{SECOND}T12:00:00", None, "", "")
    within_day = UpdateWarehouse(packed, SECOND, update)
    assert build._pack_of(Night.open(packed, Inputs(), SECOND, SEED), config_of(PACK)) == PACK
    assert build._pack_of(Night.open(within_day, Inputs(), SECOND, SEED), config_of(PACK)) is None


BROKEN = {
    "a positive sees too much": (
        "history_seen",
        "transform(history_seen, (seen, n) -> if(n = 0, seen + 10, seen))",
        "numbers of seen items that do not fit",
    ),
    "its own positive": (
        "negatives",
        "transform(negatives, (x, n) -> if(n = 2, item_index[0], x))",
        "are the row's own positive",
    ),
    "leakage": ("history_until", "event_time", "reaches their own event"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_packed_samples_that_fail_a_check_are_refused(packed: Warehouse, case: str) -> None:
    column, changed, message = BROKEN[case]
    samples = packed.read("samples", SECOND)
    first = samples.agg(F.min(F.col("row_key")[0])).first()
    assert first is not None
    value = F.when(F.col("row_key")[0] == first[0], F.expr(changed)).otherwise(F.col(column))
    staged = samples.withColumn(column, value.cast(samples.schema[column].dataType))
    with pytest.raises(InputError, match=f"table samples, column {column}: ") as refused:
        check_samples(staged, context_tables(packed, SETTINGS), SETTINGS, config_of(PACK))
    assert message in str(refused.value)

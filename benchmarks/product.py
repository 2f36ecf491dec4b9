"""A synthetic product in a folder: logs day by day, the config of a night, and users with a long history."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from benchmarks import logs
from benchmarks.logs import Day
from benchmarks.support import say, write_once
from pipelines.config import Downsample, Inputs, Negatives, Positives, Samples
from pipelines.feature_config import (
    CategoricalFeatureConfig,
    Features,
    History,
    MultiCategoricalFeatureConfig,
    NumericFeatureConfig,
)
from pipelines.hashing import mix, to_unit
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest, Recipe, digest
from pipelines.storage.warehouse import Warehouse

SEED = 17
CONFIG = SampleConfig(
    features=Features(
        user=[
            CategoricalFeatureConfig(kind="categorical", name="country"),
            CategoricalFeatureConfig(kind="categorical", name="device"),
        ],
        item=[
            CategoricalFeatureConfig(kind="categorical", name="category"),
            MultiCategoricalFeatureConfig(kind="multi_categorical", name="tags", max_values=4),
            NumericFeatureConfig(kind="numeric", name="price"),
        ],
        history=History(length=50),
    ),
    # A threshold that is computed for every row but drops none, so that ratios count all rows.
    positives=Positives(downsample=Downsample(threshold=5e-3), valid_hours=0.0),
    negatives=Negatives(uniform=3, popularity=3, coarse=2, fine=2),
    samples=Samples(),
)
RECIPE = digest({part.name: getattr(CONFIG, part.name).model_dump(mode="json") for part in fields(CONFIG)})
KNOWN = 100  # known items of a user with a long history


class Product:
    """Input tables and written tables in one folder. Existing input tables are not written again."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder = spark, folder
        self.warehouse = Warehouse(spark, str(folder))

    def write_logs(self, day: Day) -> None:
        """Write interactions, ranking logs and snapshots of a day."""
        self._write("interactions", day.ds, lambda: logs.interactions(self.spark, day))
        self._write("ranking_logs", day.ds, lambda: logs.ranking_logs(self.spark, day))
        self.write_snapshots(day.ds, day)

    def write_snapshots(self, ds: str, day: Day) -> None:
        """Write snapshots of the users and items of a day, as those of `ds`."""
        self._write("users", ds, lambda: logs.users(self.spark, day))
        self._write("items", ds, lambda: logs.items(self.spark, day))

    def _write(self, table: str, ds: str, rows: Callable[[], DataFrame]) -> None:
        write_once(rows, self.folder / table / f"ds={ds}")

    def night(self, ds: str, bootstrap_days: int = 0) -> Night:
        """Open a night of this product."""
        return Night.open(self.warehouse, Inputs(), ds, SEED, bootstrap_days, CONFIG.checks, CONFIG.features)

    def positives(self, ds: str, *, bootstrap_days: int = 0, force: bool = True) -> Manifest:
        """Run build_positives of a night."""
        night = self.night(ds, bootstrap_days)
        return build_positives(night, CONFIG, RECIPE, force=force)[0]

    def negatives(self, ds: str, *, bootstrap_days: int = 0, force: bool = True) -> Manifest:
        """Run build_negatives of a night."""
        night = self.night(ds, bootstrap_days)
        return build_negatives(night, CONFIG, RECIPE, force=force)[0]

    def write_old_users(self, day: Day) -> None:
        """Write the state of a first night whose users have a long history: 100 known items and a full history each.

        The night sees one click of nine users in ten; then with_past adds the history. Simulating months of logs would
        take hours.
        """
        manifest = self.warehouse.manifest("user_histories", day.ds)
        if manifest and "past" in manifest.facts:
            return
        say(f"{day.ds}: a first night with one click per user, then {KNOWN} known items for each user")
        self.write_snapshots(shift(day.ds, -1), day)
        self.write_snapshots(day.ds, day)
        self._write("interactions", day.ds, lambda: logs.first_clicks(self.spark, day))
        self.positives(day.ds, bootstrap_days=1)
        manifest = self.warehouse.require("user_histories", day.ds, "")
        # Written to another folder first, because Spark cannot read and overwrite a table at once.
        aside = self.folder / "_past"
        shutil.rmtree(aside, ignore_errors=True)
        with_past(self.warehouse, day).write.parquet(str(aside))
        recipe = Recipe(manifest.config_hash, manifest.inputs, manifest.lineage)
        aged = self.spark.read.parquet(str(aside))
        self.warehouse.write(aged, "user_histories", day.ds, recipe, facts=manifest.facts | {"past": KNOWN})
        shutil.rmtree(aside)

    def tables_before(self, ds: str) -> list[DataFrame]:
        """The tables that build_positives reads: interactions, snapshots, and the state of the night before."""
        before = shift(ds, -1)
        days = {"interactions": ds, "items": ds, "users": before}
        days |= dict.fromkeys(("vocabularies", "user_histories", "item_stats"), before)
        return [self.table(table, day) for table, day in days.items()]

    def table(self, table: str, ds: str) -> DataFrame:
        """Read a partition as plain Parquet, without its manifest."""
        return self.spark.read.parquet(str(self.folder / table / f"ds={ds}"))


def with_past(warehouse: Warehouse, day: Day) -> DataFrame:
    """user_histories of a day, with 100 more known items per user, without repeats, popular ones more often.

    Items are drawn by a hash of the user, one from each of 100 ranges of the catalogue in the order of popularity. They
    come before the items of the night.
    """
    state = warehouse.read("user_histories", day.ds)
    stats = warehouse.read("item_stats", day.ds).select("item_id", "item_index").toPandas()
    index = np.zeros(day.items, np.int32)
    index[stats["item_id"].astype(np.int64)] = stats["item_index"]
    cuts = np.arange(KNOWN + 1)
    start = cuts + np.floor((day.items - KNOWN) * (cuts / KNOWN) ** 4).astype(np.int64)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            users = batch.column("user_index").to_numpy().astype(np.int64).view(np.uint64)
            place = np.tile(np.arange(KNOWN), len(users))
            bits = mix(np.repeat(users, KNOWN), place)
            cut = (place * 37 + np.repeat(users % np.uint64(KNOWN), KNOWN).astype(np.int64)) % KNOWN
            drawn = index[start[cut] + np.floor(to_unit(bits) * (start[cut + 1] - start[cut])).astype(np.int64)]
            offsets = pa.array(np.arange(len(users) + 1) * KNOWN, type=pa.int32())
            past = pa.ListArray.from_arrays(offsets, pa.array(drawn))
            yield pa.RecordBatch.from_arrays([*batch.columns, past], names=[*batch.schema.names, "past"])

    schema = T.StructType([*state.schema.fields, T.StructField("past", T.ArrayType(T.IntegerType()))])
    known_items, length = F.col("known_items"), CONFIG.features.history.length if CONFIG.features.history else 0
    hours_ago = F.sequence(F.lit(length), F.lit(1), F.lit(-1))
    times = F.transform(
        hours_ago, lambda hours: F.timestamp_seconds(F.unix_timestamp(F.lit(f"{day.ds} 00:00:00")) - hours * 3600)
    )
    aged = state.mapInArrow(run, schema).withColumn("past", F.array_except("past", known_items))
    return (
        aged.withColumn(
            "history_items", F.slice(F.concat(F.slice("past", -length, length), "history_items"), -length, length)
        )
        .withColumn("history_times", F.slice(F.concat(times, "history_times"), -length, length))
        .withColumn("known_items", F.concat("past", known_items))
        .drop("past")
    )

"""Compares embedding all items on Spark with a plain read and write of as many floats."""

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any, cast

import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks import night
from benchmarks.support import copy, seconds_of
from jobs.common.runner import Context
from jobs.release.item_embeddings import write_item_embeddings
from model.io.urls import checksum
from model.network.two_tower import TwoTower
from model.training.checkpoint import PARAMETERS, STATE, save_checkpoint
from model.training.spec import TrainingResult
from pipelines.storage.manifest import Recipe
from pipelines.storage.warehouse import Warehouse

DS = "2024-03-01"


def measure_embedding(spark: SparkSession, folder: Path, items: int, runs: int) -> dict[str, float]:
    """Median seconds of the step and of the copy; they run in turns. The first run of each, which also starts Spark's Python
    workers, is reported separately."""
    shutil.rmtree(folder, ignore_errors=True)
    warehouse = _night(spark, folder, items)
    context = Context(cast(Any, None), spark, warehouse, argparse.Namespace(), DS)
    seconds: dict[str, list[float]] = {"step": [], "copy": []}

    def step() -> None:
        warehouse.remove("item_embeddings", DS)
        write_item_embeddings(context)

    for _ in range(1 + runs):
        seconds["copy"].append(seconds_of("plain copy", lambda: copy([_random_vectors(warehouse)], folder / "_copy")))
        seconds["step"].append(seconds_of("write_item_embeddings", step))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return medians | {"first_step": seconds["step"][0], "first_copy": seconds["copy"][0]}


def _random_vectors(warehouse: Warehouse) -> DataFrame:
    """Items with random vectors: like embeddings, they do not compress."""
    vector = F.array(*(F.rand(place).cast("float") for place in range(night.DIM)))
    return warehouse.read("item_features", DS).select("item_id", "item_index", vector.alias("embedding"))


def _night(spark: SparkSession, folder: Path, items: int) -> Warehouse:
    """A warehouse with the inputs of the step: item features, and a model with random parameters."""
    warehouse = Warehouse(spark, str(folder))
    rows = spark.range(items).select(
        F.concat(F.lit("i"), "id").alias("item_id"),
        (F.col("id") + night.FIRST).cast("int").alias("item_index"),
        (F.pmod(F.xxhash64("id"), F.lit(night.CATEGORIES)) + night.FIRST).cast("int").alias("item_category"),
    )
    features = warehouse.write(rows, "item_features", DS, Recipe("", {}))
    schema = night.feature_schema(items)
    torch.manual_seed(night.SEED)
    staging = warehouse.new_staging("models", DS)
    empty: dict[str, Any] = {"steps": 0, "rows": 0, "metrics": [], "epochs": [], "masked": {}}
    result = TrainingResult(parameters=0, rows_without_negatives=0, temperature=1.0, seconds=0.0, **empty)
    save_checkpoint(staging, TwoTower(schema, night.MODEL), {}, result)
    recipe = Recipe("", {"item_features": features.fingerprint})
    content = [checksum(f"{staging}/{name}") for name in (PARAMETERS, STATE)]
    facts = {"content": content, "schema": schema.model_dump(mode="json")}
    warehouse.finish_folder(staging, "models", DS, recipe, facts)
    return warehouse

"""Compares our sampler with the usual one in Spark SQL: ten uniform negatives per row, none of them an item of the user.

The usual sampler explodes each row into one row per slot with a random position. It joins the catalogue on the position,
anti-joins the items of the user, drops repeats and collects the rest. It draws two more negatives than requested, because
some draws are dropped. Only uniform draws are compared: they are its easiest case, since a position is a number.
"""

from functools import partial
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from benchmarks.logs import RANKED, item_at, numbers
from benchmarks.support import median_of, say
from pipelines.config import Negatives
from pipelines.contract.negative_kinds import POPULARITY, UNIFORM
from pipelines.histories.user_stream import EXCLUDED, context
from pipelines.samples.draws import AliasTable
from pipelines.samples.make import make_samples
from pipelines.samples.user_context import SamplingSettings

ROWS, ITEMS, WANTED = 1_000_000, 100_000, 10
SPARE = 2
ROWS_PER_USER = 4
SEED = 17
RUNS = {"ours": 3, "naive": 2}


def measure_draw(spark: SparkSession, scale: float, runs: int | None = None) -> dict[str, Any]:
    """Seconds of both samplers, and the negatives that each drew. Inputs are in memory; the output is not written."""
    rows_wanted, items = max(1000, int(ROWS * scale)), max(1000, int(ITEMS * scale))
    rows = _rows(spark, rows_wanted, items).persist()
    known_items = _known_items(spark, rows_wanted, items)
    own_items = rows.groupBy("user_key").agg(F.collect_list(F.col("item_index").cast("long")).alias("items"))
    excluded = (
        context(known_items, EXCLUDED, F.col("known_items"))
        .unionByName(context(own_items, EXCLUDED, F.col("items")))
        .persist()
    )
    pairs = excluded.select("user_key", F.explode(F.col("values").cast("array<int>")).alias("item_index")).persist()
    catalogue = numbers(spark, items).select(F.col("id").alias("position"), _index(F.col("id")).alias("item_index"))
    catalogue = catalogue.persist()
    frames = (rows, excluded, pairs, catalogue)
    say(f"draw: {rows.count():,} rows, {pairs.count():,} items of users, {catalogue.count():,} items in the catalogue")
    excluded.count()

    figures: dict[str, Any] = {"rows": rows_wanted}
    draws = {"ours": _ours(rows, excluded, items), "naive": _naive(rows, pairs, catalogue, items)}
    for name, drawn in draws.items():
        counts: list[int] = []
        measured = partial(_run, drawn, counts)
        seconds = median_of(f"draw, {name}", measured, runs or RUNS[name])
        figures[name] = {"seconds": seconds, "negatives": counts[-1]}
    for frame in frames:
        frame.unpersist()
    say(f"draw: naive takes {figures['naive']['seconds'] / figures['ours']['seconds']:.2f} times as long")
    return figures


def _rows(spark: SparkSession, count: int, items: int) -> DataFrame:
    user = F.expr(f"id div {ROWS_PER_USER}")
    return numbers(spark, count).select(
        F.xxhash64(F.lit("user"), user).alias("user_key"),
        F.lit(None).cast("long").alias("request_key"),
        F.lit(False).alias("carried"),
        F.unix_micros(F.lit("2024-03-02").cast("timestamp")).alias("at"),
        F.xxhash64(F.lit("row"), "id").alias("key"),
        F.lit(0).alias("cell"),
        _index(item_at(F.col("id"), F.lit(0), items)).alias("item_index"),
    )


def _known_items(spark: SparkSession, rows: int, items: int) -> DataFrame:
    """100 items per user, popular ones more often."""
    places = F.sequence(F.lit(0), F.lit(RANKED - 1))
    indices = F.transform(places, lambda place: _index(item_at(F.col("id"), place, items)))
    users = numbers(spark, -(-rows // ROWS_PER_USER))
    return users.select(F.xxhash64(F.lit("user"), "id").alias("user_key"), indices.alias("known_items"))


def _index(item: F.Column) -> F.Column:
    return (item + 2).cast("int")  # 0 is padding, 1 is default


def _ours(rows: DataFrame, excluded: DataFrame, items: int) -> DataFrame:
    config = Negatives(uniform=WANTED, popularity=0, coarse=0, fine=0)
    table = AliasTable.build(np.arange(2, items + 2), np.ones(items))
    settings = SamplingSettings(config, SEED, items + 2, {UNIFORM: table, POPULARITY: table})
    return make_samples(rows, [excluded], ["key"], settings)


def _naive(rows: DataFrame, pairs: DataFrame, catalogue: DataFrame, items: int) -> DataFrame:
    places = F.explode(F.sequence(F.lit(1), F.lit(WANTED + SPARE)))
    drawn = (
        rows.select(F.col("key").alias("row_key"), "user_key", F.col("item_index").alias("positive"), places)
        .withColumn("position", F.floor(F.rand(SEED) * items))
        .join(catalogue, on="position", how="inner")
        .where("item_index != positive")
        .join(pairs, on=["user_key", "item_index"], how="left_anti")
        .dropDuplicates(["row_key", "item_index"])
    )
    return drawn.groupBy("row_key").agg(F.slice(F.collect_list("item_index"), 1, WANTED).alias("negatives"))


def _run(drawn: DataFrame, counts: list[int]) -> None:
    """Run the draw without writing its rows. Appends the number of negatives to `counts`."""
    observation = Observation()
    negatives = F.size(F.filter("negatives", lambda item: item > 0))
    drawn.observe(observation, F.sum(negatives).alias("negatives")).write.format("noop").mode("overwrite").save()
    counts.append(int(observation.get["negatives"]))

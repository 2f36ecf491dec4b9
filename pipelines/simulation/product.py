"""The simulated product as tables: blocks of `simulation_funnel` and `simulation_truth`, made on the workers.

Blocks are fixed and carry their own random numbers, so the rows are the same however Spark cuts them into partitions.
A request travels as one row with arrays: hundreds of ranking-log rows are unfolded from it by Spark, not by Python.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.config import Simulation
from pipelines.contract.errors import UsageError
from pipelines.simulation.funnel import Requests, simulate_block
from pipelines.simulation.truth import (
    AGES,
    REGIONS,
    daily_tastes,
    first_items,
    item_block,
    item_blocks,
    user_block,
    user_blocks,
)
from pipelines.storage.dates import shift

# A few tasks a core even out blocks of unequal length; more would only cost start-up time.
TASKS_PER_CORE = 4
LIKE_AFTER = 5  # seconds from a click to its like

REQUESTS_SCHEMA = (
    "day int, number int, user_id bigint, seconds bigint, items array<int>, positions array<int>, ranked int, "
    "events array<struct<item_id: int, liked: boolean, after: int>>"
)
ITEMS_SCHEMA = (
    "item_id bigint, category string, tags array<string>, tag_weights array<float>, price double, seconds bigint, "
    "taste array<float>, attractiveness float"
)
USERS_SCHEMA = "user_id bigint, age string, region string, interests array<string>, activity double"


def simulated_requests(spark: SparkSession, sim: Simulation, seed: int) -> DataFrame:
    """One row a request: ds, request_id, user_id, event_time, items (best first), positions, ranked, events.

    Users are simulated over all days in one go, in blocks; a task holds one block's round of requests at a time.
    UsageError where the items of the first day do not fill a recall list.
    """
    if first_items(sim) <= sim.recalled:
        raise UsageError(
            f"simulation: {first_items(sim)} items are there on the first day, {sim.recalled} are recalled a request; "
            "raise items, or lower recalled or new_item_share"
        )

    def make(block: int) -> Iterator[pa.RecordBatch]:
        return (_request_batch(found) for found in simulate_block(sim, seed, block))

    rows = _from_blocks(spark, user_blocks(sim), make, REQUESTS_SCHEMA)
    ds = _ds_of(sim, F.col("day"))
    return rows.select(
        ds.alias("ds"),
        F.concat_ws("-", ds, F.col("user_id"), F.col("number")).alias("request_id"),
        "user_id",
        F.timestamp_seconds("seconds").alias("event_time"),
        "items",
        "positions",
        "ranked",
        "events",
    )


def ranking_logs(requests: DataFrame, sim: Simulation) -> DataFrame:
    """Unfold requests: request_id, user_id, item_id, event_time, stage, position, ds; one row a recalled item."""
    unfolded = requests.select(
        "ds",
        "request_id",
        "user_id",
        "event_time",
        "ranked",
        F.posexplode(F.arrays_zip("items", "positions")).alias("place", "item"),
    )
    return unfolded.select(
        "request_id",
        "user_id",
        F.col("item.items").cast("bigint").alias("item_id"),
        "event_time",
        _stage(sim).alias("stage"),
        F.col("item.positions").alias("position"),
        "ds",
    )


def interactions(requests: DataFrame) -> DataFrame:
    """Clicks, and the likes that follow some: user_id, item_id, event_time, action, request_id, ds."""
    event = F.explode("events").alias("event")
    seconds = F.col("event.after") + F.when(F.col("event.liked"), LIKE_AFTER).otherwise(0)
    return requests.select("ds", "request_id", "user_id", "event_time", event).select(
        "user_id",
        F.col("event.item_id").cast("bigint").alias("item_id"),
        F.timestamp_seconds(F.col("event_time").cast("bigint") + seconds).alias("event_time"),
        F.when(F.col("event.liked"), "like").otherwise("click").alias("action"),
        "request_id",
        "ds",
    )


def users_snapshot(spark: SparkSession, sim: Simulation, seed: int) -> DataFrame:
    """The user table of the day before the first: user_id, age, region, interests, activity, noise, ds."""

    def make(block: int) -> Iterator[pa.RecordBatch]:
        users = user_block(sim, seed, block)
        interests = _names("category", users.interests)
        columns = [users.user_id, np.array(AGES)[users.age], np.array(REGIONS)[users.region], interests, users.activity]
        names = ["user_id", "age", "region", "interests", "activity"]
        yield _batch(columns + _noise_columns(users.noise), names + noise_names(sim))

    rows = _from_blocks(spark, user_blocks(sim), make, USERS_SCHEMA + _noise_schema(sim))
    return rows.withColumn("ds", F.lit(shift(sim.start, -1)))


def items_world(spark: SparkSession, sim: Simulation, seed: int) -> DataFrame:
    """Every item that there will ever be, with its features and its truth: ITEMS_SCHEMA."""

    def make(block: int) -> Iterator[pa.RecordBatch]:
        items = item_block(sim, seed, block)
        columns = [
            items.item_id,
            _names("category", items.category[:, None], single=True),
            _names("tag", items.tags),
            pa.array([row[row > 0] for row in items.tag_weights], pa.list_(pa.float32())),
            items.price,
            items.publish_time.astype(np.int64),
            _lists(items.taste),
            items.attractiveness,
        ]
        names = ["item_id", "category", "tags", "tag_weights", "price", "seconds", "taste", "attractiveness"]
        yield _batch(columns + _noise_columns(items.noise), names + noise_names(sim))

    return _from_blocks(spark, item_blocks(sim), make, ITEMS_SCHEMA + _noise_schema(sim))


def items_snapshots(world: DataFrame, sim: Simulation) -> DataFrame:
    """A snapshot a day, of the items published by its end: item_id, features, publish_time, ds."""
    published = F.timestamp_seconds("seconds")
    days = F.explode(F.sequence(F.lit(0), F.lit(sim.days - 1)))
    return (
        world.withColumn("day", days)
        .withColumn("ds", _ds_of(sim, F.col("day")))
        .where(F.to_date(published) <= F.to_date("ds"))
        .select(
            "item_id",
            "category",
            "tags",
            "tag_weights",
            "price",
            *noise_names(sim),
            published.alias("publish_time"),
            "ds",
        )
    )


def noise_names(sim: Simulation) -> list[str]:
    """Columns of users and items that tell nothing."""
    return [f"noise_{number}" for number in range(1, sim.noise_features + 1)]


def truth_of_items(world: DataFrame, sim: Simulation) -> DataFrame:
    """item_id, taste, attractiveness, ds (the first day: the truth of items never changes)."""
    return world.select("item_id", "taste", "attractiveness", F.lit(sim.start).alias("ds"))


def truth_of_users(spark: SparkSession, sim: Simulation, seed: int) -> DataFrame:
    """user_id, taste, ds: the taste that decides the clicks of that day."""

    def make(block: int) -> Iterator[pa.RecordBatch]:
        user_id = user_block(sim, seed, block).user_id
        for day, taste in enumerate(daily_tastes(sim, seed, block)):
            yield _batch([np.full(len(user_id), day, np.int32), user_id, _lists(taste)], ["day", "user_id", "taste"])

    rows = _from_blocks(spark, user_blocks(sim), make, "day int, user_id bigint, taste array<float>")
    return rows.select("user_id", "taste", _ds_of(sim, F.col("day")).alias("ds"))


def _stage(sim: Simulation) -> Column:
    """The last stage reached, from the place in the list: a ranked item stays where it is, filtered ones lie behind."""
    place = F.col("place")
    return (
        F.when(place >= F.col("ranked"), "recall")
        .when(place < sim.exposed, "exposed")
        .when(place < sim.fine_kept, "rerank")
        .when(place < sim.coarse_kept, "fine")
        .otherwise("coarse")
    )


def _ds_of(sim: Simulation, day: Column) -> Column:
    return F.date_add(F.lit(sim.start).cast("date"), day).cast("string")


def _from_blocks(
    spark: SparkSession, blocks: int, make: Callable[[int], Iterable[pa.RecordBatch]], schema: str
) -> DataFrame:
    """The record batches that `make` yields for block 0, 1, ..., made where Spark puts the blocks."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for block in batch.column(0).to_pylist():
                yield from make(block)

    return spark.range(0, blocks, 1, _tasks(spark, blocks)).mapInArrow(run, schema)


def _tasks(spark: SparkSession, blocks: int) -> int:
    return min(blocks, TASKS_PER_CORE * spark.sparkContext.defaultParallelism)


def _request_batch(found: Requests) -> pa.RecordBatch:
    size = len(found.user_id)
    shown = found.items[:, : found.clicked.shape[1]] + 1
    # [R, exposed, 2]: a click, and beside it the like that may follow.
    happened = np.stack([found.clicked, found.liked], axis=2)
    row, place, liked = np.nonzero(happened)
    event = pa.StructArray.from_arrays(
        [
            pa.array(shown[row, place].astype(np.int32)),
            pa.array(liked.astype(bool)),
            pa.array(found.delay[row, place].astype(np.int32)),
        ],
        names=["item_id", "liked", "after"],
    )
    offsets = np.concatenate([[0], happened.sum(axis=(1, 2)).cumsum()]).astype(np.int32)
    columns = [
        np.full(size, found.day, np.int32),
        np.full(size, found.number, np.int32),
        found.user_id,
        found.event_time.astype(np.int64),
        _lists((found.items + 1).astype(np.int32)),
        _lists(found.position.astype(np.int32)),
        found.ranked.astype(np.int32),
        pa.ListArray.from_arrays(pa.array(offsets), event),
    ]
    names = ["day", "number", "user_id", "seconds", "items", "positions", "ranked", "events"]
    return _batch(columns, names)


def _batch(columns: list[Any], names: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([c if isinstance(c, pa.Array) else pa.array(c) for c in columns], names=names)


def _lists(matrix: np.ndarray) -> pa.ListArray:
    """Rows of a matrix as a list column."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


def _noise_schema(sim: Simulation) -> str:
    return "".join(f", {name} string" for name in noise_names(sim))


def _noise_columns(noise: np.ndarray) -> list[pa.Array]:
    return [_names("noise", column[:, None], single=True) for column in noise.T]


def _names(prefix: str, codes: np.ndarray, single: bool = False) -> pa.Array:
    """`prefix_07` for each code >= 0 of [N, n], as lists; `single`: the first of each row, as strings."""
    if single:
        return pa.array([f"{prefix}_{code:02d}" for code in codes[:, 0]])
    rows = [[f"{prefix}_{code:02d}" for code in dict.fromkeys(row) if code >= 0] for row in codes.tolist()]
    return pa.array(rows, pa.list_(pa.string()))

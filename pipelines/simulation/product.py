"""The simulated product as Spark tables. Workers compute blocks of users and items with `funnel` and `truth`.

Each block has its own random generator, so the rows do not depend on Spark's partitions. Python returns a request as one
row with arrays; Spark explodes it into hundreds of ranking-log rows.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.config import Simulation
from pipelines.contract.errors import UsageError
from pipelines.simulation.funnel import RequestBatch, simulate_block
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

# A few tasks per core balance blocks of unequal length. More tasks only add start-up time.
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
    """One row per request: ds, request_id, user_id, event_time, items (best first), positions, ranked, events.

    A task simulates a block of users over all days, and holds one RequestBatch at a time. Raises UsageError if the items of
    the first day do not fill a recall list.
    """
    if first_items(sim) <= sim.recalled:
        raise UsageError(
            f"simulation: {first_items(sim)} items are available on the first day, but {sim.recalled} are recalled per "
            "request; raise items, or lower recalled or new_item_share"
        )

    def make(block: int) -> Iterator[pa.RecordBatch]:
        return (_request_rows(requests) for requests in simulate_block(sim, seed, block))

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
    """One row per recalled item of a request: request_id, user_id, item_id, event_time, stage, position, ds."""
    exploded = requests.select(
        "ds",
        "request_id",
        "user_id",
        "event_time",
        "ranked",
        F.posexplode(F.arrays_zip("items", "positions")).alias("place", "item"),
    )
    return exploded.select(
        "request_id",
        "user_id",
        F.col("item.items").cast("bigint").alias("item_id"),
        "event_time",
        _stage(sim).alias("stage"),
        F.col("item.positions").alias("position"),
        "ds",
    )


def interactions(requests: DataFrame) -> DataFrame:
    """Clicks, and the likes that follow some clicks: user_id, item_id, event_time, action, request_id, ds."""
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
    """The snapshot of users on the day before the first: user_id, age, region, interests, activity, noise, ds."""

    def make(block: int) -> Iterator[pa.RecordBatch]:
        users = user_block(sim, seed, block)
        interests = _names("category", users.interests)
        columns = [users.user_id, np.array(AGES)[users.age], np.array(REGIONS)[users.region], interests, users.activity]
        names = ["user_id", "age", "region", "interests", "activity"]
        yield _batch(columns + _noise_columns(users.noise), names + noise_names(sim))

    rows = _from_blocks(spark, user_blocks(sim), make, USERS_SCHEMA + _noise_schema(sim))
    return rows.withColumn("ds", F.lit(shift(sim.start, -1)))


def all_items(spark: SparkSession, sim: Simulation, seed: int) -> DataFrame:
    """All items of all days, with features and ground truth (columns: ITEMS_SCHEMA and noise)."""

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


def items_snapshots(items: DataFrame, sim: Simulation) -> DataFrame:
    """One snapshot per day, of the items published by the end of the day: item_id, features, publish_time, ds."""
    published = F.timestamp_seconds("seconds")
    days = F.explode(F.sequence(F.lit(0), F.lit(sim.days - 1)))
    return (
        items.withColumn("day", days)
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
    """Columns of users and items that carry no information."""
    return [f"noise_{number}" for number in range(1, sim.noise_features + 1)]


def truth_of_items(items: DataFrame, sim: Simulation) -> DataFrame:
    """Columns: item_id, taste, attractiveness, ds. One partition, the first day: the truth of items does not change."""
    return items.select("item_id", "taste", "attractiveness", F.lit(sim.start).alias("ds"))


def truth_of_users(spark: SparkSession, sim: Simulation, seed: int) -> DataFrame:
    """Columns: user_id, taste, ds. The taste determines the clicks of that day."""

    def make(block: int) -> Iterator[pa.RecordBatch]:
        user_id = user_block(sim, seed, block).user_id
        for day, taste in enumerate(daily_tastes(sim, seed, block)):
            yield _batch([np.full(len(user_id), day, np.int32), user_id, _lists(taste)], ["day", "user_id", "taste"])

    rows = _from_blocks(spark, user_blocks(sim), make, "day int, user_id bigint, taste array<float>")
    return rows.select("user_id", "taste", _ds_of(sim, F.col("day")).alias("ds"))


def _stage(sim: Simulation) -> Column:
    """The last stage that an item reached, from its place in the request: ranked items first, filtered items last."""
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
    """The rows of the record batches that `make` yields for each block number, computed on the workers."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for block in batch.column(0).to_pylist():
                yield from make(block)

    return spark.range(0, blocks, 1, _tasks(spark, blocks)).mapInArrow(run, schema)


def _tasks(spark: SparkSession, blocks: int) -> int:
    return min(blocks, TASKS_PER_CORE * spark.sparkContext.defaultParallelism)


def _request_rows(requests: RequestBatch) -> pa.RecordBatch:
    size = len(requests.user_id)
    shown = requests.items[:, : requests.clicked.shape[1]] + 1
    # [R, exposed, 2]: whether there is a click, and whether a like follows it.
    events = np.stack([requests.clicked, requests.liked], axis=2)
    row, place, liked = np.nonzero(events)
    event = pa.StructArray.from_arrays(
        [
            pa.array(shown[row, place].astype(np.int32)),
            pa.array(liked.astype(bool)),
            pa.array(requests.delay[row, place].astype(np.int32)),
        ],
        names=["item_id", "liked", "after"],
    )
    offsets = np.concatenate([[0], events.sum(axis=(1, 2)).cumsum()]).astype(np.int32)
    columns = [
        np.full(size, requests.day, np.int32),
        np.full(size, requests.number, np.int32),
        requests.user_id,
        requests.event_time.astype(np.int64),
        _lists((requests.items + 1).astype(np.int32)),
        _lists(requests.position.astype(np.int32)),
        requests.ranked.astype(np.int32),
        pa.ListArray.from_arrays(pa.array(offsets), event),
    ]
    names = ["day", "number", "user_id", "seconds", "items", "positions", "ranked", "events"]
    return _batch(columns, names)


def _batch(columns: list[Any], names: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([c if isinstance(c, pa.Array) else pa.array(c) for c in columns], names=names)


def _lists(matrix: np.ndarray) -> pa.ListArray:
    """The rows of a matrix [n, k] as a list column."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


def _noise_schema(sim: Simulation) -> str:
    return "".join(f", {name} string" for name in noise_names(sim))


def _noise_columns(noise: np.ndarray) -> list[pa.Array]:
    return [_names("noise", column[:, None], single=True) for column in noise.T]


def _names(prefix: str, codes: np.ndarray, single: bool = False) -> pa.Array:
    """Lists of names like `prefix_07`, without repeats, for codes >= 0 in [N, n]. `single`: a string for the first code."""
    if single:
        return pa.array([f"{prefix}_{code:02d}" for code in codes[:, 0]])
    rows = [[f"{prefix}_{code:02d}" for code in dict.fromkeys(row) if code >= 0] for row in codes.tolist()]
    return pa.array(rows, pa.list_(pa.string()))

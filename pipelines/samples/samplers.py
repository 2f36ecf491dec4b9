"""Two samplers over the catalogue: alias tables that are broadcast to every task, or, for catalogues too large to broadcast,
a shuffle that joins draws and items. Both follow the same distribution.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.contract.negative_kinds import POPULARITY, UNIFORM
from pipelines.hashing import hashed
from pipelines.joins import broadcast_few
from pipelines.samples.draws import AliasTable

# Weights are integers, and a 64-bit integer holds their sum. The smallest q of an item is 2**-50.
UNIT = 2**50
ITEMS_PER_BUCKET = 20_000
BLOCK = 65_536  # item indices per block of the cumulative sum
SPARE = 8  # written draws per row beyond the number of slots
ITEM, DRAW = 0, 1  # roles of rows in the sorted stream
COLUMNS = {UNIFORM: "q_uniform", POPULARITY: "q_popularity"}


def alias_tables(stats: DataFrame) -> dict[int, AliasTable]:
    """Alias tables over live items, by kind. Collects three columns of `stats` (item_stats) to the driver.

    If all popularities are 0, the popularity table is the uniform one. Raises InputError if no item is live.
    """
    live = stats.where("live").select("item_index", *COLUMNS.values()).orderBy("item_index").toPandas()
    if live.empty:
        raise _no_live_item()
    index = live["item_index"].to_numpy(np.int64)
    tables = {UNIFORM: AliasTable.build(index, live["q_uniform"].to_numpy())}
    popular = live["q_popularity"].to_numpy()
    tables[POPULARITY] = AliasTable.build(index, popular) if popular.sum() > 0 else tables[UNIFORM]
    return tables


def with_written_draws(rows: DataFrame, stats: DataFrame, slots: dict[int, int], seed: int) -> DataFrame:
    """Add columns drawn_KIND (array<int>) and drawn_log_q_KIND (array<float>) to rows (key, cell, …).

    `slots`: slots to fill per kind; kinds with 0 get no columns. Each array of a row with a cell has slots + SPARE draws,
    because forbidden and repeated draws are skipped.
    """
    for kind, count in slots.items():
        if count == 0:
            continue
        keys = rows.where("cell is not null").select(F.col("key").alias("row_key"))
        draws = _draws(keys, _intervals(stats, COLUMNS[kind]), count + SPARE, kind, seed)
        gathered = draws.groupBy("row_key").agg(
            F.array_sort(F.collect_list(F.struct("number", "item_index", "log_q"))).alias("drawn")
        )
        gathered = gathered.select(
            F.col("row_key").alias("key"),
            F.col("drawn.item_index").alias(f"drawn_{kind}"),
            F.col("drawn.log_q").alias(f"drawn_log_q_{kind}"),
        )
        rows = rows.join(gathered, on="key", how="left")
    return rows


def _intervals(stats: DataFrame, q: str) -> tuple[DataFrame, int, int]:
    """The intervals [low, high) of live items in [0, total): (item_index, log_q, low, high), the total, the number of items.

    This is the inverse distribution function in integers. The cumulative sum has two phases: weights per block of item
    indices, then weights within each block. So no task holds the whole catalogue.
    """
    live = stats.where("live").select("item_index", F.col(q).alias("q"))
    if live.agg(F.sum("q")).first()[0] in (None, 0.0):
        q, live = "q_uniform", stats.where("live").select("item_index", F.col("q_uniform").alias("q"))
    weighed = (
        live.where("q > 0")
        .withColumn("weight", F.greatest(F.lit(1), F.round(F.col("q") * UNIT).cast("long")))
        .withColumn("block", F.floor(F.col("item_index") / BLOCK))
    )
    blocks = weighed.groupBy("block").agg(F.sum("weight").alias("weight"), F.count(F.lit(1)).alias("items")).collect()
    if not blocks:
        raise _no_live_item()
    total, starts = 0, []
    for row in sorted(blocks, key=lambda row: row["block"]):
        starts.append((row["block"], total))
        total += row["weight"]
    start = stats.sparkSession.createDataFrame(starts, "block long, start long")
    within = Window.partitionBy("block").orderBy("item_index").rowsBetween(Window.unboundedPreceding, 0)
    placed = (
        weighed.join(broadcast_few(start), on="block", how="inner")
        .withColumn("high", F.col("start") + F.sum("weight").over(within))
        .select(
            "item_index",
            F.log("q").cast("float").alias("log_q"),
            (F.col("high") - F.col("weight")).alias("low"),
            "high",
        )
    )
    return placed, total, sum(row["items"] for row in blocks)


def _draws(keys: DataFrame, catalogue: tuple[DataFrame, int, int], numbers: int, kind: int, seed: int) -> DataFrame:
    """row_key, number, item_index, log_q: `numbers` draws for each row key."""
    items, total, size = catalogue
    width = -(-total // max(1, size // ITEMS_PER_BUCKET))  # of a bucket, in units of weight
    low = F.col("low")
    spread = items.select(
        "item_index",
        "log_q",
        low.alias("spot"),
        F.lit(ITEM).alias("role"),
        # The interval of a popular item may span several buckets. The item then has a row in each of them.
        F.explode(F.sequence(F.floor(low / width), F.floor((F.col("high") - 1) / width))).alias("bucket"),
    )
    draws = keys.withColumn("number", F.explode(F.sequence(F.lit(0), F.lit(numbers - 1))))
    spot = F.pmod(hashed(f"draw {kind}", seed, F.col("row_key"), F.col("number")), F.lit(total))
    draws = draws.withColumn("spot", spot).withColumn("role", F.lit(DRAW))
    draws = draws.withColumn("bucket", F.floor(F.col("spot") / width))
    ordered = (
        spread.unionByName(draws, allowMissingColumns=True)
        .repartition("bucket")
        .sortWithinPartitions("bucket", "role", "spot")
    )
    return ordered.mapInArrow(_invert, "row_key long, number int, item_index int, log_q float")


def _invert(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Look up the item of each draw. In each bucket items come before draws; a draw takes the last item with low <= spot."""
    open_items: pa.Table | None = None  # items of the bucket that the last batch ended in
    for batch in batches:
        table = pa.Table.from_batches([batch])
        if open_items is not None:
            table = pa.concat_tables([open_items, table])
        table = table.combine_chunks()
        role = table.column("role").to_numpy()
        bucket = table.column("bucket").to_numpy()
        items, draws = table.filter(pa.array(role == ITEM)), table.filter(pa.array(role == DRAW))
        low = items.column("spot").to_numpy()
        place = np.searchsorted(low, draws.column("spot").to_numpy(), side="right") - 1
        chosen = items.select(["item_index", "log_q"]).take(pa.array(place))
        out = draws.select(["row_key", "number"])
        for name in chosen.column_names:
            out = out.append_column(name, chosen.column(name))
        yield from out.to_batches()
        if len(bucket):
            open_items = items.filter(pa.array(items.column("bucket").to_numpy() == bucket[-1]))


def _no_live_item() -> InputError:
    return InputError("table items: no item is live (published, in the newest snapshot), so no negative can be drawn")

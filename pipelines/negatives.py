"""Negatives of every kind for every positive, with the exclusions that make them negatives.

The easy ones come from the corpus, the hard ones from the funnel: what was recalled for this user and dropped before fine
ranking (coarse), or reached fine ranking and came out last (fine). What the user has, did or saw is never a
negative: Facebook measured -55% recall with exposed-but-not-clicked items as negatives (Huang et al., KDD 2020).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipelines.config import Negatives
from pipelines.draws import COARSE, FINE, NONE, POPULARITY, UNIFORM, AliasTable, Ints, draw_easy, pick_hard
from pipelines.hashing import hashed, mix

COARSE_STAGES = ("recall", "coarse")  # never reached fine ranking
FINE_STAGES = ("fine", "rerank")  # reached it, were not shown
CANDIDATES = 4  # hard candidates kept a list, in multiples of the quota: some will be excluded
LISTS = ("own_fine", "user_fine", "own_coarse", "user_coarse")
EXCLUSION, ROW = 0, 1  # roles in the sorted stream


def exclusions(histories: DataFrame, interactions: DataFrame, exposed: DataFrame | None, items: DataFrame) -> DataFrame:
    """What is never a negative of a user: known positives, everything interacted with, everything shown.

    `histories`: user_id, known_items. `interactions`, `exposed`: user_id, item_id. `items`: item_id, item_index.
    Returns user_id, excluded (array<int>), for users that have any.
    """
    seen = interactions.select("user_id", "item_id")
    if exposed is not None:
        seen = seen.unionByName(exposed.select("user_id", "item_id"))
    indexed = seen.distinct().join(items, on="item_id", how="inner").select("user_id", "item_index")
    known = histories.select("user_id", F.explode("known_items").alias("item_index"))
    return (
        indexed.unionByName(known).groupBy("user_id").agg(F.array_sort(F.collect_set("item_index")).alias("excluded"))
    )


def hard_candidates(logs: DataFrame, items: DataFrame, config: Negatives, seed: int) -> tuple[DataFrame, DataFrame]:
    """Dropped items by request and by user and day, a bounded number each, chosen by hash.

    `logs`: ranking_logs with ds, already only of users with positives. Returns (request_id, own_coarse, own_fine) and
    (user_id, ds, user_coarse, user_fine).
    """
    dropped = logs.where(F.col("stage").isin(*COARSE_STAGES, *FINE_STAGES)).join(items, on="item_id", how="inner")
    fine = F.col("stage").isin(*FINE_STAGES)
    # The fine list of a request, best first: re-ranked items, then those that fine ranking dropped, each by position.
    place = Window.partitionBy("request_id", fine).orderBy(F.desc("stage"), F.asc_nulls_last("position"), "item_index")
    last = 1 - (F.row_number().over(place) - 1) / F.count(F.lit(1)).over(Window.partitionBy("request_id", fine))
    ranked = dropped.select("request_id", "user_id", "ds", "item_index", fine.alias("fine"), last.alias("from_end"))
    eligible = ranked.where(~F.col("fine") | (F.col("from_end") <= config.fine_share + 1e-9)).withColumn(
        "draw", hashed("hard", seed, F.col("request_id"), F.col("item_index"))
    )

    def bounded(keys: list[str], prefix: str) -> DataFrame:
        order = Window.partitionBy(*keys, "fine").orderBy("draw", "item_index")
        size = F.when(F.col("fine"), CANDIDATES * config.fine).otherwise(CANDIDATES * config.coarse)
        kept = eligible.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= size)
        return kept.groupBy(*keys).agg(
            F.array_sort(F.collect_set(F.when(~F.col("fine"), F.col("item_index")))).alias(f"{prefix}_coarse"),
            F.array_sort(F.collect_set(F.when(F.col("fine"), F.col("item_index")))).alias(f"{prefix}_fine"),
        )

    return bounded(["request_id"], "own"), bounded(["user_id", "ds"], "user")


def with_candidates(positives: DataFrame, hard: tuple[DataFrame, DataFrame] | None) -> DataFrame:
    """Positives with their four candidate lists (empty arrays where there is no log)."""
    if hard is not None:
        by_request, by_user = hard
        positives = (
            positives.withColumn("ds", F.date_format("event_time", "yyyy-MM-dd"))
            .join(by_request, on="request_id", how="left")
            .join(by_user, on=["user_id", "ds"], how="left")
            .drop("ds")
        )
    else:
        for name in LISTS:
            positives = positives.withColumn(name, F.lit(None).cast("array<int>"))
    for name in LISTS:
        positives = positives.withColumn(name, F.coalesce(name, F.array().cast("array<int>")))
    return positives


def draw_negatives(
    positives: DataFrame,
    excluded: DataFrame,
    samplers: dict[int, AliasTable],
    config: Negatives,
    seed: int,
    width: int,
) -> DataFrame:
    """Positives (with their candidate lists) -> the same rows with negatives, negative_kinds and negative_log_q.

    `samplers`: alias tables by kind, broadcast to the executors. `width`: number of item indices. Each user's exclusions
    travel once, ahead of the user's rows, however many rows there are.
    """
    spark = positives.sparkSession
    shared = spark.sparkContext.broadcast(samplers)
    rows = positives.withColumn("role", F.lit(ROW)).unionByName(
        excluded.join(positives.select("user_id").distinct(), on="user_id", how="left_semi").withColumn(
            "role", F.lit(EXCLUSION)
        ),
        allowMissingColumns=True,
    )
    ordered = rows.repartition("user_id").sortWithinPartitions("user_id", "role", "row_key")
    columns = [name for name in positives.columns if name not in LISTS]
    schema = T.StructType(
        [
            *positives.select(*columns).schema.fields,
            T.StructField("negatives", T.ArrayType(T.IntegerType())),
            T.StructField("negative_kinds", T.ArrayType(T.IntegerType())),
            T.StructField("negative_log_q", T.ArrayType(T.FloatType())),
        ]
    )

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _draw_batches(batches, columns, shared.value, config, seed, width)

    return ordered.mapInArrow(run, schema)


def _draw_batches(
    batches: Iterable[pa.RecordBatch],
    columns: list[str],
    samplers: dict[int, AliasTable],
    config: Negatives,
    seed: int,
    width: int,
) -> Iterator[pa.RecordBatch]:
    open_user: Any = None  # the exclusion row of the user that the last batch ended in
    for batch in batches:
        table = pa.Table.from_batches([batch])
        if open_user is not None:
            table = pa.concat_tables([open_user, table])
        role = table.column("role").to_numpy()
        users = table.column("user_id").combine_chunks().dictionary_encode()
        group = users.indices.to_numpy().astype(np.int64)
        lists = np.flatnonzero(role == EXCLUSION)
        forbidden = _pairs(table.take(pa.array(lists)), "excluded", group[lists], width)
        places = np.flatnonzero(role == ROW)
        if len(places):
            rows = table.take(pa.array(places)).combine_chunks()
            yield from _fill(rows, group[places], forbidden, columns, samplers, config, seed, width).to_batches()
        # Sorted input: at most the last user goes on in the next batch.
        last = lists[group[lists] == group[-1]]
        open_user = table.take(pa.array(last)) if len(last) else None


def _fill(
    rows: pa.Table,
    group_N: Ints,
    forbidden: Ints,
    columns: list[str],
    samplers: dict[int, AliasTable],
    config: Negatives,
    seed: int,
    width: int,
) -> pa.Table:
    """Hard slots first (fine, then coarse), then the easy ones; an empty hard slot becomes an easy one."""
    n = rows.num_rows
    keys = mix(rows.column("row_key").to_numpy().astype(np.int64).view(np.uint64), seed)
    positive = rows.column("item_index").to_numpy().astype(np.int64)
    own = np.arange(n) * width + positive  # the positive itself, whatever the state says
    hard: list[Ints] = []
    taken = np.sort(own)
    for name, quota in (("fine", config.fine), ("coarse", config.coarse)):
        tiers = [_row_items(rows, f"{source}_{name}") for source in ("own", "user")]
        picked = pick_hard(keys, quota, tiers, group_N, forbidden, taken, width)
        hard.append(picked)
        taken = np.sort(np.concatenate([taken, (np.arange(n)[:, None] * width + picked)[picked > 0]]))
    easy = np.zeros((n, config.uniform + config.popularity), np.int64)
    slots = np.concatenate([easy, hard[1], hard[0]], axis=1)
    quotas = [UNIFORM] * config.uniform + [POPULARITY] * config.popularity + [COARSE] * config.coarse
    quotas += [FINE] * config.fine
    fallback = POPULARITY if config.popularity else UNIFORM
    kinds = np.tile(np.array(quotas, np.int64), (n, 1))
    kinds[(slots == 0) & (kinds >= COARSE)] = fallback
    # The positive takes part as one more held item, so that no draw repeats it.
    slots = np.concatenate([slots, positive[:, None]], axis=1)
    kinds = np.concatenate([kinds, np.full((n, 1), NONE)], axis=1)
    items, kinds, log_q = draw_easy(keys, kinds, slots, group_N, forbidden, width, samplers, config.attempts)
    out = rows.select(columns)
    for name, values, kind in (
        ("negatives", items, pa.int32()),
        ("negative_kinds", kinds, pa.int32()),
        ("negative_log_q", log_q, pa.float32()),
    ):
        flat = pa.array(np.ascontiguousarray(values[:, :-1]).ravel(), type=kind)
        offsets = pa.array(np.arange(n + 1) * config.total, type=pa.int32())
        out = out.append_column(name, pa.ListArray.from_arrays(offsets, flat))
    return out


def _row_items(rows: pa.Table, column: str) -> tuple[Ints, Ints]:
    """A list column as (row, item) pairs."""
    lists = pa.concat_arrays(rows.column(column).chunks)
    sizes = np.diff(lists.offsets.to_numpy())
    return np.repeat(np.arange(len(lists)), sizes), lists.flatten().to_numpy().astype(np.int64)


def _pairs(table: pa.Table, column: str, group: Ints, width: int) -> Ints:
    """A list column as sorted pairs group * width + item."""
    if table.num_rows == 0:
        return np.zeros(0, np.int64)
    places, items = _row_items(table, column)
    return np.sort(group[places] * width + items)

"""Scores all items for held-out events on Spark's executors, once for all points of the grid of the recency prior.

Shapes: B events, n items of a batch, d vector length, H half-lives, G points of the grid.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from jobs.inference.embed import cached_model
from model.evaluation.prior_grid import GridPoint, Targets, count_better, excluded_pairs
from model.evaluation.release_recall import HeldOutEvents
from model.io.arrow import to_arrays
from model.serving.embed import batch_columns, embed_items
from model.serving.recency_prior import bonus_of
from pipelines.joins import broadcast_few

COUNTS = "counts_before_holdout"


@dataclass(frozen=True)
class Grid:
    """The points, and what a bonus depends on besides the count."""

    points: Sequence[GridPoint]
    half_lives: Sequence[float]
    temperature: float
    unseen_count: float

    def bonus(self, counts_nH: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[G, n] bonus of items with these counts at each point."""
        rows = []
        for beta, half_life in self.points:
            column = self.half_lives.index(half_life) if half_life is not None else 0
            rows.append(bonus_of(counts_nH[:, column], beta, self.temperature, self.unseen_count))
        return np.stack(rows)


@dataclass(frozen=True)
class ItemTower:
    """The checkpoint that embeds items, and the columns that it reads."""

    uri: str
    fingerprint: str
    columns: Sequence[str]

    def embed(self, batch: pa.RecordBatch) -> Any:
        """[n, d] item vectors of a batch of encoded items."""
        return embed_items(cached_model(self.uri, self.fingerprint), batch_columns(batch, list(self.columns)))


def hits_of_grid(
    items: DataFrame, tower: ItemTower, events: HeldOutEvents, users_Bd: Any, grid: Grid, k: int
) -> npt.NDArray[np.bool_]:
    """[G, B] whether the item of each event is among the k best at each point.

    `items`: encoded items with `counts_before_holdout` (array<double> [H]). Events whose item is not in it are misses.
    """
    taken_B = events.columns["item_index"].astype(np.int64)
    targets, present_B = _targets(items, tower, events, taken_B, users_Bd, grid)
    better_GB = np.zeros((len(grid.points), len(taken_B)), np.int64)
    for row in _counted(items, tower, targets, grid).collect():
        better_GB += np.frombuffer(row["better"], np.int64).reshape(better_GB.shape)
    return (better_GB < k) & present_B


def _targets(
    items: DataFrame, tower: ItemTower, events: HeldOutEvents, taken_B: Any, users_Bd: Any, grid: Grid
) -> tuple[Targets, npt.NDArray[np.bool_]]:
    """The events with the vectors of the items taken, and [B] whether that item is in `items`."""
    wanted = items.sparkSession.createDataFrame([(int(item),) for item in np.unique(taken_B)], "item_index int")
    few = items.join(broadcast_few(wanted), on="item_index", how="left_semi")

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                vectors = pa.array(list(tower.embed(batch)), pa.list_(pa.float32()))
                columns = [batch.column("item_index"), vectors, batch.column(COUNTS)]
                yield pa.RecordBatch.from_arrays(columns, names=["item_index", "vector", COUNTS])

    rows = few.mapInArrow(embed, f"item_index int, vector array<float>, {COUNTS} array<double>").toPandas()
    place_of = {int(item): place for place, item in enumerate(rows["item_index"])}
    place_B = np.array([place_of.get(int(item), -1) for item in taken_B])
    if rows.empty:
        vectors, counts = np.zeros((1, users_Bd.shape[1]), np.float32), np.zeros((1, len(grid.half_lives)))
    else:
        vectors, counts = np.stack(rows["vector"].to_numpy()).astype(np.float32), np.stack(rows[COUNTS].to_numpy())
    bonus = grid.bonus(counts)
    pairs = excluded_pairs(taken_B, events.excluded)
    return Targets(users_Bd, taken_B, vectors[place_B], bonus[:, place_B], pairs), place_B >= 0


def _counted(items: DataFrame, tower: ItemTower, targets: Targets, grid: Grid) -> DataFrame:
    """One row per task: `better`, the counts of `count_better` over its items as bytes (int64 [G, B])."""

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total = np.zeros(targets.bonus_GB.shape, np.int64)
        for batch in batches:
            if batch.num_rows:
                counts = to_arrays(batch.select([COUNTS]))[COUNTS].astype(np.float64)
                item_index = batch.column("item_index").to_numpy().astype(np.int64)
                total += count_better(targets, item_index, tower.embed(batch), grid.bonus(counts))
        yield pa.RecordBatch.from_arrays([pa.array([total.tobytes()], pa.binary())], names=["better"])

    return items.mapInArrow(count, "better binary")

"""Retrieves the top items of many users from a release, on Spark's executors.

A separate module because Spark's workers cannot import the job's __main__.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from jobs.inference.embed import user_vectors
from model.io.urls import read_columns
from model.serving.faiss_index import NO_ITEM, load_index, search

CELLS = 4_000_000  # ranked items in memory at once: with more ranks, fewer users are searched together


def top_items(
    rows: DataFrame, model: str, index: str, release_id: str, files: tuple[str, ...], k: int, exclude_seen: bool
) -> DataFrame:
    """user_id, item_index, rank and score of the top k items of each query. Each worker keeps model and index in memory."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows == 0:
                continue
            vectors = user_vectors(batch, model, release_id, files)
            seen = _known_items(batch) if exclude_seen else None
            scores, items = search(_cached_index(index, release_id), vectors, k, seen)
            owner, place = np.nonzero(items >= 0)
            yield pa.RecordBatch.from_arrays(
                [
                    batch.column("user_id").take(pa.array(owner)),
                    pa.array(items[owner, place].astype(np.int32)),
                    pa.array((place + 1).astype(np.int32)),
                    pa.array(scores[owner, place]),
                ],
                names=["user_id", "item_index", "rank", "score"],
            )

    return rows.mapInArrow(run, "user_id string, item_index int, rank int, score float")


@dataclass(frozen=True)
class RankedItems:
    """A release, and the ranks to read from its index. Small, because Spark sends it with each task."""

    model: str  # URI
    index: str  # URI
    release_id: str
    files: tuple[str, ...]  # item_features of the release
    item_stats: tuple[str, ...]  # files of item_stats, which say which items are live
    first: int  # rank of the first item to return; 1 is the best
    last: int


def ranked_items(rows: DataFrame, ranking: RankedItems) -> DataFrame:
    """user_id and items (array<int>): the live items from rank `first` to `last` of each query, best first.

    Items that the user has are not ranked, as in `recommend --exclude-seen`. Items that are not live keep their rank and are
    left out of the answer.
    """

    step = max(1, CELLS // ranking.last)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                items = _ranked_lists(part, ranking)
                yield pa.RecordBatch.from_arrays([part.column("user_id"), items], names=["user_id", "items"])

    return rows.mapInArrow(run, "user_id string, items array<int>")


def _ranked_lists(batch: pa.RecordBatch, ranking: RankedItems) -> pa.ListArray:
    vectors = user_vectors(batch, ranking.model, ranking.release_id, ranking.files)
    index = _cached_index(ranking.index, ranking.release_id)
    _, items = search(index, vectors, ranking.last, _known_items(batch))
    items = items[:, ranking.first - 1 :]
    live_M = _live_items(ranking.item_stats)
    keep = (items != NO_ITEM) & (items < len(live_M))
    keep[keep] = live_M[items[keep]]
    offsets = np.concatenate([[0], keep.sum(axis=1).cumsum()])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(items[keep].astype(np.int32)))


def _known_items(batch: pa.RecordBatch) -> list[np.ndarray]:
    known = batch.column("known_items")
    return np.split(known.flatten().to_numpy(), known.offsets.to_numpy()[1:-1] - known.offsets[0].as_py())


@lru_cache(maxsize=1)
def _live_items(item_stats: tuple[str, ...]) -> np.ndarray:
    """[M] bool: whether each item index is live."""
    stats = read_columns(item_stats, ["item_index", "live"])
    live_M = np.zeros(int(stats["item_index"].max()) + 1, bool)
    live_M[stats["item_index"]] = stats["live"]
    return live_M


@lru_cache(maxsize=1)
def _cached_index(uri: str, release_id: str) -> Any:
    return load_index(uri)

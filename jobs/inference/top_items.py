"""Retrieves the top items of many users from a release, on Spark's executors.

A separate module because Spark's workers cannot import the job's __main__.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from jobs.inference.embed import user_vectors
from model.serving.faiss_index import load_index, search


def top_items(
    rows: DataFrame, model: str, index: str, release_id: str, files: tuple[str, ...], k: int, exclude_seen: bool
) -> DataFrame:
    """user_id, item_index, rank and score of the top k items of each query. Each worker keeps model and index in memory."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows == 0:
                continue
            vectors = user_vectors(batch, model, release_id, files)
            seen = None
            if exclude_seen:
                known = batch.column("known_items")
                seen = np.split(known.flatten().to_numpy(), known.offsets.to_numpy()[1:-1] - known.offsets[0].as_py())
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


@lru_cache(maxsize=1)
def _cached_index(uri: str, release_id: str) -> Any:
    return load_index(uri)

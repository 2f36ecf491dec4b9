"""Computes vectors of users on Spark's executors, in batches."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from model.data.catalogue import Catalogue
from model.network.embeddings import has_table
from model.network.two_tower import TwoTower
from model.serving.embed import batch_columns, embed_users, history_catalogue
from model.training.checkpoint import load_checkpoint
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema, MultiCategoricalFeature


@lru_cache(maxsize=2)
def cached_model(uri: str, fingerprint: str) -> TwoTower:
    """A checkpoint, cached in the Python worker for later batches. `fingerprint` changes if the checkpoint is rewritten."""
    # One thread per worker: Spark runs one worker per core.
    torch.set_num_threads(1)
    return load_checkpoint(uri)


def within_model(queries: DataFrame, schema: FeatureSchema) -> DataFrame:
    """Replace indices that a model does not know (they were added after it was trained) by DEFAULT."""
    features = [feature for feature in schema.of_user_tower if has_table(feature)]
    of_history = schema.history.indexed if schema.history else []
    for feature in [*features, *of_history]:
        replace = _default_from(feature.size)
        is_list = isinstance(feature, MultiCategoricalFeature) or feature in of_history
        column = F.transform(feature.column, replace) if is_list else replace(F.col(feature.column))
        queries = queries.withColumn(feature.column, column)
    return queries


def _default_from(size: int) -> Callable[[Column], Column]:
    # The function must take one argument: Spark would pass the position in the list as a second one.
    return lambda index: F.when(index < size, index).otherwise(DEFAULT)


@lru_cache(maxsize=1)
def cached_catalogue(uri: str, fingerprint: str, files: tuple[str, ...]) -> Catalogue | None:
    """Item features for models that pool them over the history; None for other models."""
    return history_catalogue(cached_model(uri, fingerprint), files)


def user_vectors(batch: pa.RecordBatch, uri: str, fingerprint: str, files: tuple[str, ...]) -> np.ndarray:
    """User vectors [n, d] of a batch of queries. `files`: item_features, read only if the model needs them."""
    model = cached_model(uri, fingerprint)
    age = model.schema.example_age.column if model.schema.example_age else None
    columns = [name for name in model.schema.user_columns if name != age]
    return embed_users(model, batch_columns(batch, columns), cached_catalogue(uri, fingerprint, files))


def embed_queries(queries: DataFrame, uri: str, fingerprint: str, files: tuple[str, ...]) -> DataFrame:
    """user_id and vector (array<float>) of each query, computed on the executors. Arguments: see `user_vectors`."""

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                vectors = as_lists(user_vectors(batch, uri, fingerprint, files))
                yield pa.RecordBatch.from_arrays([batch.column("user_id"), vectors], names=["user_id", "vector"])

    return queries.mapInArrow(embed, "user_id string, vector array<float>")


def as_lists(vectors: np.ndarray) -> pa.ListArray:
    """An array [n, d] as a column of n lists."""
    offsets = pa.array(np.arange(len(vectors) + 1) * vectors.shape[1], type=pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))

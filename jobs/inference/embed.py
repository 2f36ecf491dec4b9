"""Computes vectors on Spark's executors: of all items once per night, of users in batches."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common.runner import Context
from jobs.night.steps import require_model
from model.data.catalogue import Catalogue
from model.network.embeddings import has_table
from model.network.two_tower import TwoTower
from model.serving.embed import batch_columns, embed_items, embed_users, history_catalogue
from model.training.checkpoint import load_checkpoint
from pipelines.contract.errors import InputError
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema, HistoryFeature, MultiCategoricalFeature
from pipelines.storage.lineage import one_lineage
from pipelines.storage.manifest import Manifest, Recipe, digest
from pipelines.storage.update import Update

VECTOR = "item_id {id_type}, item_index int, embedding array<float>, release_id string"


@lru_cache(maxsize=2)
def cached_model(uri: str, fingerprint: str) -> TwoTower:
    """A checkpoint, cached in the Python worker for later batches. `fingerprint` changes if the checkpoint is rewritten."""
    # One thread per worker: Spark runs one worker per core.
    torch.set_num_threads(1)
    return load_checkpoint(uri)


def release_id_of(model: Manifest, item_features: Manifest, update: Update | None = None) -> str:
    """The id of the release of a model and its items. It is the same if the night runs again."""
    name = f"{model.ds}-{update.name}" if update else model.ds
    return f"{name}-{digest([model.fingerprint, item_features.fingerprint])[:8]}"


def write_item_embeddings(context: Context) -> Manifest:
    """Write table `item_embeddings`, the vectors of all live items, unless it is done. evaluate and publish_items use it."""
    warehouse, ds = context.warehouse, context.ds
    model = warehouse.require("models", ds, f"run train for ds={ds} first")
    features = warehouse.require("item_features", ds, f"run build_positives for ds={ds} first")
    if model.inputs["item_features"] != features.fingerprint:
        raise InputError(
            f"the model of ds={ds} was trained on an earlier item_features: run build_negatives and train again"
        )
    lineage = one_lineage(
        {f"table models ds={ds}": model, f"table item_features ds={ds}": features}, f"run train for ds={ds} again"
    )
    recipe = Recipe("", {"models": model.fingerprint, "item_features": features.fingerprint}, lineage)
    existing = warehouse.manifest("item_embeddings", ds)
    if existing and existing.made_by(recipe):
        return existing
    require_model(context, ds, "")
    uri, fingerprint, release = (
        warehouse.path("models", ds),
        model.fingerprint,
        release_id_of(model, features, warehouse.update),
    )
    columns = FeatureSchema.model_validate(model.facts["schema"]).item_columns
    rows = warehouse.read("item_features", ds)
    schema = T.StructType(
        [
            rows.schema["item_id"],
            T.StructField("item_index", T.IntegerType()),
            T.StructField("embedding", T.ArrayType(T.FloatType())),
            T.StructField("release_id", T.StringType()),
        ]
    )

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            vectors = embed_items(cached_model(uri, fingerprint), batch_columns(batch, columns))
            yield pa.RecordBatch.from_arrays(
                [
                    batch.column("item_id"),
                    batch.column("item_index"),
                    _lists(vectors),
                    pa.array([release] * len(vectors)),
                ],
                names=["item_id", "item_index", "embedding", "release_id"],
            )

    embedded = rows.select("item_id", *columns).mapInArrow(embed, schema)
    return warehouse.write(embedded, "item_embeddings", ds, recipe, facts={"release_id": release})


def within_model(queries: DataFrame, schema: FeatureSchema) -> DataFrame:
    """Replace indices that a model does not know (they were added after it was trained) by DEFAULT."""
    features = [feature for feature in schema.of_user_tower if has_table(feature)]
    for feature in [*features, *([schema.history] if schema.history else [])]:
        replace = _default_from(feature.size)
        is_list = isinstance(feature, MultiCategoricalFeature | HistoryFeature)
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
                vectors = _lists(user_vectors(batch, uri, fingerprint, files))
                yield pa.RecordBatch.from_arrays([batch.column("user_id"), vectors], names=["user_id", "vector"])

    return queries.mapInArrow(embed, "user_id string, vector array<float>")


def _lists(vectors: np.ndarray) -> pa.ListArray:
    """An array [n, d] as a column of n lists."""
    offsets = pa.array(np.arange(len(vectors) + 1) * vectors.shape[1], type=pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))

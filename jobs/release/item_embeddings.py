"""Writes and reads table `item_embeddings`, the vectors of all live items, which evaluate and publish_items use."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.common.runner import Context
from jobs.inference.embed import as_lists, cached_model
from jobs.night.steps import require_model
from jobs.release.recency_prior import TABLE, bonus_of_counts, prior_of, write_item_priors
from jobs.release.release_id import release_id_of
from model.io.arrow import to_arrays
from model.io.urls import resolve
from model.serving.embed import batch_columns, embed_items
from model.serving.recency_prior import with_bonus
from model.serving.release import PRIOR
from pipelines.contract.errors import InputError
from pipelines.contract.schema import FeatureSchema
from pipelines.joins import broadcast_small
from pipelines.storage.lineage import one_lineage
from pipelines.storage.manifest import Manifest, Recipe

RECENT_COUNTS = "recent_counts"


def write_item_embeddings(context: Context) -> Manifest:
    """Write table `item_embeddings` unless it is done. With a recency prior, vectors have one more component."""
    warehouse, ds = context.warehouse, context.ds
    model = warehouse.require("models", ds, f"run train for ds={ds} first")
    features = warehouse.require("item_features", ds, f"run build_positives for ds={ds} first")
    if model.inputs["item_features"] != features.fingerprint:
        raise InputError(
            f"the model of ds={ds} was trained on an earlier item_features: run build_negatives and train again"
        )
    priors = write_item_priors(context)
    made = {"models": model, "item_features": features} | ({TABLE: priors} if priors else {})
    lineage = one_lineage(
        {f"table {table} ds={ds}": manifest for table, manifest in made.items()}, f"run train for ds={ds} again"
    )
    recipe = Recipe("", {table: manifest.fingerprint for table, manifest in made.items()}, lineage)
    existing = warehouse.manifest("item_embeddings", ds)
    if existing and existing.made_by(recipe):
        return existing
    require_model(context, ds, "")
    release = release_id_of(model, features, priors, warehouse.update)
    columns = FeatureSchema.model_validate(model.facts["schema"]).item_columns
    # An item_features of an earlier version has ids of the type of the items table.
    item_id = F.col("item_id").cast("string").alias("item_id")
    rows, prior = warehouse.read("item_features", ds).select(item_id, *columns), prior_of(priors) if priors else None
    if priors:
        counts = warehouse.read(TABLE, ds).select("item_index", RECENT_COUNTS)
        rows = rows.join(broadcast_small(counts, priors.rows), on="item_index", how="inner").sort("item_index")
    embedded = _embedded(rows, warehouse.path("models", ds), model.fingerprint, columns, release, prior)
    facts = {"release_id": release} | ({PRIOR: prior} if prior else {})
    return warehouse.write(embedded, "item_embeddings", ds, recipe, facts=facts)


def _embedded(
    rows: DataFrame, uri: str, fingerprint: str, columns: list[str], release: str, prior: dict[str, Any] | None
) -> DataFrame:
    """item_id, item_index, embedding and release_id of encoded items."""
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
            if prior and len(vectors):
                counts = to_arrays(batch.select([RECENT_COUNTS]))[RECENT_COUNTS]
                vectors = with_bonus(vectors, bonus_of_counts(prior)(counts), prior["scale"])
            yield pa.RecordBatch.from_arrays(
                [
                    batch.column("item_id"),
                    batch.column("item_index"),
                    as_lists(vectors),
                    pa.array([release] * len(vectors)),
                ],
                names=["item_id", "item_index", "embedding", "release_id"],
            )

    return rows.mapInArrow(embed, schema)


def vector_batches(context: Context) -> Iterator[tuple[Any, Any]]:
    """Item indices and vectors in batches: the driver holds only the index and never the whole table."""
    for url in context.warehouse.data_files(context.warehouse.path("item_embeddings", context.ds)):
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(65_536, columns=["item_index", "embedding"]):
                arrays = to_arrays(batch, url)
                yield arrays["item_index"].astype(np.int64), arrays["embedding"]

"""A synthetic night as training reads it, made in numpy: samples (one row group per file), item features, sampling
probabilities.

A row has three scalars, a history of 20 indices and four negatives with their kinds. Items follow Zipf's law in positives and
histories; negatives are uniform.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.config import ModelConfig, TrainingConfig
from model.data.petastorm_reader import SampleFile
from model.training.spec import TrainingSpec
from pipelines.contract.negative_kinds import COARSE, FINE, NONE, POPULARITY, UNIFORM
from pipelines.contract.schema import FeatureSchema

USERS, ITEMS, CATEGORIES = 100_000, 100_000, 500
HISTORY, NEGATIVES = 20, 4
FIRST = 2  # index of the first user and item: 0 is padding, 1 is default
EMBEDDING, HIDDEN, DIM = 32, 128, 64
GROUP_ROWS = 32_768  # the default of samples.row_group_rows
SEED = 3

ALL_KINDS = (UNIFORM, POPULARITY, COARSE, FINE)  # easy negatives are shared by the batch, hard ones belong to their row
OWN = (COARSE, COARSE, FINE, FINE)  # all four negatives belong to their row
WITHOUT = (NONE,) * NEGATIVES  # no negatives


def feature_schema(items: int = ITEMS) -> FeatureSchema:
    """A user has an id and a history, an item has an id and a category."""
    return FeatureSchema.model_validate(
        {
            "version": 1,
            "user": [
                {"name": "user_id", "kind": "id", "column": "user_index", "vocabulary": "user_id", "size": USERS + FIRST}
            ],
            "item": [
                {"name": "item_id", "kind": "id", "column": "item_index", "vocabulary": "item_id", "size": items + FIRST},
                {
                    "name": "category", "kind": "categorical", "column": "item_category", "vocabulary": "category",
                    "size": CATEGORIES + FIRST,
                },
            ],
            "history": {
                "name": "history", "kind": "history", "column": "history", "vocabulary": "item_id",
                "size": items + FIRST, "length": HISTORY,
            },
        }
    )  # fmt: skip


MODEL = ModelConfig(dim=DIM, hidden=[HIDDEN], embedding_dim=EMBEDDING, small_embedding_dim=EMBEDDING)


def sample_rows(rows: int, seed: int, kinds: Sequence[int] = ALL_KINDS) -> dict[str, np.ndarray]:
    """Columns of `samples` with negatives of the given kinds."""
    rng = np.random.default_rng(seed)
    items = FIRST + (ITEMS ** rng.random((rows, 1 + HISTORY), np.float32)).astype(np.int32).clip(max=ITEMS) - 1
    kinds_K = np.array(kinds, np.int32)
    negatives = rng.integers(FIRST, ITEMS + FIRST, (rows, NEGATIVES), np.int32) * (kinds_K != NONE)
    return {
        "user_index": rng.integers(FIRST, USERS + FIRST, rows, np.int32),
        "item_index": items[:, 0].copy(),
        "weight": np.ones(rows, np.float32),
        "history": items[:, 1:].copy(),
        "negatives": negatives,
        "negative_kinds": np.tile(kinds_K, (rows, 1)),
    }


def categories(items: int = ITEMS) -> np.ndarray:
    """The category of each item, in the order of item indices."""
    return np.random.default_rng(SEED).integers(FIRST, CATEGORIES + FIRST, items, np.int32)


def sampling_probabilities(items: int = ITEMS) -> np.ndarray:
    """The probability that a positive is each item, in the order of item indices."""
    return np.log1p(1 / np.arange(1, items + 1)) / np.log(items + 1)


def table(rows: dict[str, np.ndarray]) -> pa.Table:
    """An Arrow table. Two-dimensional arrays become list columns, as Spark writes them."""
    return pa.table({name: _column(values) for name, values in rows.items()})


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def write_samples(folder: Path, rows: int, kinds: Sequence[int] = ALL_KINDS) -> list[SampleFile]:
    """Write files of one row group each, of equal size except the last. Writes at least two."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    size = min(GROUP_ROWS, math.ceil(rows / 2))
    for group, start in enumerate(range(0, rows, size)):
        count = min(size, rows - start)
        path = folder / f"group={group:05d}.parquet"
        pq.write_table(table(sample_rows(count, group, kinds)), path)
        files.append(SampleFile(url=f"file://{path}", rows=count))
    return files


def write_items(folder: Path, items: int = ITEMS) -> tuple[list[str], list[str]]:
    """Write item_features and item_stats. Returns their URLs."""
    folder.mkdir(parents=True, exist_ok=True)
    index = np.arange(FIRST, items + FIRST, dtype=np.int32)
    probabilities = sampling_probabilities(items)
    stats = {"q_in_batch": probabilities, "q_uniform": np.full(items, 1 / items), "q_popularity": probabilities}
    counts = np.ceil(probabilities * items * 10).astype(np.int64)  # positives, of which none is down-sampled
    stats |= {"sampled_count": counts, "window_count": counts, "keep_probability": np.ones(items)}
    pq.write_table(table({"item_index": index, "item_category": categories(items)}), folder / "item_features.parquet")
    pq.write_table(table({"item_index": index, **stats}), folder / "item_stats.parquet")
    return [f"file://{folder}/item_features.parquet"], [f"file://{folder}/item_stats.parquet"]


def make_spec(folder: Path, train: list[SampleFile], epochs: int, **training: Any) -> TrainingSpec:
    """A training on these files. Settings that are not given have their defaults."""
    item_features, item_stats = write_items(folder / "items")
    return TrainingSpec(
        features=feature_schema(),
        train=train,
        item_features=item_features,
        item_stats=item_stats,
        negatives=NEGATIVES,
        model=MODEL,
        training=TrainingConfig(**training),
        seed=SEED,
        epochs=epochs,
        output=str(folder / "checkpoint"),
    )

"""A small night. Users and items are in blocks: the positives of a user are items of the same block."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.config import LossConfig, ModelConfig, TrainingConfig
from model.data.item_versions import NEVER_REPLACED
from model.data.petastorm_reader import SampleFile
from model.training.spec import TrainingSpec
from pipelines.contract.schema import FeatureSchema

USERS, ITEMS, HISTORY, NEGATIVES = 60, 40, 5, 4
BLOCKS = 4
DAYS = (20240304, 20240305, 20240306)  # Items snapshots that the rows of `with_earlier_versions` see.

SCHEMA: dict[str, Any] = {
    "version": 1,
    "user": [
        {"name": "user_id", "kind": "id", "column": "user_index", "vocabulary": "user_id", "size": USERS + 2},
        {"name": "age", "kind": "categorical", "column": "user_age", "vocabulary": "user.age", "size": 6},
        {"name": "tenure", "kind": "bucket", "column": "user_tenure", "size": 5},
        {"name": "income", "kind": "numeric", "column": "user_income", "mean": 3.0, "std": 2.0},
    ],
    "item": [
        {"name": "item_id", "kind": "id", "column": "item_index", "vocabulary": "item_id", "size": ITEMS + 2},
        {
            "name": "category",
            "kind": "categorical",
            "column": "item_category",
            "vocabulary": "item.category",
            "size": 6,
        },
        {
            "name": "tags",
            "kind": "multi_categorical",
            "column": "item_tags",
            "vocabulary": "item.tags",
            "size": 9,
            "length": 3,
            "weights_column": "item_tags_weights",
        },
    ],
    "history": {
        "name": "history",
        "kind": "history",
        "column": "history",
        "vocabulary": "item_id",
        "size": ITEMS + 2,
        "length": HISTORY,
    },
    "example_age": {"name": "example_age", "kind": "age", "column": "example_age", "days": 30.0},
}


HISTORY_ACTIONS = {  # Actions of history items, for tests that add them to the history of SCHEMA.
    "name": "history_actions", "kind": "categorical", "column": "history_actions", "vocabulary": "action", "size": 5,
}  # fmt: skip
# The history with all facts about its items.
FULL_HISTORY = {**SCHEMA["history"], "ages_column": "history_ages", "actions": HISTORY_ACTIONS}

VECTORS = {  # Vector features of both sides, for tests that add them to SCHEMA.
    "user": {"name": "taste", "kind": "vector", "column": "user_taste", "length": 3, "width": 5, "dropout": 0.5},
    "item": {"name": "look", "kind": "vector", "column": "item_look", "length": 4},
}


def vector_schema() -> FeatureSchema:
    """The schema with a vector on each side."""
    return schema(**{side: [*SCHEMA[side], vector] for side, vector in VECTORS.items()})


CONTEXT: list[dict[str, Any]] = [
    {
        "name": "device",
        "kind": "categorical",
        "column": "context_device",
        "vocabulary": "context.device",
        "size": 5,
    },
    {
        "name": "words",
        "kind": "multi_categorical",
        "column": "context_words",
        "vocabulary": "context.words",
        "size": 6,
        "length": 2,
        "weights_column": "context_words_weights",
    },
    {"name": "load", "kind": "numeric", "column": "context_load", "mean": 7.0, "std": 2.0},
    {"name": "query", "kind": "vector", "column": "context_query", "length": 3},
    {"name": "hour", "kind": "bucket", "column": "context_hour", "size": 26},
]


def context_rows(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of CONTEXT, none of them default."""
    rng = np.random.default_rng(seed)
    return {
        "context_device": rng.integers(2, 5, rows).astype(np.int32),
        "context_words": rng.integers(2, 6, (rows, 2)).astype(np.int32),
        "context_words_weights": np.ones((rows, 2), np.float32),
        "context_load": rng.normal(3, 1, rows).astype(np.float32),
        "context_query": rng.normal(size=(rows, 3)).astype(np.float32),
        "context_hour": rng.integers(2, 26, rows).astype(np.int32),
    }


def vectors(side: str, rows: int) -> np.ndarray:
    """[rows, length] vectors of users or items."""
    length = VECTORS[side]["length"]
    return np.random.default_rng(3).normal(size=(rows, length)).astype(np.float32)


def schema(**changes: Any) -> FeatureSchema:
    return FeatureSchema.model_validate({**SCHEMA, **changes})


def schema_with_new_items(more: int) -> FeatureSchema:
    """The schema of a night with `more` new items."""
    size = ITEMS + 2 + more
    item = [{**SCHEMA["item"][0], "size": size}, *SCHEMA["item"][1:]]
    return schema(item=item, history={**SCHEMA["history"], "size": size})


def item_rows() -> dict[str, np.ndarray]:
    """Features of all items except the last one, which has left the catalogue."""
    rng = np.random.default_rng(5)
    index = np.arange(2, ITEMS + 1)
    return {
        "item_index": index.astype(np.int32),
        "item_category": (2 + rng.integers(0, 4, len(index))).astype(np.int32),
        "item_tags": np.stack([2 + index % 7, 2 + index % 5, np.zeros_like(index)], 1).astype(np.int32),
        "item_tags_weights": np.tile(np.array([1.0, 0.5, 0.0], np.float32), (len(index), 1)),
    }


def earlier_versions() -> dict[str, np.ndarray]:
    """Versions of item 3 before DAYS[1] and DAYS[2], of item 5 before DAYS[2], and of the item that has left."""
    return {
        "item_index": np.array([ITEMS + 1, 3, 5, 3], np.int32),
        "valid_before": np.array([NEVER_REPLACED, DAYS[2], DAYS[2], DAYS[1]], np.int32),
        "item_category": np.array([2, 3, 4, 5], np.int32),
        "item_tags": np.array([[2, 0, 0], [3, 4, 0], [0, 0, 0], [8, 0, 0]], np.int32),
        "item_tags_weights": np.array([[1, 0, 0], [1, 0.5, 0], [0, 0, 0], [0.25, 0, 0]], np.float32),
    }


def sample_rows(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Sample rows; row i has row_key i. Users prefer items of their block, and in it those with low indices."""
    rng = np.random.default_rng(seed)
    user = rng.integers(2, USERS + 2, rows)
    place = np.minimum(rng.geometric(0.15, (rows, HISTORY + 1)) - 1, ITEMS // BLOCKS - 1)
    items = 2 + BLOCKS * place + ((user - 2) % BLOCKS)[:, None]
    kinds = np.tile(np.array([1, 2, 3, 4], np.int32), (rows, 1))
    kinds[rng.random((rows, NEGATIVES)) < 0.1] = 0
    negatives = rng.integers(2, ITEMS + 2, (rows, NEGATIVES))
    history = items[:, 1:].copy()
    history[:, :2] = 0
    negatives[(negatives == items[:, :1]) | ((negatives - user[:, None]) % BLOCKS == 0) & (kinds > 2)] = 0
    return {
        "row_key": np.arange(rows),
        "user_index": user.astype(np.int32),
        "user_age": (2 + rng.integers(0, 4, rows)).astype(np.int32),
        "user_tenure": (1 + rng.integers(0, 4, rows)).astype(np.int32),
        "user_income": rng.normal(3, 2, rows).astype(np.float32),
        "history": history.astype(np.int32),
        "example_age": rng.random(rows).astype(np.float32),
        "item_index": items[:, 0].astype(np.int32),
        "weight": rng.choice([1.0, 2.0], rows).astype(np.float32),
        "negatives": (negatives * (kinds > 0)).astype(np.int32),
        "negative_kinds": (kinds * (negatives > 0)).astype(np.int32),
    }


def table(rows: dict[str, np.ndarray]) -> pa.Table:
    """An Arrow table with list columns as Spark writes them, not fixed-size lists."""

    def column(values: np.ndarray) -> pa.Array:
        if values.ndim == 1:
            return pa.array(values)
        offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))

    return pa.table({name: column(values) for name, values in rows.items()})


def write_samples(folder: Path, counts: list[int], seed: int = 0) -> list[SampleFile]:
    """Write one file per count, each with one row group of that many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = table(sample_rows(sum(counts), seed))
    files, start = [], 0
    for group, count in enumerate(counts):
        path = folder / f"group={group:05d}.parquet"
        pq.write_table(whole.slice(start, count), path)
        files.append(SampleFile(url=f"file://{path}", rows=count))
        start += count
    return files


def write_items(folder: Path, samples: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """Write item_features and item_stats. Returns the URLs of both."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(item_rows()), folder / "item_features.parquet")
    counts = np.bincount(samples["item_index"], minlength=ITEMS + 2)[2:].astype(float)
    stats = {
        "item_index": np.arange(2, ITEMS + 2, dtype=np.int32),
        "q_in_batch": counts / counts.sum(),
        "q_uniform": np.full(ITEMS, 1 / ITEMS),
        "q_popularity": counts**0.75 / (counts**0.75).sum(),
        "sampled_count": counts.astype(np.int64),
        "window_count": counts.astype(np.int64),
        "keep_probability": np.ones(ITEMS),
    }
    pq.write_table(table(stats), folder / "item_stats.parquet")
    return [f"file://{folder}/item_features.parquet"], [str(folder / "item_stats.parquet")]


def make_spec(
    folder: Path,
    counts: list[int],
    model: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **changes: Any,
) -> TrainingSpec:
    """A training spec over files in `folder`. Arguments override its defaults."""
    item_features, item_stats = write_items(folder / "items", sample_rows(sum(counts)))
    defaults: dict[str, Any] = {
        "features": schema(),
        "train": write_samples(folder / "train", counts),
        "valid": write_samples(folder / "valid", [30], seed=1),
        "item_features": item_features,
        "item_stats": item_stats,
        "negatives": NEGATIVES,
        "model": ModelConfig(
            **{"dim": 16, "hidden": [32], "embedding_dim": 16, "small_embedding_dim": 8, **(model or {})}
        ),
        "loss": LossConfig(**(loss or {})),
        "training": TrainingConfig(**{"batch_size": 64, "shuffle_window": 100, "threads": 1, **(training or {})}),
        "seed": 7,
        "output": str(folder / "checkpoint"),
    }
    return TrainingSpec(**{**defaults, **changes})


def with_earlier_versions(spec: TrainingSpec, earlier: dict[str, np.ndarray]) -> TrainingSpec:
    """Add earlier versions of items to a night. Its rows see the snapshots of DAYS in turn."""
    for file in (*spec.train, *spec.valid):
        path = file.url.removeprefix("file://")
        samples = pq.read_table(path)
        snapshots = np.resize(np.array(DAYS, np.int32), samples.num_rows)
        pq.write_table(samples.append_column("item_snapshot", [snapshots]), path)
    folder = Path(spec.item_features[0].removeprefix("file://")).parent
    return spec.model_copy(update={"item_versions": [write_earlier_versions(folder, earlier)]})


def write_earlier_versions(folder: Path, earlier: dict[str, np.ndarray] | None = None) -> str:
    """Write item_versions. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(earlier_versions() if earlier is None else earlier), folder / "item_versions.parquet")
    return str(folder / "item_versions.parquet")

"""The small night with packed rows, and the same positives in rows that are not packed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from model.data.petastorm_reader import SampleFile
from model.training.spec import TrainingSpec
from pipelines.contract.schema import FeatureSchema
from tests.model import toy_night
from tests.model.toy_night import BLOCKS, HISTORY, ITEMS, NEGATIVES, USERS

PACK = 4
CONTEXT = [
    {"name": "hour", "kind": "categorical", "column": "context_hour", "vocabulary": "context.hour", "size": 6},
    {
        "name": "words", "kind": "multi_categorical", "column": "context_words", "vocabulary": "context.words", "size": 6,
        "length": 2,
    },
]  # fmt: skip
USER_COLUMNS = ("user_index", "user_age", "user_tenure", "user_income")

Arrays = dict[str, np.ndarray]


def schema(**changes: Any) -> FeatureSchema:
    """The schema of the small night with ages and actions of history items."""
    return toy_night.schema(history=toy_night.FULL_HISTORY, **changes)


def packed_rows(rows: int, seed: int = 0, pack: int = PACK) -> Arrays:
    """Packed rows with 1 to `pack` positives and 0 to HISTORY history items each. Some users are unknown."""
    rng = np.random.default_rng(seed)
    user = rng.integers(1, USERS + 2, rows)
    place = np.minimum(rng.geometric(0.15, (rows, pack + HISTORY)) - 1, ITEMS // BLOCKS - 1)
    items = 2 + BLOCKS * place + ((user - 2) % BLOCKS)[:, None]
    count, length = rng.integers(1, pack + 1, rows), rng.integers(0, HISTORY + 1, rows)
    present = np.arange(pack) < count[:, None]
    seen = np.sort(np.where(present, rng.integers(0, length[:, None] + 1, (rows, pack)), HISTORY), 1)
    seen[np.arange(rows), count - 1] = length  # The newest positive sees the whole history.
    unseen = np.where(present, length[:, None] - seen, 0)
    places = np.arange(HISTORY) - (HISTORY - length[:, None])
    kinds = rng.integers(0, 5, (rows, pack, NEGATIVES)) * present[:, :, None]
    negatives = rng.integers(2, ITEMS + 2, (rows, pack, NEGATIVES)) * (kinds > 0)

    def integers(values: np.ndarray) -> np.ndarray:
        return (values * present[:, :, None] if values.ndim == 3 else values * present).astype(np.int32)

    return {
        "row": np.arange(rows),
        "user_index": user.astype(np.int32),
        "user_age": (2 + rng.integers(0, 4, rows)).astype(np.int32),
        "user_tenure": (1 + rng.integers(0, 4, rows)).astype(np.int32),
        "user_income": rng.normal(3, 2, rows).astype(np.float32),
        "history": np.where(places >= 0, items[:, pack:], 0).astype(np.int32),
        "history_ages": np.where(places >= 0, 100 * (length[:, None] - places), 0).astype(np.int32),
        "history_actions": np.where(places >= 0, 1 + (items[:, pack:] + np.arange(rows)[:, None]) % 4, 0).astype(
            np.int32
        ),
        "item_index": integers(items[:, :pack]),
        "item_snapshot": integers(np.resize(np.array(toy_night.DAYS), (rows, pack))),
        "history_seen": integers(seen),
        "request_lag": integers(100 * unseen + rng.integers(0, 50, (rows, pack)) * (unseen > 0)),
        "example_age": (rng.random((rows, pack)) * present).astype(np.float32),
        "weight": (rng.choice([1.0, 2.0], (rows, pack)) * present).astype(np.float32),
        "context_hour": integers(rng.integers(1, 6, (rows, pack))),
        "context_words": integers(rng.integers(0, 6, (rows, pack, 2))).reshape(rows, -1),
        "negatives": integers(negatives).reshape(rows, -1),
        "negative_kinds": integers(kinds).reshape(rows, -1),
    }


def unpacked(rows: Arrays, pack: int = PACK) -> Arrays:
    """The positives of packed rows, one per row and one at a time: what unpacking is compared with."""
    flat: dict[str, list[Any]] = {}
    for row, items in enumerate(rows["item_index"]):
        length = int((rows["history"][row] != 0).sum())
        for place in np.flatnonzero(items):
            values = {name: rows[name][row] for name in ("row", *USER_COLUMNS)}
            for name in ("item_index", "item_snapshot", "request_lag", "example_age", "weight", "context_hour"):
                values[name] = rows[name][row][place]
            for name in ("context_words", "negatives", "negative_kinds"):
                values[name] = rows[name][row].reshape(pack, -1)[place]
            seen = int(rows["history_seen"][row][place])
            lag = rows["request_lag"][row][place]
            for name, subtract in (("history", 0), ("history_ages", lag), ("history_actions", 0)):
                oldest = rows[name][row][HISTORY - length :][:seen] - subtract
                values[name] = np.concatenate([np.zeros(HISTORY - seen, np.int32), oldest])
            for name, value in values.items():
                flat.setdefault(name, []).append(value)
    return {name: np.array(values, dtype=rows[name].dtype) for name, values in flat.items()}


def write(folder: Path, rows: Arrays, counts: list[int], packed: bool, pack: int = PACK) -> list[SampleFile]:
    """Write files of `counts` packed rows, or of their positives, with one row group each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for group, (start, count) in enumerate(zip(np.cumsum([0, *counts]), counts)):
        part = {name: values[start : start + count] for name, values in rows.items()}
        positives = int((part["item_index"] > 0).sum())
        path = folder / f"group={group:05d}.parquet"
        pq.write_table(toy_night.table(part if packed else unpacked(part, pack)), path)
        url = f"file://{path}"
        files.append(
            SampleFile(url=url, rows=count, positives=positives) if packed else SampleFile(url=url, rows=positives)
        )
    return files


def make_spec(
    folder: Path,
    counts: list[int],
    model: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    *,
    packed: bool = True,
    **changes: Any,
) -> TrainingSpec:
    """The spec of toy_night.make_spec over files of `counts` packed rows. `packed` false: the same positives, not packed."""
    rows, valid = packed_rows(sum(counts)), packed_rows(20, seed=1)
    item_features, item_stats = toy_night.write_items(folder / "all_items", unpacked(rows))
    name = "packed" if packed else "unpacked"
    files: dict[str, Any] = {
        "features": schema(),
        "train": write(folder / name / "train", rows, counts, packed),
        "valid": write(folder / name / "valid", valid, [12, 8], packed),
        "item_features": item_features,
        "item_stats": item_stats,
        "pack": PACK if packed else None,
    }
    return toy_night.make_spec(folder, [1], model, loss, training, **{**files, **changes})

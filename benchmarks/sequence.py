"""Speed of the sequence tower with packed rows: two parts of `python -m benchmarks.training`.

    sequence_over_rectools      positives trained per second by the sequence tower / positions per second by RecTools' SASRec,
                                the smaller ratio of two catalogues: 5,000 and 100,000 items. Same events, width 64, 2 blocks,
                                2 heads, length 50, and 128 users per step, on the same cores. RecTools has its default loss,
                                softmax over the catalogue, with 5,000 items. With 100,000 items it has the faster of gBCE and
                                sampled softmax, with 256 negatives. Ours has its default loss and four easy negatives per
                                positive, of which a step shares at most 2,048 (loss.shared_negatives), besides 6,400
                                in-batch positives
    sequence_over_pooled        seconds of an epoch of the sequence tower on packed rows / seconds of an epoch of dssm with a
                                mean-pooled history on unpacked rows. Same positives, history of 50, batch of 4,096 positives

Each user has 51 events of items that follow Zipf's law: the first is only history, the other 50 are positives. RecTools is
installed into `.venv-rectools` if that folder does not exist.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import night
from benchmarks.support import peer_python, say
from model.config import LossConfig, ModelConfig
from model.data.petastorm_reader import SampleFile
from model.training.launch import launch
from model.training.spec import TrainingSpec
from pipelines.contract.negative_kinds import POPULARITY, UNIFORM
from pipelines.contract.schema import FeatureSchema

PEER = "rectools[torch]==0.19.0"
USERS, LENGTH, WIDTH, BLOCKS, HEADS, USERS_PER_STEP = 4000, 50, 64, 2, 2, 128
CATALOGUES = {5_000: [("softmax", 1)], 100_000: [("gBCE", 256), ("sampled_softmax", 256)]}  # the peer's losses by size
SHARED = 2048  # of the 25,600 easy negatives of a step: docs/algorithms.md
KINDS = (UNIFORM, UNIFORM, POPULARITY, POPULARITY)
EPOCHS = 3  # the first of them warms up

Figure = tuple[float, dict[str, Any]]  # the ratio, and its details


def events(users: int, items: int) -> np.ndarray:
    """[users, LENGTH + 1] item indices in the order of time."""
    rng = np.random.default_rng(night.SEED)
    return night.FIRST + (items ** rng.random((users, LENGTH + 1))).astype(np.int32).clip(max=items) - 1


def packed_rows(events_US: np.ndarray, items: int) -> dict[str, np.ndarray]:
    """Columns of a packed table: one row per user, whose positives each see all events before them."""
    users = len(events_US)
    rng = np.random.default_rng(night.SEED + 1)
    negatives = rng.integers(night.FIRST, items + night.FIRST, (users, LENGTH * len(KINDS)), np.int32)
    return {
        "user_index": np.arange(night.FIRST, users + night.FIRST, dtype=np.int32),
        "history": events_US[:, :-1],
        "item_index": events_US[:, 1:],
        "history_seen": np.tile(np.arange(1, LENGTH + 1, dtype=np.int32), (users, 1)),
        "weight": np.ones((users, LENGTH), np.float32),
        "negatives": negatives,
        "negative_kinds": np.tile(np.array(KINDS, np.int32), (users, LENGTH)),
    }


def unpacked_rows(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same positives, one row each, in random order."""
    users = len(packed["user_index"])
    history_ULL = np.zeros((users, LENGTH, LENGTH), np.int32)
    for seen in range(1, LENGTH + 1):
        history_ULL[:, seen - 1, LENGTH - seen :] = packed["history"][:, :seen]
    order = np.random.default_rng(night.SEED + 2).permutation(users * LENGTH)
    rows = {
        "user_index": np.repeat(packed["user_index"], LENGTH),
        "history": history_ULL.reshape(-1, LENGTH),
        "item_index": packed["item_index"].ravel(),
        "weight": packed["weight"].ravel(),
        "negatives": packed["negatives"].reshape(-1, len(KINDS)),
        "negative_kinds": packed["negative_kinds"].reshape(-1, len(KINDS)),
    }
    return {name: values[order] for name, values in rows.items()}


def write(folder: Path, rows: dict[str, np.ndarray], positives_per_row: int) -> list[SampleFile]:
    """Write eight files of one row group each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for group, part in enumerate(np.array_split(np.arange(len(rows["user_index"])), 8)):
        path = folder / f"group={group:05d}.parquet"
        pq.write_table(night.table({name: values[part] for name, values in rows.items()}), path)
        positives = len(part) * positives_per_row if positives_per_row > 1 else None
        files.append(SampleFile(url=f"file://{path}", rows=len(part), positives=positives))
    return files


def spec_of(
    folder: Path,
    items: int,
    files: list[SampleFile],
    model: ModelConfig,
    pack: int | None,
    shared: int | None = None,
    **training: Any,
) -> TrainingSpec:
    """A training on these files."""
    catalogue = night.write_items(folder / "items", items)
    return TrainingSpec(
        features=_schema(items),
        train=files,
        item_features=catalogue[0],
        item_stats=catalogue[1],
        negatives=len(KINDS),
        model=model,
        loss=LossConfig(shared_negatives=shared),
        training=night.TrainingConfig(**training),
        seed=night.SEED,
        epochs=EPOCHS,
        pack=pack,
        output=str(folder / "checkpoint"),
    )


def _schema(items: int) -> FeatureSchema:
    """The users' ids are in no feature, as in SASRec."""
    schema = night.feature_schema(items)
    history = schema.history.model_copy(update={"length": LENGTH})  # type: ignore[union-attr]
    return schema.model_copy(update={"user": [], "history": history})


def _sequence() -> ModelConfig:
    settings = {"blocks": BLOCKS, "heads": HEADS, "width": WIDTH}
    return ModelConfig(
        tower="sequence", hidden=[128], dim=WIDTH, embedding_dim=WIDTH, settings=settings, leave_out=["category"]
    )


def _epoch_seconds(spec: TrainingSpec) -> list[float]:
    """The seconds of each epoch but the first."""
    return [epoch.seconds for epoch in launch(spec).epochs][1:]


def sequence_over_rectools(folder: Path, options: argparse.Namespace) -> Figure:
    """The smaller ratio of both catalogues. Both sides run twice, in turns."""
    python = options.peer or peer_python(".venv-rectools", PEER)
    ratios: dict[str, Any] = {}
    users = max(USERS_PER_STEP, int(USERS * options.scale))
    for items, losses in CATALOGUES.items():
        events_US = events(users, items)
        files = write(folder / f"{items}", packed_rows(events_US, items), LENGTH)
        size = USERS_PER_STEP * LENGTH
        spec = spec_of(folder / f"{items}", items, files, _sequence(), LENGTH, SHARED, batch_size=size)
        order = np.tile(np.arange(LENGTH + 1), users)
        path = folder / f"{items}.npz"
        np.savez(path, users=np.repeat(np.arange(users), LENGTH + 1), items=events_US.ravel(), order=order)
        seconds: dict[str, list[float]] = {"ours": [], **{loss: [] for loss, _ in losses}}
        for _ in range(2):
            for loss, negatives in losses:
                seconds[loss] += _peer_seconds(python, path, loss, negatives)
            seconds["ours"] += _epoch_seconds(spec)
        rates = {name: users * LENGTH / statistics.median(values) for name, values in seconds.items()}
        say(f"{items:,} items, positions per second: " + ", ".join(f"{n} {rate:,.0f}" for n, rate in rates.items()))
        ratios |= {f"{items}": rates["ours"] / max(rate for name, rate in rates.items() if name != "ours")}
        ratios |= {f"{items}_{name}": rate for name, rate in rates.items()}
    return min(ratios[f"{items}"] for items in CATALOGUES), ratios


def _peer_seconds(python: Path | str, path: Path, loss: str, negatives: int) -> list[float]:
    settings = [loss, negatives, WIDTH, BLOCKS, HEADS, LENGTH, USERS_PER_STEP, EPOCHS]
    command = [python, Path(__file__).parent / "peer_rectools.py", path, *settings]
    output = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    return list(json.loads(output.splitlines()[-1]))


def sequence_over_pooled(folder: Path, options: argparse.Namespace) -> Figure:
    """Seconds of an epoch of the sequence tower / seconds of an epoch of mean pooling. Both run twice, in turns."""
    users, items = max(USERS_PER_STEP, int(USERS * options.scale)), 100_000
    packed = packed_rows(events(users, items), items)
    pooled = ModelConfig(hidden=[128], dim=WIDTH, embedding_dim=WIDTH, leave_out=["category"])
    specs = {
        "sequence": spec_of(folder / "s", items, write(folder / "s", packed, LENGTH), _sequence(), LENGTH),
        "pooled": spec_of(folder / "p", items, write(folder / "p", unpacked_rows(packed), 1), pooled, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in specs}
    for _ in range(2):
        for name, spec in specs.items():
            seconds[name] += _epoch_seconds(spec)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return medians["sequence"] / medians["pooled"], medians

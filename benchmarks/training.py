"""Speed of the reader and of training on one machine: `python -m benchmarks.training [PART …]` (about 15 minutes on 2 cores).

Each figure is a ratio of medians within one run; the two sides run in turns. The last printed line is JSON. If parts are
given, only these are measured:

    reader_over_arrow           rows/s of our reader / rows/s of a loop with pyarrow only: a dataset scan, shuffled windows of
                                65,536 rows, lists reshaped from their flat values, batches of 4,096 as views. Same files: 4M
                                rows of 3 scalars and two lists of 20 and 4. The loop keeps the types of the file; our reader
                                returns int64
    fed_over_memory             rows/s of epochs read from files / rows/s of epochs of the same training on tensors in memory
    two_over_one                rows/s of 2 processes x 1 thread / rows/s of 1 process x 1 thread, same global batch of 4,096
                                (the default). The details also have the ratio for a batch of 16,384, where fixed work
                                per process and step weighs less (`large_two_over_one`), and for two independent trainings at
                                the same time with 4,096 each, which is the most that the machine can do (`apart_over_one`)
    over_torch_rechub           samples/s of our DSSM / samples/s of torch-rechub's DSSM (point-wise). Ours reads files;
                                torch-rechub uses its DataLoader on arrays in memory. Same features, dimensions and batch of
                                4,096, 2 cores each. A sample is a positive with its four negatives, which are five rows of a
                                torch-rechub batch. Our loss also uses the other positives of the batch. torch-rechub's loader
                                runs with 0 workers and with 8 (its default); the faster counts
    over_torch_rechub_inbatch   the same against YoutubeSBC, its in-batch softmax with sampling-bias correction, batch 512. Its
                                loss uses 3 of the 511 other items (its default); ours uses all
    embed_over_copy             seconds of the step that embeds all items (1M, 64 floats) / seconds of a plain Spark read of
                                item_features and write of as many random floats; Python workers are warm
    sequence_over_rectools      the sequence tower and RecTools' SASRec: benchmarks/sequence.py
    sequence_over_pooled        the sequence tower and mean pooling: benchmarks/sequence.py
    details                     the measurements of these figures

The user tower reads an id and a history of 20, the item tower an id and a category (100,000 users and items). Layer sizes are
those of benchmarks/night.py; other settings have their defaults. torch-rechub is installed into `.venv-rechub` if that folder
does not exist.

    --scale 0.1                 a tenth of the rows and items
    --peer PYTHON               an interpreter with the peer, instead of .venv-rechub or .venv-rectools
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import torch
from torch import Tensor

from benchmarks import night
from benchmarks.embedding import measure_embedding
from benchmarks.sequence import sequence_over_pooled, sequence_over_rectools
from benchmarks.support import peer_python, say
from model.config import TrainingConfig
from model.data.petastorm_reader import SampleReader, SharedSampleReader, sample_columns
from model.training.build import build_step
from model.training.launch import launch
from model.training.spec import TrainingSpec
from model.training.trainer import TrainingLoop
from pipelines.session import open_session

ROOT = Path(__file__).resolve().parent.parent
READ = ["user_index", "item_index", "weight", "history", "negatives"]
WINDOW, BATCH, INBATCH, LARGE_BATCH = 65_536, 4096, 512, 16_384
READ_ROWS, TRAIN_ROWS, ITEMS = 4_000_000, 65_536, 1_000_000
PEER, PEER_WORKERS = "torch-rechub==0.9.0", (0, 8)

Figure = tuple[float, dict[str, Any]]  # the ratio, and its details


def arrow_loop(paths: list[str], rng: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Batches by a loop with pyarrow only: scan, collect a window, reshape lists, shuffle, cut."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in pads.dataset(paths).to_batches(columns=READ):
        waiting.append(batch)
        rows += len(batch)
        while rows >= WINDOW:
            table = pa.Table.from_batches(waiting)
            yield from _cut(table.slice(0, WINDOW), rng)
            waiting, rows = table.slice(WINDOW).to_batches(), rows - WINDOW
    if rows:
        yield from _cut(pa.Table.from_batches(waiting), rng)


def _cut(table: pa.Table, rng: torch.Generator) -> Iterator[dict[str, Tensor]]:
    order = torch.randperm(len(table), generator=rng)
    tensors = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        values = column.flatten() if pa.types.is_list(column.type) else column
        flat = torch.from_numpy(np.require(values.to_numpy(zero_copy_only=False), requirements="W"))
        tensors[name] = (flat.reshape(len(table), -1) if values is not column else flat)[order]
    for start in range(0, len(table), BATCH):
        yield {name: values[start : start + BATCH] for name, values in tensors.items()}


def reader_over_arrow(folder: Path, options: argparse.Namespace) -> Figure:
    """Rows/s of the reader / rows/s of arrow_loop."""
    rows = int(READ_ROWS * options.scale)
    files = night.write_samples(folder, rows)
    paths = [file.url.removeprefix("file://") for file in files]
    samples = SampleReader(files, READ, TrainingConfig(batch_size=BATCH, shuffle_window=WINDOW), night.SEED, 0, 1)
    seconds: dict[str, list[float]] = {"ours": [], "by_hand": []}
    for turn in range(6):
        started = time.perf_counter()
        with samples.epoch(turn) as batches:
            _drain(batches, rows)
        between = time.perf_counter()
        _drain(arrow_loop(paths, torch.Generator().manual_seed(turn)), rows)
        seconds["ours"].append(between - started)
        seconds["by_hand"].append(time.perf_counter() - between)
    rates = {name: rows / statistics.median(values[1:]) for name, values in seconds.items()}  # the first run warms up
    return rates["ours"] / rates["by_hand"], rates


def _drain(batches: Iterator[dict[str, Tensor]], rows: int) -> None:
    count = sum(len(batch["user_index"]) for batch in batches)
    if count != rows:
        raise RuntimeError(f"read {count} of {rows} rows")


class HalfInMemory(SharedSampleReader):
    """Reads odd epochs from files. Even epochs repeat the batches of the first epoch from memory."""

    in_memory: list[dict[str, Tensor]]

    @contextmanager
    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Iterator[dict[str, Tensor]]]:
        """See SharedSampleReader.epoch."""
        if epoch == 0:
            with super().epoch(0) as batches:
                self.in_memory = list(batches)
        if epoch % 2 == 0:
            yield iter(self.in_memory)
            return
        with super().epoch(epoch) as batches:
            yield batches


class LoopHalfInMemory(TrainingLoop):
    """The training loop of a night, with a HalfInMemory reader."""

    source: HalfInMemory | None = None

    def samples(self, shards: int) -> SharedSampleReader:
        """The same reader for all epochs."""
        columns, config = sample_columns(self.spec.features), self.spec.training
        self.source = self.source or HalfInMemory(self.spec.train, columns, config, self.spec.seed, 0, 1, shards)
        return self.source


def fed_over_memory(folder: Path, options: argparse.Namespace) -> Figure:
    """Rows/s of epochs read from files / rows/s of epochs from memory, in one training."""
    spec = _spec(folder, options, epochs=9)
    with torch.random.fork_rng(devices=[]):
        epochs = LoopHalfInMemory(build_step(spec), spec).run()
    rows = sum(file.rows for file in spec.train)
    rates = [rows / epoch.seconds for epoch in epochs]
    medians = {"fed": statistics.median(rates[1::2]), "memory": statistics.median(rates[2::2])}
    return medians["fed"] / medians["memory"], medians


def two_over_one(folder: Path, options: argparse.Namespace) -> Figure:
    """Rows/s of two processes / rows/s of one, one thread each. The details also have two independent trainings."""
    rates: dict[str, list[float]] = {name: [] for name in ("one", "two", "large_one", "large_two", "apart")}
    for _ in range(2):
        for size, batch in (("", BATCH), ("large_", LARGE_BATCH)):
            for name, processes in (("one", 1), ("two", 2)):
                spec = _spec(folder, options, 3, processes=processes, threads=1, batch_size=batch)
                rates[size + name] += _rates(spec)[1:]
                say(f"{name}, batch {batch:,}: {rates[size + name][-1]:,.0f} rows/s")
        specs = [_spec(folder / f"apart-{number}", options, 3, threads=1, batch_size=BATCH) for number in range(2)]
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            rates["apart"] += [sum(both) for both in zip(*pool.map(_rates, specs))][1:]
        say(f"two apart: {rates['apart'][-1]:,.0f} rows/s")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "large_two_over_one": medians["large_two"] / medians["large_one"],
        "apart_over_one": medians["apart"] / medians["one"],
    }
    return medians["two"] / medians["one"], medians | ratios


def _spec(folder: Path, options: argparse.Namespace, epochs: int, **settings: Any) -> TrainingSpec:
    return night.make_spec(folder, night.write_samples(folder, int(TRAIN_ROWS * options.scale)), epochs, **settings)


def _rates(spec: TrainingSpec) -> list[float]:
    """Rows/s of each epoch."""
    result = launch(spec)
    return [result.rows / spec.epochs / epoch.seconds for epoch in result.epochs]


def over_torch_rechub(folder: Path, options: argparse.Namespace) -> Figure:
    """Samples/s of our DSSM / samples/s of torch-rechub's DSSM."""
    rows = int(TRAIN_ROWS * options.scale)
    positives = night.sample_rows(rows // 8, 0, night.OWN)
    width = 1 + night.NEGATIVES
    per_row = {name: np.repeat(positives[name], width, axis=0) for name in ("user_index", "history")}
    items = np.concatenate([positives["item_index"][:, None], positives["negatives"]], 1).ravel()
    label = np.tile([1] + [0] * night.NEGATIVES, len(positives["item_index"]))
    peer = _peer_rows(folder, per_row["user_index"], per_row["history"], items, label)
    ours = night.write_samples(folder / "ours", rows, night.OWN)
    return _against_peer(folder, options, night.make_spec(folder, ours, 3, batch_size=BATCH), peer, "dssm", rows // 8)


def over_torch_rechub_inbatch(folder: Path, options: argparse.Namespace) -> Figure:
    """Samples/s of our in-batch softmax / samples/s of torch-rechub's YoutubeSBC."""
    rows = int(TRAIN_ROWS * options.scale)
    peer_rows = night.sample_rows(rows // 4 // INBATCH * INBATCH, 0, night.WITHOUT)
    users, history, items = (peer_rows[name] for name in ("user_index", "history", "item_index"))
    peer = _peer_rows(folder, users, history, items, np.zeros_like(items))
    ours = night.write_samples(folder / "ours", rows, night.WITHOUT)
    spec = night.make_spec(folder, ours, 3, batch_size=INBATCH)
    return _against_peer(folder, options, spec, peer, "sbc", len(items))


def _peer_rows(folder: Path, users: np.ndarray, history: np.ndarray, items: np.ndarray, label: np.ndarray) -> Path:
    """Write the arrays of the peer's data set to a file. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabularies = [size + night.FIRST for size in (night.USERS, night.ITEMS, night.CATEGORIES)]
    np.savez(
        folder / "peer.npz",
        sizes=np.array([*vocabularies, night.EMBEDDING, night.HIDDEN, night.DIM]),
        user_id=users,
        history=history,
        item_id=items,
        category=night.categories()[items - night.FIRST],
        sample_weight=night.sampling_probabilities()[items - night.FIRST].astype(np.float32),
        label=label.astype(np.int64),
    )
    return folder / "peer.npz"


def _against_peer(
    folder: Path, options: argparse.Namespace, spec: TrainingSpec, peer: Path, model: str, samples: int
) -> Figure:
    """Samples/s of ours / samples/s of the peer with its faster loader. Both sides run twice, in turns."""
    python = options.peer or peer_python(".venv-rechub", PEER)
    peer_rates: dict[int, list[float]] = {workers: [] for workers in PEER_WORKERS}
    ours: list[float] = []
    for _ in range(2):
        for workers, rates in peer_rates.items():
            command = [
                python,
                str(ROOT / "benchmarks/peer_rechub.py"),
                str(peer),
                model,
                spec.training.batch_size,
                workers,
            ]
            output = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
            rates.append(samples / float(output.split()[-1]))
            say(f"torch-rechub {model}, {workers} workers: {rates[-1]:,.0f} samples/s")
        ours += _rates(spec)[1:]
        say(f"ours: {ours[-1]:,.0f} samples/s")
    medians = {f"workers_{workers}": statistics.median(rates) for workers, rates in peer_rates.items()}
    ratio = statistics.median(ours) / max(medians.values())
    return ratio, {"ours": statistics.median(ours), **medians}


def embed_over_copy(folder: Path, options: argparse.Namespace) -> Figure:
    """Seconds of the step / seconds of the copy."""
    conf = {"spark.master": "local[2]", "spark.driver.memory": "4g", "spark.local.dir": str(folder / "_spark")}
    spark = open_session("nightjar-bench-training", conf)
    try:
        seconds = measure_embedding(spark, folder / "warehouse", int(ITEMS * options.scale), runs=3)
    finally:
        spark.stop()
    return seconds["step"] / seconds["copy"], seconds


PARTS: dict[str, Callable[[Path, argparse.Namespace], Figure]] = {
    part.__name__: part
    for part in (
        reader_over_arrow,
        fed_over_memory,
        two_over_one,
        over_torch_rechub,
        over_torch_rechub_inbatch,
        embed_over_copy,
        sequence_over_rectools,
        sequence_over_pooled,
    )
}


def main(arguments: list[str]) -> None:
    """Measure the given parts, or all. The last printed line is JSON."""
    flags = argparse.ArgumentParser("benchmarks.training", description=(__doc__ or "").splitlines()[0])
    flags.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    flags.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    flags.add_argument("--peer", metavar="PYTHON", help="an interpreter with the peer")
    options = flags.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        flags.error(f"unknown part {', '.join(sorted(unknown))}: use {', '.join(PARTS)}")
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"scale": options.scale}
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as folder:
        for name in options.parts or PARTS:
            figures[name], details[name] = PARTS[name](Path(folder, name), options)
            say(f"{name}: {figures[name]:.2f}")
    print(json.dumps(figures | {"details": details}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

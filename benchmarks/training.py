"""How fast training is fed and runs, on one machine: `python -m benchmarks.training [PART …]` (about 10 minutes on 2 cores).

Every figure is a ratio within one run, of medians over repeats that take turns. The last line printed is JSON; with parts
named, it has these alone:

    reader_over_arrow           rows/s of our reader over a loop written by hand: pyarrow's dataset scan, windows of 65,536
                                rows shuffled, lists reshaped from their flat values, batches of 4,096 views. Same files, 4M
                                rows of 3 scalars and two lists of 20 and 4; tensors of the file's types there, int64 here
    fed_over_memory             rows/s of epochs that are read over epochs of the same training on tensors held in memory
    two_over_one                rows/s of 2 processes x 1 thread over 1 process x 1 thread, same global batch of 4,096,
                                the default. In the details the same with 16,384, where what a process does whole, however
                                few its rows, weighs less (`large_two_over_one`); and two trainings at once that share
                                nothing, each with 4,096, which is as much as the machine has to give (`apart_over_one`)
    over_torch_rechub           samples/s of our DSSM over torch-rechub's (point-wise), from files here, through its own
                                DataLoader over arrays in memory there. Same features, dimensions and batch of 4,096, 2
                                cores each. A sample is a positive with its own four negatives: five rows of its batch.
                                Ours is set against the positives of its batch as well. Its loader runs with 0 workers and
                                with 8, the default; the faster counts
    over_torch_rechub_inbatch   the same over YoutubeSBC, its in-batch softmax with sampling-bias correction, batch 512.
                                Of 511 others it takes 3 into the loss (its default), ours takes all
    embed_over_copy             seconds of the step that embeds all items (1M, 64 floats) over a plain Spark read of
                                item_features and write of as many random floats, Python workers warm
    details                     what is behind them

The towers read an id and a history of 20 on one side, an id and a category on the other (100,000 users and items); widths
are those of benchmarks/night.py, the rest as configured by default. torch-rechub is installed into `.venv-rechub` where it
is not there yet.

    --scale 0.1                 a tenth of the rows and items
    --peer PYTHON               an interpreter that has torch-rechub, instead of that
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
from benchmarks.support import say
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
PEER, PEER_VENV, PEER_WORKERS = "torch-rechub==0.9.0", ROOT / ".venv-rechub", (0, 8)

Figure = tuple[float, dict[str, Any]]  # the ratio, and what is behind it


def by_hand(paths: list[str], draw: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """What one writes without a library: scan, collect a window, reshape lists, shuffle, cut."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for piece in pads.dataset(paths).to_batches(columns=READ):
        waiting.append(piece)
        rows += len(piece)
        while rows >= WINDOW:
            table = pa.Table.from_batches(waiting)
            yield from _cut(table.slice(0, WINDOW), draw)
            waiting, rows = table.slice(WINDOW).to_batches(), rows - WINDOW
    if rows:
        yield from _cut(pa.Table.from_batches(waiting), draw)


def _cut(table: pa.Table, draw: torch.Generator) -> Iterator[dict[str, Tensor]]:
    order = torch.randperm(len(table), generator=draw)
    tensors = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        values = column.flatten() if pa.types.is_list(column.type) else column
        flat = torch.from_numpy(np.require(values.to_numpy(zero_copy_only=False), requirements="W"))
        tensors[name] = (flat.reshape(len(table), -1) if values is not column else flat)[order]
    for start in range(0, len(table), BATCH):
        yield {name: values[start : start + BATCH] for name, values in tensors.items()}


def reader_over_arrow(folder: Path, options: argparse.Namespace) -> Figure:
    """Rows/s of the reader over rows/s of the loop by hand."""
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
        _drain(by_hand(paths, torch.Generator().manual_seed(turn)), rows)
        seconds["ours"].append(between - started)
        seconds["by_hand"].append(time.perf_counter() - between)
    rates = {name: rows / statistics.median(values[1:]) for name, values in seconds.items()}  # the first one warms up
    return rates["ours"] / rates["by_hand"], rates


def _drain(batches: Iterator[dict[str, Tensor]], rows: int) -> None:
    seen = sum(len(batch["user_index"]) for batch in batches)
    if seen != rows:
        raise RuntimeError(f"{seen} of {rows} rows were read")


class HalfInMemory(SharedSampleReader):
    """Reads odd epochs; even ones are the batches of the first one, held in memory."""

    held: list[dict[str, Tensor]]

    @contextmanager
    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Iterator[dict[str, Tensor]]]:
        """See SharedSampleReader.epoch."""
        if epoch == 0:
            with super().epoch(0) as batches:
                self.held = list(batches)
        if epoch % 2 == 0:
            yield iter(self.held)
            return
        with super().epoch(epoch) as batches:
            yield batches


class LoopHalfInMemory(TrainingLoop):
    """The loop of a night on those."""

    source: HalfInMemory | None = None

    def samples(self, shards: int) -> SharedSampleReader:
        """The same source for all epochs."""
        columns, config = sample_columns(self.spec.features), self.spec.training
        self.source = self.source or HalfInMemory(self.spec.train, columns, config, self.spec.seed, 0, 1, shards)
        return self.source


def fed_over_memory(folder: Path, options: argparse.Namespace) -> Figure:
    """Rows/s of epochs that are read over rows/s of epochs in memory, in one training."""
    spec = _spec(folder, options, epochs=9)
    with torch.random.fork_rng(devices=[]):
        epochs = LoopHalfInMemory(build_step(spec), spec).run()
    rows = sum(file.rows for file in spec.train)
    rates = [rows / epoch.seconds for epoch in epochs]
    found = {"fed": statistics.median(rates[1::2]), "memory": statistics.median(rates[2::2])}
    return found["fed"] / found["memory"], found


def two_over_one(folder: Path, options: argparse.Namespace) -> Figure:
    """Rows/s of two processes over rows/s of one, a thread each; beside it what two that share nothing reach together."""
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
    found = {name: statistics.median(values) for name, values in rates.items()}
    beside = {
        "large_two_over_one": found["large_two"] / found["large_one"],
        "apart_over_one": found["apart"] / found["one"],
    }
    return found["two"] / found["one"], found | beside


def _spec(folder: Path, options: argparse.Namespace, epochs: int, **settings: Any) -> TrainingSpec:
    return night.make_spec(folder, night.write_samples(folder, int(TRAIN_ROWS * options.scale)), epochs, **settings)


def _rates(spec: TrainingSpec) -> list[float]:
    """Rows/s of each epoch."""
    result = launch(spec)
    return [result.rows / spec.epochs / epoch.seconds for epoch in result.epochs]


def over_torch_rechub(folder: Path, options: argparse.Namespace) -> Figure:
    """Samples/s of our DSSM over those of torch-rechub's."""
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
    """Samples/s of our in-batch softmax over those of torch-rechub's YoutubeSBC."""
    rows = int(TRAIN_ROWS * options.scale)
    few = night.sample_rows(rows // 4 // INBATCH * INBATCH, 0, night.WITHOUT)
    peer = _peer_rows(folder, few["user_index"], few["history"], few["item_index"], np.zeros_like(few["item_index"]))
    ours = night.write_samples(folder / "ours", rows, night.WITHOUT)
    spec = night.make_spec(folder, ours, 3, batch_size=INBATCH)
    return _against_peer(folder, options, spec, peer, "sbc", len(few["item_index"]))


def _peer_rows(folder: Path, users: np.ndarray, history: np.ndarray, items: np.ndarray, label: np.ndarray) -> Path:
    """A file of the arrays that the peer's data set is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabularies = [size + night.FIRST for size in (night.USERS, night.ITEMS, night.CATEGORIES)]
    np.savez(
        folder / "peer.npz",
        sizes=np.array([*vocabularies, night.EMBEDDING, night.HIDDEN, night.DIM]),
        user_id=users,
        history=history,
        item_id=items,
        category=night.categories()[items - night.FIRST],
        sample_weight=night.chances()[items - night.FIRST].astype(np.float32),
        label=label.astype(np.int64),
    )
    return folder / "peer.npz"


def _against_peer(
    folder: Path, options: argparse.Namespace, spec: TrainingSpec, peer: Path, model: str, samples: int
) -> Figure:
    """Samples/s of ours over those of the faster loader of the peer; both sides run twice, in turns."""
    python = options.peer or _peer_python()
    theirs: dict[int, list[float]] = {workers: [] for workers in PEER_WORKERS}
    ours: list[float] = []
    for _ in range(2):
        for workers, found in theirs.items():
            command = [python, str(ROOT / "benchmarks/peer.py"), str(peer), model, spec.training.batch_size, workers]
            said = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(samples / float(said.split()[-1]))
            say(f"torch-rechub {model}, {workers} workers: {found[-1]:,.0f} samples/s")
        ours += _rates(spec)[1:]
        say(f"ours: {ours[-1]:,.0f} samples/s")
    rates = {f"workers_{workers}": statistics.median(found) for workers, found in theirs.items()}
    ratio = statistics.median(ours) / max(rates.values())
    return ratio, {"ours": statistics.median(ours), **rates}


def _peer_python() -> Path:
    """The interpreter of the peer's own virtual environment, which is made where it is not there."""
    python = PEER_VENV / "bin/python"
    if not python.exists():
        say(f"installing {PEER} into {PEER_VENV.name}")
        subprocess.run([sys.executable, "-m", "venv", str(PEER_VENV)], check=True)
        same = [f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", PEER, *same], check=True)
    return python


def embed_over_copy(folder: Path, options: argparse.Namespace) -> Figure:
    """Seconds of the step over seconds of the copy."""
    conf = {"spark.master": "local[2]", "spark.driver.memory": "4g", "spark.local.dir": str(folder / "_spark")}
    spark = open_session("nightjar-bench-training", conf)
    try:
        found = measure_embedding(spark, folder / "warehouse", int(ITEMS * options.scale), runs=3)
    finally:
        spark.stop()
    return found["step"] / found["copy"], found


PARTS: dict[str, Callable[[Path, argparse.Namespace], Figure]] = {
    part.__name__: part
    for part in (
        reader_over_arrow,
        fed_over_memory,
        two_over_one,
        over_torch_rechub,
        over_torch_rechub_inbatch,
        embed_over_copy,
    )
}


def main(arguments: list[str]) -> None:
    """Measure the parts that are named, or all; the last line printed is JSON."""
    flags = argparse.ArgumentParser("benchmarks.training", description=(__doc__ or "").splitlines()[0])
    flags.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}")
    flags.add_argument("--scale", type=float, default=1.0, help="part of the full size")
    flags.add_argument("--peer", metavar="PYTHON", help="an interpreter that has torch-rechub")
    options = flags.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        flags.error(f"unknown part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"scale": options.scale}
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as folder:
        for name in options.parts or PARTS:
            figures[name], details[name] = PARTS[name](Path(folder, name), options)
            say(f"{name}: {figures[name]:.2f}")
    print(json.dumps(figures | {"details": details}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Shared by the benchmarks: timing, the plain copy that steps are compared with, plots, and a memory monitor."""

import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import matplotlib
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyspark.sql import DataFrame, SparkSession

matplotlib.use("Agg")  # write files, open no window

import matplotlib.pyplot as plt

GB = 1024**3
WORKER_GB = 1
SAMPLE_EVERY = 0.2  # seconds between two measurements of memory
STARTED = time.monotonic()

ROOT = Path(__file__).resolve().parent.parent
PLOTS = ROOT / "docs" / "plots"


def say(text: str) -> None:
    """Print a progress line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:7.1f} s] {text}", flush=True)


def peer_python(folder: str, *packages: str) -> Path:
    """The interpreter of the virtual environment `folder` with packages of peers. Creates it if it does not exist.

    The environment has the same versions of torch and numpy as this one.
    """
    python = ROOT / folder / "bin/python"
    if not python.exists():
        say(f"installing {', '.join(packages)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / folder)], check=True)
        same_versions = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "numpy")]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages, *same_versions], check=True)
    return python


def seconds_of(what: str, call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call. Also prints them."""
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    say(f"{what}: {seconds:.2f} s")
    return seconds


def median_of(what: str, call: Callable[[], object], runs: int) -> float:
    """The median of the seconds of `runs` calls."""
    return statistics.median(seconds_of(f"{what}, run {run + 1} of {runs}", call) for run in range(runs))


def copy(frames: list[DataFrame], folder: Path) -> None:
    """Read and write tables unchanged: a lower bound for the cost of a step over them. Deletes the copy at once."""
    for number, frame in enumerate(frames):
        frame.write.parquet(str(folder / str(number)))
    shutil.rmtree(folder)


def write_once(frame: Callable[[], DataFrame], target: Path) -> None:
    """Write a table unless it exists. A table that a killed run wrote in part is written again."""
    if target.exists():
        return
    staging = target.with_name(f"_half-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    frame().write.parquet(str(staging))
    staging.rename(target)


def panels(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side and a shared y axis."""
    figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    return figure, list(axes[0])


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, and close it."""
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


class MemoryWatch:
    """Measures the peak resident memory of Spark's JVM and its Python workers, and compares it with their limit.

    `limit` is the sum of the heap (spark.driver.memory), 10% of it for memory outside the heap (Spark's overhead factor),
    and WORKER_GB per core for its Python worker. Pages that workers share are counted for each worker, so the peak is an
    upper bound. The Python driver is not counted, because it is the benchmark.
    """

    def __init__(self, spark: SparkSession) -> None:
        jvm: Any = spark._jvm
        self.heap = int(jvm.java.lang.Runtime.getRuntime().maxMemory())
        self.limit = self.heap * 1.1 + WORKER_GB * GB * spark.sparkContext.defaultParallelism
        self.peaks: dict[str, int] = {}  # bytes, by part of the benchmark
        self.part = "start"
        self._jvm = psutil.Process(int(jvm.java.lang.ProcessHandle.current().pid()))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def share(self) -> float:
        """The highest peak, as a share of the limit."""
        return max(self.peaks.values()) / self.limit

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_EVERY):
            total = _resident(self._jvm) + sum(map(_resident_worker, self._jvm.children(recursive=True)))
            self.peaks[self.part] = max(self.peaks.get(self.part, 0), total)


def _resident(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _resident_worker(process: psutil.Process) -> int:
    """Bytes of a Python worker; 0 if the process has ended.

    Also 0 for other programs: Hadoop forks small ones, and right after the fork they report the pages of the JVM.
    """
    try:
        return _resident(process) if "python" in process.name() else 0
    except psutil.Error:
        return 0

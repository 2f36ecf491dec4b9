"""What benchmarks share: seconds of a call, the plain copy that they are held against, and a watch on memory."""

import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import matplotlib
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyspark.sql import DataFrame, SparkSession

matplotlib.use("Agg")  # benchmarks have no screen

import matplotlib.pyplot as plt

GB = 1024**3
WORKER_GB = 1
LOOK_EVERY = 0.2  # seconds between two looks at memory
STARTED = time.monotonic()

PLOTS = Path(__file__).resolve().parent.parent / "docs" / "plots"


def say(text: str) -> None:
    """A progress line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:7.1f} s] {text}", flush=True)


def seconds_of(what: str, call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, said as a progress line."""
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    say(f"{what}: {seconds:.2f} s")
    return seconds


def median_of(what: str, call: Callable[[], object], runs: int) -> float:
    """The median of several runs, in seconds."""
    return statistics.median(seconds_of(f"{what}, run {run + 1} of {runs}", call) for run in range(runs))


def copy(frames: list[DataFrame], folder: Path) -> None:
    """Read and write tables as they are: the least that a step over them can cost. The copy goes at once."""
    for number, frame in enumerate(frames):
        frame.write.parquet(str(folder / str(number)))
    shutil.rmtree(folder)


def write_once(frame: Callable[[], DataFrame], target: Path) -> None:
    """Write a table unless it is there already; what a killed run left half-written is begun again."""
    if target.exists():
        return
    half = target.with_name(f"_half-{target.name}")
    shutil.rmtree(half, ignore_errors=True)
    frame().write.parquet(str(half))
    half.rename(target)


def panels(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels side by side, with one scale of y."""
    figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    return figure, list(axes[0])


def save(figure: Figure, path: Path) -> None:
    """Write a picture for the docs."""
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


class MemoryWatch:
    """The peak of the resident memory of Spark's JVM and every Python worker, and the limit that they were given.

    `limit`: the heap (spark.driver.memory), a tenth of it for what a JVM keeps beside its heap (Spark's own overhead
    factor), and WORKER_GB for the Python worker of each core. Pages that workers share are counted for each of them, so
    the peak is no under-statement. The Python driver is left out: it is the benchmark itself.
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
        """The highest peak over the limit."""
        return max(self.peaks.values()) / self.limit

    def _watch(self) -> None:
        while not self._done.wait(LOOK_EVERY):
            total = _resident(self._jvm) + sum(map(_resident_worker, self._jvm.children(recursive=True)))
            self.peaks[self.part] = max(self.peaks.get(self.part, 0), total)


def _resident(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _resident_worker(process: psutil.Process) -> int:
    """Bytes; 0 for a worker that has just gone.

    Also 0 for what is no Python: Hadoop starts small programs, and for a moment each of them shows the JVM's own pages.
    """
    try:
        return _resident(process) if "python" in process.name() else 0
    except psutil.Error:
        return 0

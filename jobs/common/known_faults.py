"""Translates known technical errors (full disk, missing rights, dead JVM, damaged file) into one message with a remedy."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from py4j.protocol import Py4JNetworkError

from pipelines.contract.errors import InputError, NightjarError
from pipelines.files.broken_files import broken_file, what_is_wrong

# Words in the errors of Spark, Arrow, Python and sqlite for a full disk, quota or file limit.
FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large|database or disk is full")
DENIED = re.compile(
    r"Permission denied|Read-only file system|Mkdirs failed to create|AccessControlException|Access ?Denied"
)
OUT_OF_MEMORY = re.compile(r"java\.lang\.OutOfMemoryError[^\n]*")
PARTITION = re.compile(r"(.*)/([a-z][a-z0-9_]*)/ds=(\d{4}-\d\d-\d\d)/")


class DiskFullError(NightjarError):
    """A disk is full (exit 1)."""


def explained(error: BaseException, root: str) -> NightjarError | None:
    """The error to show to the user if its cause is known, else None. `root`: URI of the warehouse."""
    if isinstance(error, NightjarError):
        return None
    text = "\n".join(str(part) for part in causes(error))
    if full := FULL.search(text):
        places = [root.removeprefix("file://")] if root.startswith("file://") else []
        free_space = ", ".join(
            f"{shutil.disk_usage(p).free / 1e6:,.0f} MB in {p}" for p in (*places, tempfile.gettempdir())
        )
        return DiskFullError(
            f"nothing more can be written ({full.group()}); free now: {free_space}. Tables and releases are unchanged: free "
            "some space, then run the same command again"
        )
    if denied := next((line.strip() for line in text.splitlines() if DENIED.search(line)), None):
        return NightjarError(
            f"a file may not be read or written: {denied[:300]}. Tables and releases are unchanged: give this user the "
            f"right to it (the warehouse is {root}), then run the same command again"
        )
    if (heap := OUT_OF_MEMORY.search(text)) or type(error).__name__ in ("MemoryError", "OutOfMemoryError"):
        what = heap.group() if heap else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return NightjarError(
            f"the memory is not enough ({what}). Tables and releases are whole. For Spark raise spark.driver.memory or "
            "spark.executor.memory; for training lower training.batch_size; then run the same command again"
        )
    if isinstance(error, Py4JNetworkError):
        return NightjarError(
            "Spark's JVM ended while the job ran: it was stopped (with spark-submit or the scheduler) or killed, perhaps for "
            "using too much memory. Tables and releases are whole. Run the same command again: it skips finished steps "
            "and continues"
        )
    file = broken_file(text)
    if file is None:
        return None
    what = f"the file {file} cannot be read: {what_is_wrong(text)}"
    place = PARTITION.match(file)
    if place is None:
        return InputError(what)
    if Path(f"{place.group().removeprefix('file://')}_manifest.json").exists():
        return InputError(
            f"table {place[2]}: {what}. Restore it, or delete the folder {place.group().rstrip('/')} and run the night of "
            f"ds={place[3]} again"
        )
    return InputError(f"table {place[2]}: {what}. Write this partition again")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the chain of errors that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

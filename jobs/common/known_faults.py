"""What breaks in a night through no fault of its inputs or its config: one line for each, with its remedy."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from py4j.protocol import Py4JNetworkError

from pipelines.contract.errors import InputError, NightjarError
from pipelines.files.broken_files import broken_file, what_is_wrong

# How Spark, Arrow, Python and sqlite tell of a disk, a quota or a limit on files that is used up.
FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large|database or disk is full")
PARTITION = re.compile(r"(.*)/([a-z][a-z0-9_]*)/ds=(\d{4}-\d\d-\d\d)/")


class DiskFullError(NightjarError):
    """There is no room for what a job writes (exit 1)."""


def explained(error: BaseException, root: str) -> NightjarError | None:
    """The error for the user, where the cause is known; None where it is not. `root`: of the warehouse, as a URI."""
    if isinstance(error, NightjarError):
        return None
    text = "\n".join(str(part) for part in causes(error))
    if full := FULL.search(text):
        places = [root.removeprefix("file://")] if root.startswith("file://") else []
        rooms = ", ".join(f"{shutil.disk_usage(p).free / 1e6:,.0f} MB in {p}" for p in (*places, tempfile.gettempdir()))
        return DiskFullError(
            f"nothing more can be written ({full.group()}); free now: {rooms}. Tables and releases are as they were: make "
            "room, then run the same command again"
        )
    if isinstance(error, Py4JNetworkError):
        return NightjarError(
            "Spark's JVM has ended while the job ran: it was stopped (spark-submit or the scheduler was), or killed, for "
            "its memory perhaps. Tables and releases are whole: the same command goes on, finished steps are skipped"
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
            f"table {place[2]}: {what}. Put it back, or delete the folder {place.group().rstrip('/')} and run the night of "
            f"ds={place[3]} again: it is written anew"
        )
    return InputError(f"table {place[2]}: {what}. Write this partition again")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, what that was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""Reports in the log which days and files of input tables are missing or not read."""

import logging
from collections.abc import Callable

from pipelines.files.table_files import InputFiles, other_days, shortened
from pipelines.storage.dates import shift
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


class InputReport:
    """Log lines about input tables. Logs each line once, because a step may read a table more than once."""

    def __init__(self, warehouse: Warehouse, uri: Callable[[str], str], days: Callable[[str], list[str]]) -> None:
        """`uri`: table -> its URI. `days`: table -> its days."""
        self._warehouse, self._uri, self._days = warehouse, uri, days
        self._other_days: dict[str, list[tuple[str, str]]] = {}
        self._logged: set[tuple[str, ...]] = set()

    def missing_days(self, table: str, window: list[str]) -> None:
        """Warn about days of the window without a partition, and about misnamed folders that may hold them."""
        missing = sorted(set(window) - set(self._days(table)))
        if missing and self._is_new(table, "missing", *missing):
            log.warning(
                "table %s: %d of the %d requested days have no partition: %s",
                table,
                len(missing),
                len(window),
                ranges(missing),
            )
        self.misnamed_days(table, window[0], window[-1])

    def misnamed_days(self, table: str, first: str, last: str) -> list[str]:
        """Warn about folders that look like days from `first` to `last` but have other names. Returns their names."""
        if table not in self._other_days:
            self._other_days[table] = sorted(other_days(self._warehouse, self._uri(table)).items())
        names = [name for name, day in self._other_days[table] if first <= day <= last]
        if names and self._is_new(table, "misnamed", *names):
            log.warning(
                "table %s (%s): these folders are not read, because the folder of a day must be named ds=YYYY-MM-DD: %s",
                table,
                self._uri(table),
                shortened(names),
            )
        return names

    def unread_files(self, table: str, days: list[str], files: InputFiles) -> None:
        """Warn about hidden files and days without a file. Count the skipped files."""
        hidden, skipped, empty = files.hidden, files.skipped, files.empty_days(days)
        if hidden and self._is_new(table, "hidden", *hidden):
            log.warning(
                "table %s: %d files are not read, because names that begin with _ or . or end in ._COPYING_ are reserved for "
                "private files of writers: %s. Rename them if they hold rows",
                table,
                len(hidden),
                shortened(hidden),
            )
        if empty and self._is_new(table, "empty", *empty):
            log.warning("table %s: no data file on %s", table, ranges(empty))
        if skipped and self._is_new(table, "skipped", *skipped):
            log.info("table %s: skipped %d files that are not data: %s", table, len(skipped), shortened(skipped))

    def _is_new(self, *about: str) -> bool:
        """Whether a line about this has not been logged yet."""
        if about in self._logged:
            return False
        self._logged.add(about)
        return True


def ranges(days: list[str]) -> str:
    """Days in order, as text: `2024-03-02, 2024-03-05 to 2024-03-09`."""
    runs: list[list[str]] = []
    for day in days:
        if runs and runs[-1][-1] == shift(day, -1):
            runs[-1].append(day)
        else:
            runs.append([day])
    return shortened(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)

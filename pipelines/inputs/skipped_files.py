"""What of the input tables is not read, in the log: days and files whose names hide them, days that are missing."""

import logging
from collections.abc import Callable

from pipelines.files.table_files import InputFiles, other_days, shortened
from pipelines.storage.dates import shift
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


class InputReport:
    """Log lines about input tables, each once: a step reads a table more than once."""

    def __init__(self, warehouse: Warehouse, uri: Callable[[str], str], days: Callable[[str], list[str]]) -> None:
        """`uri`: where a table lies; `days`: the days that it has."""
        self._warehouse, self._uri, self._days = warehouse, uri, days
        self._other_days: dict[str, list[tuple[str, str]]] = {}
        self._logged: set[tuple[str, ...]] = set()

    def missing_days(self, table: str, window: list[str]) -> None:
        """Warn of the days of the window for which the table has no partition, and of folders that may be theirs."""
        missing = sorted(set(window) - set(self._days(table)))
        if missing and self._is_new(table, "missing", *missing):
            log.warning(
                "table %s: %d of the %d days asked for have no partition: %s",
                table,
                len(missing),
                len(window),
                ranges(missing),
            )
        self.misnamed_days(table, window[0], window[-1])

    def misnamed_days(self, table: str, first: str, last: str) -> list[str]:
        """Warn of folders that seem to be days from `first` to `last` and are named otherwise. Returns their names."""
        if table not in self._other_days:
            self._other_days[table] = sorted(other_days(self._warehouse, self._uri(table)).items())
        names = [name for name, day in self._other_days[table] if first <= day <= last]
        if names and self._is_new(table, "misnamed", *names):
            log.warning(
                "table %s (%s): these folders are not read, because the folder of a day is called ds=YYYY-MM-DD: %s",
                table,
                self._uri(table),
                shortened(names),
            )
        return names

    def unread_files(self, table: str, days: list[str], files: InputFiles) -> None:
        """Warn of hidden files and of days without a file; count the files that are no data."""
        hidden, skipped, empty = files.hidden, files.skipped, files.empty_days(days)
        if hidden and self._is_new(table, "hidden", *hidden):
            log.warning(
                "table %s: %d files are not read, because names that begin with _ or . or end in ._COPYING_ are private to "
                "their writer: %s. Rename them if they hold rows",
                table,
                len(hidden),
                shortened(hidden),
            )
        if empty and self._is_new(table, "empty", *empty):
            log.warning("table %s: no data file on %s", table, ranges(empty))
        if skipped and self._is_new(table, "skipped", *skipped):
            log.info("table %s: %d files that are no data were skipped: %s", table, len(skipped), shortened(skipped))

    def _is_new(self, *about: str) -> bool:
        if about in self._logged:
            return False
        self._logged.add(about)
        return True


def ranges(days: list[str]) -> str:
    """Days in order as text: `2024-03-02, 2024-03-05 to 2024-03-09`."""
    runs: list[list[str]] = []
    for day in days:
        if runs and runs[-1][-1] == shift(day, -1):
            runs[-1].append(day)
        else:
            runs.append([day])
    return shortened(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)

"""A day that is worked on before its night: the warehouse as an update within the day sees it.

An update is a small night. It reads the events since the one before it, rolls state forward from there (the first of a day
from last night's), and writes the tables that a night writes, in a place of its own. No night ever reads them.
"""

from pipelines.storage.dates import shift
from pipelines.storage.update import Update
from pipelines.storage.warehouse import Warehouse

FOLDER = "updates"


class UpdateWarehouse(Warehouse):
    """Partitions of ds lie with the update; of the day before, with the update that it goes on from, where there is one."""

    update: Update

    def __init__(self, warehouse: Warehouse, ds: str, update: Update) -> None:
        super().__init__(warehouse.spark, warehouse.root)
        self.update, self._ds = update, ds

    def path(self, table: str, ds: str | None = None) -> str:
        """Where a table (or one partition of it) lives."""
        if ds == self._ds:
            return f"{folder_of(self, ds, self.update.number)}/{table}/ds={ds}"
        if self.update.after is not None and ds == shift(self._ds, -1):
            return f"{folder_of(self, self._ds, self.update.after)}/{table}/ds={self._ds}"
        return super().path(table, ds)


def folder_of(warehouse: Warehouse, ds: str, number: int) -> str:
    """Where the tables of an update lie."""
    return f"{_day_of(warehouse, ds)}/{number:03d}"


def forget(warehouse: Warehouse, ds: str, keep: int | None = None) -> None:
    """Remove the tables of all updates up to ds but one of ds; their releases stay."""
    names = (status.getPath().getName() for status in warehouse.children(f"{warehouse.root}/{FOLDER}"))
    days = [name.removeprefix("ds=") for name in names if name.startswith("ds=")]  # What else lies there is not ours.
    for day in (day for day in days if day <= ds):
        if day < ds or keep is None:
            warehouse.delete(_day_of(warehouse, day))
            continue
        for child in warehouse.children(_day_of(warehouse, day)):
            if (name := child.getPath().getName()) != f"{keep:03d}":
                warehouse.delete(f"{_day_of(warehouse, day)}/{name}")


def _day_of(warehouse: Warehouse, ds: str) -> str:
    return f"{warehouse.root}/{FOLDER}/ds={ds}"

"""The warehouse as an update within the day sees it.

An update is a small night. It reads the events since the previous update, rolls the state forward from there (the first
update of a day: from last night's state), and writes the same tables as a night into a separate folder. Nights never read
these tables.
"""

from pipelines.storage.dates import shift
from pipelines.storage.update import Update
from pipelines.storage.warehouse import Warehouse

FOLDER = "updates"


class UpdateWarehouse(Warehouse):
    """Redirects partitions: ds to the folder of this update, the day before to the update that it builds on, if any."""

    update: Update

    def __init__(self, warehouse: Warehouse, ds: str, update: Update) -> None:
        super().__init__(warehouse.spark, warehouse.root)
        self.update, self._ds = update, ds

    def path(self, table: str, ds: str | None = None) -> str:
        """The URI of a table or of one of its partitions."""
        if ds == self._ds:
            return f"{folder_of(self, ds, self.update.number)}/{table}/ds={ds}"
        if self.update.after is not None and ds == shift(self._ds, -1):
            return f"{folder_of(self, self._ds, self.update.after)}/{table}/ds={self._ds}"
        return super().path(table, ds)


def folder_of(warehouse: Warehouse, ds: str, number: int) -> str:
    """The URI of the folder with the tables of an update."""
    return f"{_day_of(warehouse, ds)}/{number:03d}"


def delete_updates(warehouse: Warehouse, ds: str, keep: int | None = None) -> None:
    """Delete the tables of all updates up to ds, except update `keep` of ds. Releases are not deleted."""
    names = (status.getPath().getName() for status in warehouse.children(f"{warehouse.root}/{FOLDER}"))
    days = [name.removeprefix("ds=") for name in names if name.startswith("ds=")]  # Other files are left alone.
    for day in (day for day in days if day <= ds):
        if day < ds or keep is None:
            warehouse.delete(_day_of(warehouse, day))
            continue
        for child in warehouse.children(_day_of(warehouse, day)):
            if (name := child.getPath().getName()) != f"{keep:03d}":
                warehouse.delete(f"{_day_of(warehouse, day)}/{name}")


def _day_of(warehouse: Warehouse, ds: str) -> str:
    return f"{warehouse.root}/{FOLDER}/ds={ds}"

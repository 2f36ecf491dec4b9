"""What an import wrote and from what, so that the same command again does nothing and leaves no day of an older import.

Input tables belong to users and carry no manifests; a receipt is the note that a job of ours made them.
"""

import json
import logging
from typing import Any

from pyspark.sql import DataFrame

from pipelines.storage.manifest import code_version, digest
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


class Receipts:
    """The receipt of one importing job: `_receipts/NAME.json` under the warehouse."""

    def __init__(self, warehouse: Warehouse, name: str, made_of: Any) -> None:
        """`made_of`: all that decides the rows, as JSON-like values (config, source files and their sizes)."""
        self._warehouse = warehouse
        self._uri = f"{warehouse.root}/_receipts/{name}.json"
        self._made_of = digest([name, code_version(), made_of])

    def done(self) -> bool:
        """Whether this very import ended well and its days are still there."""
        receipt = self._read()
        return receipt.get("made_of") == self._made_of and all(
            set(days) <= set(self._warehouse.input_days(self._warehouse.path(table)))
            for table, days in receipt["tables"].items()
        )

    def write(self, tables: dict[str, DataFrame]) -> dict[str, dict[str, int]]:
        """Write input tables (frames with `ds`); days that an earlier import left and this one lacks are removed.

        Returns table -> day -> rows. The receipt is invalid from here until the end: a killed import is done again.
        """
        before: dict[str, list[str]] = self._read().get("tables", {})
        self._save({"made_of": None, "tables": before})
        counts = {}
        for table, frame in tables.items():
            counts[table] = self._warehouse.write_input(frame, table)
            for ds in set(before.get(table, [])) - set(counts[table]):
                self._warehouse.delete(self._warehouse.path(table, ds))
            log.info("%s: %s rows, %s days", table, f"{sum(counts[table].values()):,}", f"{len(counts[table]):,}")
        self._save({"made_of": self._made_of, "tables": {table: sorted(days) for table, days in counts.items()}})
        return counts

    def _read(self) -> dict[str, Any]:
        if not self._warehouse.exists(self._uri):
            return {}
        receipt: dict[str, Any] = json.loads(self._warehouse.read_text(self._uri))
        return receipt

    def _save(self, receipt: dict[str, Any]) -> None:
        self._warehouse.write_text(self._uri, json.dumps(receipt, indent=1))

"""Receipts of imports: which days an importing job wrote, and from which sources.

With a receipt, repeating a command does nothing, and a new import deletes the days that an older one wrote. Input tables have
no manifests, so a receipt also records that a job of this project wrote them.
"""

import json
import logging
from typing import Any

from pyspark.sql import DataFrame

from pipelines.storage.manifest import code_version, digest
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


class ImportReceipt:
    """The receipt of one importing job: `_receipts/NAME.json` under the warehouse."""

    def __init__(self, warehouse: Warehouse, name: str, made_of: Any) -> None:
        """`made_of`: everything that determines the rows, as JSON-like values (config, source files and their sizes)."""
        self._warehouse = warehouse
        self._uri = f"{warehouse.root}/_receipts/{name}.json"
        self._made_of = digest([name, code_version(), made_of])

    def done(self) -> bool:
        """Whether this import has finished, from the same sources, and its days still exist."""
        receipt = self._read()
        return receipt.get("made_of") == self._made_of and all(
            set(days) <= set(self._warehouse.input_days(self._warehouse.path(table)))
            for table, days in receipt["tables"].items()
        )

    def write(self, tables: dict[str, DataFrame]) -> dict[str, dict[str, int]]:
        """Write input tables (frames with `ds`). Deletes days of an earlier import that this one does not have.

        Returns table -> day -> number of rows. The receipt is invalid until the end, so a killed import runs again.
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

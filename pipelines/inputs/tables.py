"""Reads input tables under their contract: returns good rows with standard names and types, counts and reports bad rows."""

import logging
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Checks, Inputs, InputTable
from pipelines.contract.errors import InputError
from pipelines.feature_config import Features
from pipelines.files.broken_files import naming_broken_files
from pipelines.files.parquet_reader import Wanted
from pipelines.inputs.contracts import CONTEXT_STRUCT, CONTRACTS, KEYS, RawTable, quoted
from pipelines.inputs.feature_columns import NumberColumns, feature_columns, number_columns
from pipelines.inputs.report import InputReport
from pipelines.inputs.row_checks import DayCounts, bad_rows_as_json, count_rows, examples, summary, with_reason
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest, Recipe
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


class InputTables:
    """The four input tables (interactions, ranking_logs, users, items), and the counts of the checks on them."""

    def __init__(
        self, warehouse: Warehouse, config: Inputs, checks: Checks | None = None, features: Features | None = None
    ) -> None:
        """`features`: determines which columns of snapshots are read; None reads all columns."""
        self.warehouse = warehouse
        self.checks = checks or Checks()
        self._config: dict[str, InputTable] = {name: getattr(config, name) for name in CONTRACTS}
        self._days: dict[str, list[str]] = {}
        self._watched = feature_columns(features or Features())
        self._numbers = number_columns(features or Features())
        self._reads_all = features is None
        self.report = InputReport(warehouse, self.uri, self.days)
        self._counts: dict[str, dict[str, DayCounts]] = {}  # table -> day -> counts of the check pass

    def uri(self, table: str) -> str:
        """The URI of a table."""
        return self.warehouse.resolve(self._config[table].path or table)

    def days(self, table: str) -> list[str]:
        """The days for which a table has a partition, oldest first."""
        if table not in self._days:
            self._days[table] = self.warehouse.input_days(self.uri(table))
        return self._days[table]

    def present(self, table: str, window: list[str]) -> list[str]:
        """The days of the window for which a table has a partition."""
        wanted = set(window)
        return [ds for ds in self.days(table) if ds in wanted]

    def fingerprint(self, table: str, days: list[str]) -> str:
        """A hash of the data files of these days of a table."""
        return self.warehouse.input_fingerprint(self.uri(table), days)

    def snapshot_at(self, table: str, ds: str, *, strictly_before: bool) -> str | None:
        """The day of the newest snapshot on or before ds (strictly before ds if `strictly_before`); None without one."""
        days = [day for day in self.days(table) if day < ds or (day == ds and not strictly_before)]
        newest = days[-1] if days else None
        last = shift(ds, -1) if strictly_before else ds
        self.report.misnamed_days(table, shift(newest, 1) if newest else "", last)
        return newest

    def events(self, table: str, days: list[str], check: bool = True, *, context: bool = False) -> DataFrame:
        """Good rows of interactions or ranking_logs on these days, with `ds`. An update within the day reads up to its end.

        `check`: first count the bad rows, in one pass, and raise InputError if there are too many. Pass False if an earlier
        step has checked the same files; the returned rows are the same. `context`: add CONTEXT_STRUCT with the columns
        of context features, unless there are none.
        """
        raw = self._raw(table, days)
        if check:
            self._check(raw)
        rows, added = self._good(raw), ["ds"]
        if context and (names := [column.name for column in self._watched.get(table, [])]):
            rows, added = (
                rows.withColumn(CONTEXT_STRUCT, F.struct(*[quoted(name) for name in names])),
                ["ds", CONTEXT_STRUCT],
            )
        rows, update = raw.typed(rows, added), self.warehouse.update
        return rows.where(F.col("event_time") <= F.lit(update.until).cast("timestamp")) if update else rows

    def snapshot(self, table: str, ds: str, check: bool = True) -> DataFrame:
        """Good rows of a snapshot of users or items: ids as strings in `user_id`/`item_id`, features unchanged.

        An id with more than one row is ambiguous, so all its rows are bad. `check` as for `events`.
        """
        raw = self._raw(table, [ds])
        if check:
            self._check(raw)
        features = [name for name in raw.rows.columns if name not in (*CONTRACTS[table], "ds")]
        return raw.typed(self._good(raw), features)

    def count(self, table: str, ds: str) -> int:
        """The number of rows of a day, good and bad."""
        return self._raw(table, [ds]).rows.count()

    def types(self, table: str, days: list[str]) -> dict[str, str]:
        """Column -> Spark type of the columns that are read of these days."""
        return self._raw(table, days).types

    def id_type(self, table: str, ds: str) -> str:
        """The Spark type of user ids (table items: item ids) in the input, so that outputs can have the same type."""
        raw = self._raw(table, [ds])
        key = KEYS.get(table, "user_id")
        return raw.types[raw.renames.get(key, key)]

    def facts(self) -> dict[str, Any]:
        """The counts of the checks by table, for manifests.

        Keys: rows, good, bad (by reason), by_day (rows of the last days), null_share (of the newest day, by column),
        first_event and last_event (of good rows, UTC).
        """
        return {table: self._summary(table, sorted(days)) for table, days in sorted(self._counts.items())}

    def write_quarantine(self, ds: str, recipe: Recipe, tables: tuple[str, ...]) -> dict[str, Manifest]:
        """Write the bad rows of these tables to `quarantine/table=NAME/ds=DS`. Returns the manifests by table.

        Columns: reason, row (JSON of the columns that are read, with their values in the input). A table without bad rows
        gets no partition; a partition of an earlier run of ds is deleted.
        """
        manifests = {}
        for table in tables:
            name = f"quarantine/table={table}"
            bad = self.facts().get(table, {}).get("bad", {})
            if not bad:
                self.warehouse.remove(name, ds)
                continue
            days = [day for day, counts in sorted(self._counts[table].items()) if counts.bad]
            # Each snapshot is read separately: an id may occur once in each of them.
            groups = [[day] for day in days] if table in KEYS else [days]
            rows = [bad_rows_as_json(with_reason(self._raw(table, group))) for group in groups]
            facts = {"reasons": bad}
            manifests[table] = self.warehouse.write(reduce(DataFrame.unionByName, rows), name, ds, recipe, facts=facts)
            log.info("quarantine: wrote %d bad rows of %s for ds=%s", manifests[table].rows, table, ds)
        return manifests

    def _raw(self, table: str, days: list[str]) -> RawTable:
        """Some days of a table, unchanged. Raises InputError if a column is missing or has a wrong type."""
        read = self.warehouse.input_rows(self.uri(table), days, table, self._wanted(table))
        self.report.unread_files(table, days, read.files)
        numbers = self._numbers.get(table, NumberColumns())
        raw = RawTable(table, self.uri(table), days, read.rows, self._config[table].columns, read.columns, numbers)
        raw.require_columns()
        for feature in self._watched.get(table, []):
            if feature.name not in raw.types:
                raise InputError(
                    f"table {table}: feature column {feature.name!r} is missing; it has {', '.join(sorted(read.columns))}. "
                    f"Add it, or remove it from features.{'context' if table == 'interactions' else table.removesuffix('s')}"
                )
        return raw

    def _wanted(self, table: str) -> list[Wanted] | None:
        """The columns to read; None (all columns) for snapshots if no features were passed."""
        if self._reads_all and table in KEYS:
            return None
        renames = self._config[table].columns
        wanted = {
            (column := renames.get(name, name)): Wanted(column, rule.cast, rule.cast == "double", rule.required)
            for name, rule in CONTRACTS[table].items()
        }
        return [*wanted.values(), *(column for column in self._watched.get(table, []) if column.name not in wanted)]

    def _good(self, raw: RawTable) -> DataFrame:
        """The good rows. If the check pass counted no bad rows, the conditions are not evaluated again."""
        counts = self._counts.get(raw.table, {})
        if all(day in counts and not counts[day].bad for day in raw.days):
            return raw.rows
        rows = with_reason(raw)
        return rows.where(F.col("_reason").isNull()).drop("_reason")

    def _check(self, raw: RawTable) -> None:
        """Count the rows and store the counts for `facts`. Raises InputError if too many rows are bad."""
        table, days = raw.table, raw.days
        with naming_broken_files(table):
            counts = count_rows(raw, [column.name for column in self._watched.get(table, [])])
        self._counts.setdefault(table, {}).update(counts)
        totals = self._summary(table, days)
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        rows, bad = totals["rows"], totals["bad"]
        if rows == 0:
            raise InputError(f"table {table} has no rows for ds {span}: check the feed, then run this ds again")
        if not bad:
            return
        if sum(bad.values()) <= self.checks.bad_rows * rows:
            reasons = ", ".join(f"{number:,} where {reason}" for reason, number in bad.items())
            log.warning("table %s, ds %s: continuing without bad rows: %s (of %s)", table, span, reasons, f"{rows:,}")
            return
        example = examples(raw)
        faults = [f"{bad[r]} of {rows} rows where {r}, for example {example[r]}" for r in sorted(bad)]
        raise InputError(
            f"table {table}, ds {span}: {'; '.join(faults)}. That is more than checks.bad_rows = {self.checks.bad_rows:g} "
            "allows: correct or remove these rows, then run this ds again"
        )

    def _summary(self, table: str, days: list[str]) -> dict[str, Any]:
        return summary({day: self._counts[table][day] for day in days})

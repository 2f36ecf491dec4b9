"""Input tables under their contract: good rows with our names and types, bad ones counted, refused or put aside."""

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.config import Checks, Features, Inputs, InputTable
from pipelines.contract.errors import InputError
from pipelines.files.broken_files import naming_broken_files
from pipelines.files.parquet_reader import Wanted
from pipelines.inputs.contracts import CONTRACTS, KEYS, Theirs, exclusive, first_reason, not_known, quoted
from pipelines.inputs.feature_columns import feature_columns, number_columns
from pipelines.inputs.skipped_files import InputReport
from pipelines.storage.dates import shift
from pipelines.storage.manifest import Manifest, Recipe
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")

DAYS_TOLD = 40  # days of a long window that `facts` tells one by one
EXAMPLE_COLUMNS = 8


@dataclass
class Day:
    """What the check pass counted in one partition."""

    rows: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    not_known: dict[str, int] = field(default_factory=dict)
    first: str | None = None
    last: str | None = None


class InputTables:
    """The four tables that users own, by day or by snapshot, and what was counted in them."""

    def __init__(
        self, warehouse: Warehouse, config: Inputs, checks: Checks | None = None, features: Features | None = None
    ) -> None:
        self.warehouse = warehouse
        self.checks = checks or Checks()
        self._config: dict[str, InputTable] = {name: getattr(config, name) for name in CONTRACTS}
        self._days: dict[str, list[str]] = {}
        self._watched = feature_columns(features or Features())
        self._numbers = number_columns(features or Features())
        self._reads_all = features is None
        self.report = InputReport(warehouse, self.uri, self.days)
        self._seen: dict[str, dict[str, Day]] = {}

    def uri(self, table: str) -> str:
        """Where the table lies."""
        return self.warehouse.resolve(self._config[table].path or table)

    def days(self, table: str) -> list[str]:
        """Days for which the table has a partition, oldest first."""
        if table not in self._days:
            self._days[table] = self.warehouse.input_days(self.uri(table))
        return self._days[table]

    def present(self, table: str, window: list[str]) -> list[str]:
        """The days of the window for which the table has a partition."""
        wanted = set(window)
        return [ds for ds in self.days(table) if ds in wanted]

    def fingerprint(self, table: str, days: list[str]) -> str:
        """Identity of these days of the table."""
        return self.warehouse.input_fingerprint(self.uri(table), days)

    def snapshot_at(self, table: str, ds: str, *, strictly_before: bool) -> str | None:
        """The day of the newest snapshot at (or strictly before) ds."""
        found = [day for day in self.days(table) if day < ds or (day == ds and not strictly_before)]
        newest = found[-1] if found else None
        last = shift(ds, -1) if strictly_before else ds
        self.report.misnamed_days(table, shift(newest, 1) if newest else "", last)
        return newest

    def events(self, table: str, days: list[str], check: bool = True) -> DataFrame:
        """Good rows of interactions or ranking_logs on these days, with `ds`; of an update within the day, up to its end.

        `check`: one pass over the rows counts them first; InputError where too many of them break the contract.
        Without it (a step before this one has checked the same files) the rows are the same.
        """
        theirs = self._theirs(table, days)
        if check:
            self._check(theirs)
        rows, update = theirs.typed(self._good(theirs), ["ds"]), self.warehouse.update
        return rows.where(F.col("event_time") <= F.lit(update.until).cast("timestamp")) if update else rows

    def snapshot(self, table: str, ds: str, check: bool = True) -> DataFrame:
        """Good rows of the snapshot of users or items of a day: ids as strings under `user_id`/`item_id`, features as
        they are. An id with more than one row is ambiguous: all its rows are bad. `check` as for events."""
        theirs = self._theirs(table, [ds])
        if check:
            self._check(theirs)
        keep = [name for name in theirs.raw.columns if name not in (*CONTRACTS[table], "ds")]
        return theirs.typed(self._good(theirs), keep)

    def count(self, table: str, ds: str) -> int:
        """Rows of a day, good or bad."""
        return self._theirs(table, [ds]).raw.count()

    def id_type(self, table: str, ds: str) -> str:
        """The type that the user gave the id of a user (for items, of an item), so that what we hand back has it too."""
        theirs = self._theirs(table, [ds])
        key = KEYS.get(table, "user_id")
        return theirs.types[theirs.renames.get(key, key)]

    def facts(self) -> dict[str, Any]:
        """What the checks counted, by table: rows, good, bad (by reason), by_day (of the last days), null_share (of the
        newest day, by column), first_event and last_event (of good rows, UTC)."""
        return {table: self._fold(table, sorted(days)) for table, days in sorted(self._seen.items())}

    def write_quarantine(self, ds: str, recipe: Recipe, tables: tuple[str, ...]) -> dict[str, Manifest]:
        """Put the bad rows that the checks found in these tables aside, as `quarantine/table=NAME/ds=DS`.

        Columns: reason, row (JSON of the columns that are read, as the user wrote them). A table without bad rows has no
        partition, and one that an earlier run of this ds wrote goes. Returns the manifests written, by table.
        """
        written = {}
        for table in tables:
            name = f"quarantine/table={table}"
            bad = self.facts().get(table, {}).get("bad", {})
            if not bad:
                self.warehouse.remove(name, ds)
                continue
            days = [day for day, seen in sorted(self._seen[table].items()) if seen.bad]
            # Snapshots one by one: an id is repeated within its day, not from day to day.
            groups = [[day] for day in days] if table in KEYS else [days]
            rows = [_as_json(self._with_reason(self._theirs(table, group))) for group in groups]
            facts = {"reasons": bad}
            written[table] = self.warehouse.write(reduce(DataFrame.unionByName, rows), name, ds, recipe, facts=facts)
            log.info("quarantine: %d rows of %s put aside for ds=%s", written[table].rows, table, ds)
        return written

    def _theirs(self, table: str, days: list[str]) -> Theirs:
        found = self.warehouse.input_rows(self.uri(table), days, table, self._wanted(table))
        self.report.unread_files(table, days, found.files)
        theirs = Theirs(
            table,
            self.uri(table),
            days,
            found.rows,
            self._config[table].columns,
            found.columns,
            *self._numbers.get(table, ()),
        )
        theirs.require_columns()
        for feature in self._watched.get(table, []):
            if feature.name not in theirs.types:
                raise InputError(
                    f"table {table}: feature column {feature.name!r} is missing; it has {', '.join(sorted(found.columns))}. "
                    f"Add it, or take it out of features.{table.removesuffix('s')}"
                )
        return theirs

    def _wanted(self, table: str) -> list[Wanted] | None:
        """The columns that the config names; None, for all, where there are no features to know those of a snapshot by."""
        if self._reads_all and table in KEYS:
            return None
        renames = self._config[table].columns
        wanted = {
            (column := renames.get(name, name)): Wanted(column, rule.cast, rule.cast == "double", rule.required)
            for name, rule in CONTRACTS[table].items()
        }
        return [*wanted.values(), *(column for column in self._watched.get(table, []) if column.name not in wanted)]

    def _good(self, theirs: Theirs) -> DataFrame:
        """The rows without a reason. Where the check pass found none, nothing needs to be looked at again."""
        seen = self._seen.get(theirs.table, {})
        if all(day in seen and not seen[day].bad for day in theirs.days):
            return theirs.raw
        rows = self._with_reason(theirs)
        return rows.where(F.col("_reason").isNull()).drop("_reason")

    def _with_reason(self, theirs: Theirs) -> DataFrame:
        """The raw rows and `_reason`: the first reason that makes a row bad, null for a good one."""
        rows = theirs.raw.withColumn("_reason", first_reason(theirs.conditions()))
        if theirs.table not in KEYS:
            return rows
        key = theirs.renames.get(KEYS[theirs.table], KEYS[theirs.table])
        repeated = _repeated(theirs, key).select(quoted(key).alias("_key"), F.lit(True).alias("_repeated"))
        # A key that is null or empty has its own reason, which comes first.
        reason = F.coalesce("_reason", F.when(F.col("_repeated"), F.lit(_twice(theirs.table))))
        rows = rows.join(repeated, on=quoted(key) == F.col("_key"), how="left").withColumn("_reason", reason)
        return rows.drop("_key", "_repeated")

    def _check(self, theirs: Theirs) -> None:
        """Count, keep the counts for `facts`, and refuse a table with too many bad rows."""
        table, days = theirs.table, theirs.days
        with naming_broken_files(table):
            counted = self._count(theirs)
        self._seen.setdefault(table, {}).update(counted)
        found = self._fold(table, days)
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        rows, bad = found["rows"], found["bad"]
        if rows == 0:
            raise InputError(f"table {table} has no rows for ds {span}: check the feed, then run this ds again")
        if not bad:
            return
        if sum(bad.values()) <= self.checks.bad_rows * rows:
            counts = ", ".join(f"{number:,} where {reason}" for reason, number in bad.items())
            log.warning("table %s, ds %s: going on without bad rows: %s (of %s)", table, span, counts, f"{rows:,}")
            return
        examples = self._examples(theirs)
        told = [f"{bad[r]} of {rows} rows where {r}, for example {examples[r]}" for r in sorted(bad)]
        raise InputError(
            f"table {table}, ds {span}: {'; '.join(told)}. That is more than checks.bad_rows = {self.checks.bad_rows:g} "
            "allows: correct or remove these rows, then run this ds again"
        )

    def _count(self, theirs: Theirs) -> dict[str, Day]:
        """Everything in one pass: one row of numbers, or one a day. Grouping costs, so a single day goes without."""
        names = {name: theirs.renames.get(name, name) for name in CONTRACTS[theirs.table]}
        names |= {column.name: column.name for column in self._watched.get(theirs.table, [])}
        # A column that is not there knows nothing: its share of nulls is 1, and a night later that may be news.
        present = {name: column for name, column in names.items() if column in theirs.types}
        firsts, good = exclusive(theirs.conditions())
        micros = F.unix_micros(theirs.column("event_time")) if "event_time" in names else F.lit(None).cast("long")
        times = F.when(good, micros)
        aggregates = [F.count(F.lit(1)).alias("_rows"), F.min(times).alias("_first"), F.max(times).alias("_last")]
        aggregates += [_times(not_known(theirs.raw, column)).alias(f"_{name}") for name, column in present.items()]
        aggregates += [_times(condition).alias(f"_bad_{n}") for n, condition in enumerate(firsts.values())]
        alone = len(theirs.days) == 1
        counted = {day: Day(not_known=dict.fromkeys(names, 0)) for day in theirs.days}
        for row in theirs.raw.groupBy(*[] if alone else ["ds"]).agg(*aggregates).collect():
            counted[theirs.days[0] if alone else row["ds"]] = Day(
                rows=row["_rows"],
                bad={reason: row[f"_bad_{n}"] for n, reason in enumerate(firsts) if row[f"_bad_{n}"]},
                not_known={name: row[f"_{name}" if name in present else "_rows"] for name in names},
                first=_utc(row["_first"]),
                last=_utc(row["_last"]),
            )
        if theirs.table in KEYS:
            key = theirs.renames.get(KEYS[theirs.table], KEYS[theirs.table])
            repeated = _repeated(theirs, key).agg(F.sum("_times")).first()
            if repeated is not None and repeated[0]:
                counted[theirs.days[0]].bad[_twice(theirs.table)] = int(repeated[0])
        return counted

    def _examples(self, theirs: Theirs) -> dict[str, str]:
        """One row (the first in order of its text) for each reason. Only ever asked of a table that is refused."""
        ours = [theirs.renames.get(name, name) for name in CONTRACTS[theirs.table]]
        # What the contract speaks of first: a table may have hundreds of columns.
        told = sorted(theirs.raw.columns, key=lambda name: ours.index(name) if name in ours else len(ours))
        rows = self._with_reason(theirs).select(*[quoted(name) for name in told[:EXAMPLE_COLUMNS]], "_reason")
        bad = _as_json(rows)
        return {row["reason"]: row["row"] for row in bad.groupBy("reason").agg(F.min("row").alias("row")).collect()}

    def _fold(self, table: str, days: list[str]) -> dict[str, Any]:
        seen = {day: self._seen[table][day] for day in days}
        rows = sum(day.rows for day in seen.values())
        bad: dict[str, int] = {}
        for day in seen.values():
            for reason, number in day.bad.items():
                bad[reason] = bad.get(reason, 0) + number
        newest = seen[days[-1]]
        return {
            "rows": rows,
            "good": rows - sum(bad.values()),
            "bad": dict(sorted(bad.items())),
            "by_day": {ds: seen[ds].rows for ds in days[-DAYS_TOLD:]},
            "null_share": {n: round(k / max(1, newest.rows), 6) for n, k in sorted(newest.not_known.items())},
            "first_event": min((day.first for day in seen.values() if day.first), default=None),
            "last_event": max((day.last for day in seen.values() if day.last), default=None),
        }


def _twice(table: str) -> str:
    return f"{KEYS[table]} appears more than once in the snapshot"


def _repeated(theirs: Theirs, key: str) -> DataFrame:
    """Ids of a snapshot with more than one row, and `_times`. Rows that are bad by themselves do not count."""
    good = theirs.raw.where(first_reason(theirs.conditions()).isNull())
    return good.groupBy(quoted(key)).agg(F.count(F.lit(1)).alias("_times")).where("_times > 1")


def _as_json(rows: DataFrame) -> DataFrame:
    """Bad rows as (reason, row)."""
    theirs = [quoted(name) for name in rows.columns if name != "_reason"]
    text = F.to_json(F.struct(*theirs), {"ignoreNullFields": "false"})
    return rows.where(F.col("_reason").isNotNull()).select(F.col("_reason").alias("reason"), text.alias("row"))


def _times(condition: Column) -> Column:
    """How many rows a condition holds for."""
    return F.count(F.when(condition, 1))


def _utc(micros: int | None) -> str | None:
    """Microseconds since 1970 as text."""
    return None if micros is None else (datetime(1970, 1, 1) + timedelta(microseconds=micros)).isoformat()

"""Checks the rows of input tables against their contract and counts good and bad rows per day, with reasons."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.inputs.contracts import (
    CONTRACTS,
    KEYS,
    RawTable,
    exclusive,
    first_reason,
    is_missing,
    is_no_number,
    quoted,
)

DAYS_REPORTED = 40  # `summary` reports the row counts of the last so many days
EXAMPLE_COLUMNS = 8


@dataclass
class DayCounts:
    """Counts of the check pass over one partition."""

    rows: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # reason -> rows
    missing: dict[str, int] = field(default_factory=dict)  # column -> rows without a value
    first: str | None = None  # time of the first good event (ISO, UTC)
    last: str | None = None


def with_reason(raw: RawTable) -> DataFrame:
    """The rows and a column `_reason`: the first reason why a row is bad, null for a good row."""
    rows = raw.rows.withColumn("_reason", first_reason(raw.conditions()))
    if raw.table not in KEYS:
        return rows
    key = raw.key
    repeated = _repeated(raw).select(quoted(key).alias("_key"), F.lit(True).alias("_repeated"))
    # Reasons of the row itself come first: a null or empty key is not also reported as repeated.
    reason = F.coalesce("_reason", F.when(F.col("_repeated"), F.lit(_repeated_reason(raw.table))))
    rows = rows.join(repeated, on=quoted(key) == F.col("_key"), how="left").withColumn("_reason", reason)
    return rows.drop("_key", "_repeated")


def count_rows(raw: RawTable, watched: list[str]) -> dict[str, DayCounts]:
    """Count rows, bad rows by reason and missing values, per day, in one pass (snapshots: and one over repeated ids).

    `watched`: feature columns whose missing values are counted in addition to the columns of the contract.
    """
    names = {name: raw.renames.get(name, name) for name in CONTRACTS[raw.table]} | {name: name for name in watched}
    # A missing column counts as all null: if the column appears on a later night, its share of nulls is compared with 1.
    present = {name: column for name, column in names.items() if column in raw.types}
    firsts, good = exclusive(raw.conditions())
    micros = F.unix_micros(raw.column("event_time")) if "event_time" in names else F.lit(None).cast("long")
    times = F.when(good, micros)
    aggregates = [F.count(F.lit(1)).alias("_rows"), F.min(times).alias("_first"), F.max(times).alias("_last")]
    aggregates += [_count(is_missing(raw.rows, column)).alias(f"_{name}") for name, column in present.items()]
    aggregates += [_count(condition).alias(f"_bad_{n}") for n, condition in enumerate(firsts.values())]
    # Grouping is expensive, so a single day is aggregated without it.
    single = len(raw.days) == 1
    counts = {day: DayCounts(missing=dict.fromkeys(names, 0)) for day in raw.days}
    for row in raw.rows.groupBy(*[] if single else ["ds"]).agg(*aggregates).collect():
        counts[raw.days[0] if single else row["ds"]] = DayCounts(
            rows=row["_rows"],
            bad={reason: row[f"_bad_{n}"] for n, reason in enumerate(firsts) if row[f"_bad_{n}"]},
            missing={name: row[f"_{name}" if name in present else "_rows"] for name in names},
            first=_utc(row["_first"]),
            last=_utc(row["_last"]),
        )
    if raw.table in KEYS:
        repeated = _repeated(raw).agg(F.sum("_times")).first()
        if repeated is not None and repeated[0]:
            counts[raw.days[0]].bad[_repeated_reason(raw.table)] = int(repeated[0])
    return counts


def summary(counts: dict[str, DayCounts]) -> dict[str, Any]:
    """The counts of some days, in order, added up for manifests. See `InputTables.facts` for the keys."""
    days = list(counts.values())
    rows = sum(day.rows for day in days)
    bad: dict[str, int] = {}
    for day in days:
        for reason, number in day.bad.items():
            bad[reason] = bad.get(reason, 0) + number
    newest = days[-1]
    return {
        "rows": rows,
        "good": rows - sum(bad.values()),
        "bad": dict(sorted(bad.items())),
        "by_day": {ds: counts[ds].rows for ds in list(counts)[-DAYS_REPORTED:]},
        "null_share": {n: round(k / max(1, newest.rows), 6) for n, k in sorted(newest.missing.items())},
        "first_event": min((day.first for day in days if day.first), default=None),
        "last_event": max((day.last for day in days if day.last), default=None),
    }


def examples(raw: RawTable) -> dict[str, str]:
    """One bad row per reason, as JSON: the first in text order. Called only for tables that are refused."""
    contract = [raw.renames.get(name, name) for name in CONTRACTS[raw.table]]
    # Columns of the contract come first, because a table may have hundreds of columns.
    columns = sorted(raw.rows.columns, key=lambda name: contract.index(name) if name in contract else len(contract))
    vectors = [name for name in raw.numbers.vectors if raw.is_vector(name)]
    shown = [_summary_of_vector(name) if name in vectors else quoted(name) for name in columns[:EXAMPLE_COLUMNS]]
    rows = with_reason(raw).select(*shown, "_reason")
    bad = bad_rows_as_json(rows)
    return {row["reason"]: row["row"] for row in bad.groupBy("reason").agg(F.min("row").alias("row")).collect()}


def _summary_of_vector(name: str) -> Column:
    """A vector in an example: its length, its first elements, and the first element that is no number (from 1; 0: none).

    All of its elements would fill a page.
    """
    vector = quoted(name).cast("array<double>")
    wrong = F.array_position(F.transform(vector, is_no_number), True)
    summary = F.struct(
        F.size(vector).alias("length"), F.slice(vector, 1, 2).alias("begins"), wrong.alias("first_wrong")
    )
    return F.when(vector.isNotNull(), summary).alias(name)


def bad_rows_as_json(rows: DataFrame) -> DataFrame:
    """The bad rows of `with_reason` as (reason, row), where `row` is JSON."""
    columns = [quoted(name) for name in rows.columns if name != "_reason"]
    text = F.to_json(F.struct(*columns), {"ignoreNullFields": "false"})
    return rows.where(F.col("_reason").isNotNull()).select(F.col("_reason").alias("reason"), text.alias("row"))


def _repeated(raw: RawTable) -> DataFrame:
    """Ids of a snapshot with more than one row, and the number of rows `_times`. Ignores rows that are bad by themselves."""
    good = raw.rows.where(first_reason(raw.conditions()).isNull())
    return good.groupBy(quoted(raw.key)).agg(F.count(F.lit(1)).alias("_times")).where("_times > 1")


def _repeated_reason(table: str) -> str:
    return f"{KEYS[table]} appears more than once in the snapshot"


def _count(condition: Column) -> Column:
    """The number of rows for which a condition is true."""
    return F.count(F.when(condition, 1))


def _utc(micros: int | None) -> str | None:
    """Microseconds since 1970 as ISO text."""
    return None if micros is None else (datetime(1970, 1, 1) + timedelta(microseconds=micros)).isoformat()

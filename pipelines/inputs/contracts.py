"""What the tables that users own must be: columns, types, and the rows that no contract allows, each with its reason."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.config import STAGES
from pipelines.contract.errors import InputError
from pipelines.contract.limits import LARGEST, LARGEST_WEIGHT

INTEGERS = {"tinyint", "smallint", "int", "bigint"}
IDS = INTEGERS | {"string"}
TIMES = {"timestamp", "timestamp_ntz"}
NUMBERS = INTEGERS | {"float", "double"}
DAY_MICROS = 86_400_000_000


@dataclass(frozen=True)
class Rule:
    """What a column must be. `cast` is the type that the pipeline works with."""

    types: set[str]
    cast: str
    required: bool = True
    nullable: bool = True

    def allows(self, kind: str) -> bool:
        """Whether a column of this Spark type can be it. Data bases export whole numbers as decimal(38,0)."""
        if kind.startswith("decimal"):
            return "double" in self.types or ("bigint" in self.types and kind.endswith(",0)"))
        return kind in self.types


# A null in a column that is not nullable breaks the row; elsewhere it means "not known".
# The ids are cast to strings here and nowhere else; item_features keeps the type that the user gave them.
CONTRACTS: Mapping[str, Mapping[str, Rule]] = {
    "interactions": {
        "user_id": Rule(IDS, "string", nullable=False),
        "item_id": Rule(IDS, "string", nullable=False),
        "event_time": Rule(TIMES, "timestamp", nullable=False),
        "action": Rule({"string"}, "string", nullable=False),
        "reward": Rule(NUMBERS, "double", required=False),
        "request_id": Rule(IDS, "string", required=False),
    },
    "ranking_logs": {
        "request_id": Rule(IDS, "string", nullable=False),
        "user_id": Rule(IDS, "string", nullable=False),
        "item_id": Rule(IDS, "string", nullable=False),
        "event_time": Rule(TIMES, "timestamp", nullable=False),
        "stage": Rule({"string"}, "string", nullable=False),
        "position": Rule(INTEGERS, "int", required=False),
    },
    "users": {"user_id": Rule(IDS, "string", nullable=False)},
    "items": {
        "item_id": Rule(IDS, "string", nullable=False),
        "publish_time": Rule(TIMES, "timestamp", required=False),
    },
}
KEYS = {"users": "user_id", "items": "item_id"}  # of snapshots: one row an id


@dataclass(frozen=True)
class Theirs:
    """Some days of an input table as the user wrote it: its rows, and what each of our columns is called there."""

    table: str
    uri: str
    days: list[str]
    raw: DataFrame  # the columns that are read, and ds
    renames: Mapping[str, str]
    columns: list[str]  # every column of the files, read or not
    numbers: tuple[str, ...] = ()  # columns of numeric features
    weights: tuple[str, ...] = ()  # columns of weights of a feature's values (arrays)

    @property
    def types(self) -> dict[str, str]:
        """Their column -> Spark type."""
        return dict(self.raw.dtypes)

    def column(self, name: str) -> Column:
        """One of our columns with our type, null where an optional one is not there."""
        cast = CONTRACTS[self.table][name].cast
        theirs = self.renames.get(name, name)
        return (quoted(theirs) if theirs in self.types else F.lit(None)).cast(cast)

    def require_columns(self) -> None:
        """InputError where a column is missing or has a type that it cannot have."""
        for name, rule in CONTRACTS[self.table].items():
            theirs = self.renames.get(name, name)
            if theirs not in self.types:
                # A name that the user gave is meant: that column must be there, optional or not.
                if rule.required or name in self.renames:
                    raise InputError(
                        f"table {self.table} ({self.uri}): column {theirs!r} is missing; it has "
                        f"{', '.join(sorted(self.columns))}. Add it, or name yours under inputs.{self.table}.columns"
                    )
            elif not rule.allows(self.types[theirs]):
                raise InputError(
                    f"table {self.table}, column {theirs!r}: its type is {self.types[theirs]}, wanted "
                    f"{' or '.join(sorted(rule.types))}. Cast it where the table is written"
                )

    def typed(self, rows: DataFrame, keep: list[str]) -> DataFrame:
        """Some of the rows with our names and types, and the columns `keep` as they are."""
        ours = {self.renames.get(name, name) for name in CONTRACTS[self.table]}
        columns = [self.column(name).alias(name) for name in CONTRACTS[self.table]]
        return rows.select(*columns, *[quoted(name) for name in keep if name not in ours])

    def conditions(self) -> dict[str, Column]:
        """Reason -> whether a row is bad for it, never null; on the raw columns, for a pass over all rows should cast none.

        In order: a row that is bad for two reasons counts for the first.
        """
        found: dict[str, Column] = {}
        types = self.types
        present = {n: t for n in CONTRACTS[self.table] if (t := self.renames.get(n, n)) in types}
        for name, theirs in present.items():
            if not CONTRACTS[self.table][name].nullable:
                found[f"{name} is null"] = quoted(theirs).isNull()
        for name, theirs in present.items():
            if name.endswith("_id") and types[theirs] == "string":
                found[f"{name} is empty"] = quoted(theirs) == ""
        if "event_time" in present:
            found["event_time is outside its ds (UTC)"] = ~self._inside_its_day()
        if "reward" in present:
            # NaN sorts above every number, so it fails the upper bound.
            reward = F.coalesce(quoted(present["reward"]).cast("double"), F.lit(0.0))
            found[f"reward is negative, not finite or above {LARGEST_WEIGHT:g}"] = ~reward.between(0.0, LARGEST_WEIGHT)
        if "stage" in present:
            found[f"stage is not one of {', '.join(STAGES)}"] = ~quoted(present["stage"]).isin(*STAGES)
        if "position" in present:
            found["position is negative or above 2147483647"] = ~quoted(present["position"]).between(0, 2**31 - 1)
        if "publish_time" in present:
            year = F.year(self.column("publish_time"))
            found["publish_time is before 1900 or after 9999"] = ~year.between(1900, 9999)
        found |= self._beyond_float32()
        return {reason: F.coalesce(condition, F.lit(False)) for reason, condition in found.items()}

    def _beyond_float32(self) -> dict[str, Column]:
        """Reason -> whether a feature's number is too large to compute with. NaN is a missing number, but no weight."""
        found = {}
        for name in self.numbers:
            if re.match("float|double|decimal", self.types.get(name, "")):
                number = quoted(name).cast("double")
                found[f"{name} is infinite or beyond {LARGEST:g}"] = ~F.isnan(number) & (F.abs(number) > LARGEST)
        for name in self.weights:
            if re.match("array<(float|double|decimal|bigint)", self.types.get(name, "")):
                wrong = F.exists(quoted(name), lambda weight: F.abs(weight.cast("double")) > LARGEST_WEIGHT)
                found[f"{name} holds a weight that is not finite or beyond {LARGEST_WEIGHT:g}"] = wrong
        return found

    def _inside_its_day(self) -> Column:
        """event_time within its ds, in microseconds: formatting a date would cost more than all other checks together."""
        day = F.lit(self.days[0]) if len(self.days) == 1 else F.col("ds")
        start = F.unix_date(day.cast("date")).cast("long") * F.lit(DAY_MICROS)
        since = F.unix_micros(self.column("event_time")) - start
        return (since >= 0) & (since < DAY_MICROS)


def quoted(name: str) -> Column:
    """A column by its name, whatever characters the user put into it."""
    return F.col("`" + name.replace("`", "``") + "`")


def first_reason(conditions: Mapping[str, Column]) -> Column:
    """The first reason for which a row is bad; null for a good row."""
    cases = [(condition, F.lit(reason)) for reason, condition in conditions.items()]
    return reduce(lambda case, pair: case.when(*pair), cases[1:], F.when(*cases[0]))


def exclusive(conditions: Mapping[str, Column]) -> tuple[dict[str, Column], Column]:
    """(reason -> whether it is the first reason of a row, whether a row is good), to count all of them in one pass."""
    firsts, good = {}, F.lit(True)
    for reason, condition in conditions.items():
        firsts[reason] = good & condition
        good = good & ~condition
    return firsts, good


def not_known(frame: DataFrame, name: str) -> Column:
    """Whether a value says nothing: null, NaN, or a list of no elements."""
    kind, value = dict(frame.dtypes)[name], quoted(name)
    if kind in ("float", "double"):
        return value.isNull() | F.isnan(value)
    return value.isNull() | (F.size(value) == 0) if kind.startswith("array") else value.isNull()

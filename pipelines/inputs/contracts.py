"""Contracts of the input tables: columns, types, and the conditions that make a row bad."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.config import STAGES
from pipelines.contract.errors import InputError
from pipelines.contract.limits import LARGEST, LARGEST_WEIGHT
from pipelines.inputs.feature_columns import NumberColumns

INTEGERS = {"tinyint", "smallint", "int", "bigint"}
IDS = INTEGERS | {"string"}
TIMES = {"timestamp", "timestamp_ntz"}
NUMBERS = INTEGERS | {"float", "double"}
VECTORS = {"array<float>", "array<double>"}
DAY_MICROS = 86_400_000_000
CONTEXT_STRUCT = "_context"  # struct column with the columns of interactions that context features are made from


@dataclass(frozen=True)
class Rule:
    """The rule for a column. `types`: allowed Spark types. `cast`: the type that the pipeline works with."""

    types: set[str]
    cast: str
    required: bool = True
    nullable: bool = True

    def allows(self, kind: str) -> bool:
        """Whether the column may have this Spark type.

        Decimals count as double. Without fraction digits they also count as bigint, because databases export whole numbers
        as decimal(38,0).
        """
        if kind.startswith("decimal"):
            return "double" in self.types or ("bigint" in self.types and kind.endswith(",0)"))
        return kind in self.types


# A null makes a row bad if the column is not nullable. Otherwise it means "unknown".
# Ids are cast to strings only here. item_features keeps the type of the input.
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
KEYS = {"users": "user_id", "items": "item_id"}  # key of each snapshot: one row per id


@dataclass(frozen=True)
class RawTable:
    """Some days of an input table with its original names and types. `renames`: standard column name -> name in the table."""

    table: str
    uri: str
    days: list[str]
    rows: DataFrame  # the columns that are read, and ds
    renames: Mapping[str, str]
    columns: list[str]  # all columns of the files, read or not
    numbers: NumberColumns = field(default_factory=NumberColumns)  # of features

    @property
    def types(self) -> dict[str, str]:
        """Column of the table -> Spark type."""
        return dict(self.rows.dtypes)

    @property
    def key(self) -> str:
        """The key column of a snapshot, under its name in the table."""
        return self.renames.get(KEYS[self.table], KEYS[self.table])

    def column(self, name: str) -> Column:
        """A column of the contract in its standard type; null if it is optional and the table lacks it."""
        cast = CONTRACTS[self.table][name].cast
        original = self.renames.get(name, name)
        return (quoted(original) if original in self.types else F.lit(None)).cast(cast)

    def require_columns(self) -> None:
        """Raise InputError if a column is missing or has a type that the contract does not allow."""
        for name, rule in CONTRACTS[self.table].items():
            original = self.renames.get(name, name)
            if original not in self.types:
                # A column that the config renames must exist, even if it is optional.
                if rule.required or name in self.renames:
                    raise InputError(
                        f"table {self.table} ({self.uri}): column {original!r} is missing; it has "
                        f"{', '.join(sorted(self.columns))}. Add it, or set its name under inputs.{self.table}.columns"
                    )
            elif not rule.allows(self.types[original]):
                raise InputError(
                    f"table {self.table}, column {original!r}: its type is {self.types[original]}, wanted "
                    f"{' or '.join(sorted(rule.types))}. Cast it where the table is written"
                )

    def typed(self, rows: DataFrame, unchanged: list[str]) -> DataFrame:
        """Select the columns of the contract under their standard names and types, and the columns `unchanged`."""
        originals = {self.renames.get(name, name) for name in CONTRACTS[self.table]}
        columns = [self.column(name).alias(name) for name in CONTRACTS[self.table]]
        return rows.select(*columns, *[quoted(name) for name in unchanged if name not in originals])

    def conditions(self) -> dict[str, Column]:
        """Reason -> whether it makes a row bad (never null). A row with two reasons counts for the first in this order.

        The conditions use the original columns, so that the pass over all rows casts as little as possible.
        """
        conditions: dict[str, Column] = {}
        types = self.types
        present = {n: column for n in CONTRACTS[self.table] if (column := self.renames.get(n, n)) in types}
        for name, column in present.items():
            if not CONTRACTS[self.table][name].nullable:
                conditions[f"{name} is null"] = quoted(column).isNull()
        for name, column in present.items():
            if name.endswith("_id") and types[column] == "string":
                conditions[f"{name} is empty"] = quoted(column) == ""
        if "event_time" in present:
            conditions["event_time is outside its ds (UTC)"] = ~self._inside_its_day()
        if "reward" in present:
            # NaN sorts above every number, so it fails the upper bound.
            reward = F.coalesce(quoted(present["reward"]).cast("double"), F.lit(0.0))
            conditions[f"reward is negative, not finite or above {LARGEST_WEIGHT:g}"] = ~reward.between(
                0.0, LARGEST_WEIGHT
            )
        if "stage" in present:
            conditions[f"stage is not one of {', '.join(STAGES)}"] = ~quoted(present["stage"]).isin(*STAGES)
        if "position" in present:
            conditions["position is negative or above 2147483647"] = ~quoted(present["position"]).between(0, 2**31 - 1)
        if "publish_time" in present:
            year = F.year(self.column("publish_time"))
            conditions["publish_time is before 1900 or after 9999"] = ~year.between(1900, 9999)
        conditions |= self._beyond_float32() | self._bad_vectors()
        return {reason: F.coalesce(condition, F.lit(False)) for reason, condition in conditions.items()}

    def _beyond_float32(self) -> dict[str, Column]:
        """Reason -> whether a number is too large for float32. NaN counts as a missing number, but is not a valid weight."""
        conditions = {}
        for name in self.numbers.numbers:
            if re.match("float|double|decimal", self.types.get(name, "")):
                number = quoted(name).cast("double")
                conditions[f"{name} is infinite or beyond {LARGEST:g}"] = ~F.isnan(number) & (F.abs(number) > LARGEST)
        for name in self.numbers.weights:
            if re.match("array<(float|double|decimal|bigint)", self.types.get(name, "")):
                wrong = F.exists(quoted(name), lambda weight: F.abs(weight.cast("double")) > LARGEST_WEIGHT)
                conditions[f"{name} holds a weight that is not finite or beyond {LARGEST_WEIGHT:g}"] = wrong
        return conditions

    def _bad_vectors(self) -> dict[str, Column]:
        """Reason -> whether a vector cannot be used. A null instead of a vector is a missing vector."""
        conditions = {}
        for name, length in self.numbers.vectors.items():
            if self.is_vector(name):
                vector = quoted(name)
                conditions[f"{name} does not hold {length} numbers"] = vector.isNotNull() & (F.size(vector) != length)
                wrong = F.exists(vector, is_no_number)
                conditions[f"{name} holds a number that is null, NaN, infinite or beyond {LARGEST:g}"] = wrong
        return conditions

    def is_vector(self, name: str) -> bool:
        """Whether a column has a type that vectors may have."""
        return self.types.get(name) in VECTORS

    def _inside_its_day(self) -> Column:
        """Whether event_time is within its ds. Compares microseconds: formatting dates costs more than all other checks."""
        day = F.lit(self.days[0]) if len(self.days) == 1 else F.col("ds")
        start = F.unix_date(day.cast("date")).cast("long") * F.lit(DAY_MICROS)
        since = F.unix_micros(self.column("event_time")) - start
        return (since >= 0) & (since < DAY_MICROS)


def quoted(name: str) -> Column:
    """A column by name. Allows all characters in the name."""
    return F.col("`" + name.replace("`", "``") + "`")


def is_no_number(element: Column) -> Column:
    """Whether an element of a vector is null, NaN, infinite or beyond LARGEST. Never null. NaN sorts above every number."""
    return element.isNull() | (F.abs(element.cast("double")) > LARGEST)


def first_reason(conditions: Mapping[str, Column]) -> Column:
    """The first reason why a row is bad; null for a good row."""
    cases = [(condition, F.lit(reason)) for reason, condition in conditions.items()]
    return reduce(lambda case, pair: case.when(*pair), cases[1:], F.when(*cases[0]))


def exclusive(conditions: Mapping[str, Column]) -> tuple[dict[str, Column], Column]:
    """(reason -> whether it is the first reason of a row, whether a row is good), so that one pass can count all reasons."""
    firsts, good = {}, F.lit(True)
    for reason, condition in conditions.items():
        firsts[reason] = good & condition
        good = good & ~condition
    return firsts, good


def is_missing(frame: DataFrame, name: str) -> Column:
    """Whether a value is missing: null, NaN or an empty list."""
    kind, value = dict(frame.dtypes)[name], quoted(name)
    if kind in ("float", "double"):
        return value.isNull() | F.isnan(value)
    return value.isNull() | (F.size(value) == 0) if kind.startswith("array") else value.isNull()

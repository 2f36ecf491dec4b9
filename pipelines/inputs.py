"""Input tables under their contract: our column names, our types, and a clear refusal where they do not hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.config import Inputs, InputTable
from pipelines.errors import InputError
from pipelines.storage import Warehouse

INTEGERS = {"tinyint", "smallint", "int", "bigint"}
IDS = INTEGERS | {"string"}
TIMES = {"timestamp", "timestamp_ntz"}
NUMBERS = INTEGERS | {"float", "double"}
STAGES = ("recall", "coarse", "fine", "rerank", "exposed")


@dataclass(frozen=True)
class Rule:
    """What a column must be. `cast` is the type that the pipeline works with."""

    types: set[str]
    cast: str
    required: bool = True


# The ids are cast to strings here and nowhere else; item_features keeps the type that the user gave them.
CONTRACTS: Mapping[str, Mapping[str, Rule]] = {
    "interactions": {
        "user_id": Rule(IDS, "string"),
        "item_id": Rule(IDS, "string"),
        "event_time": Rule(TIMES, "timestamp"),
        "action": Rule({"string"}, "string"),
        "reward": Rule(NUMBERS, "double", required=False),
        "request_id": Rule(IDS, "string", required=False),
    },
    "ranking_logs": {
        "request_id": Rule(IDS, "string"),
        "user_id": Rule(IDS, "string"),
        "item_id": Rule(IDS, "string"),
        "event_time": Rule(TIMES, "timestamp"),
        "stage": Rule({"string"}, "string"),
        "position": Rule(INTEGERS, "int", required=False),
    },
    "users": {"user_id": Rule(IDS, "string")},
    "items": {"item_id": Rule(IDS, "string"), "publish_time": Rule(TIMES, "timestamp", required=False)},
}
# A null here breaks the row; elsewhere it means "not known".
NEVER_NULL = {
    "interactions": ("user_id", "item_id", "event_time", "action"),
    "ranking_logs": ("request_id", "user_id", "item_id", "event_time", "stage"),
    "users": ("user_id",),
    "items": ("item_id",),
}


class InputTables:
    """The four tables that users own, by day or by snapshot."""

    def __init__(self, warehouse: Warehouse, config: Inputs) -> None:
        self.warehouse = warehouse
        self._config: dict[str, InputTable] = {name: getattr(config, name) for name in CONTRACTS}
        self._days: dict[str, list[str]] = {}

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
        return found[-1] if found else None

    def events(self, table: str, days: list[str]) -> DataFrame:
        """Rows of interactions or ranking_logs on these days, with `ds`. InputError where the contract breaks."""
        frame = self._typed(table, self.warehouse.read_input(self.uri(table), days), ["ds"])
        wrong_day = F.date_format("event_time", "yyyy-MM-dd") != F.col("ds")
        bad = {f"{name} is null": F.col(name).isNull() for name in NEVER_NULL[table]}
        bad["event_time is outside its ds (UTC)"] = wrong_day
        if table == "interactions":
            bad["reward is negative or not finite"] = ~F.coalesce(F.col("reward"), F.lit(0.0)).between(0.0, 1e300)
        if table == "ranking_logs":
            bad[f"stage is none of {', '.join(STAGES)}"] = ~F.col("stage").isin(*STAGES)
        self._refuse(table, frame, bad, days)
        return frame

    def snapshot(self, table: str, ds: str) -> DataFrame:
        """The snapshot of users or items of a day; ids as strings under `user_id`/`item_id`, the rest as it is."""
        raw = self.warehouse.read_input(self.uri(table), [ds]).drop("ds")
        frame = self._typed(table, raw, [name for name in raw.columns if name not in CONTRACTS[table]])
        key = NEVER_NULL[table][0]
        self._refuse(table, frame, {f"{key} is null": F.col(key).isNull()}, [ds])
        twice = frame.groupBy(key).count().where("count > 1")
        if example := twice.orderBy(key).first():
            raise InputError(
                f"table {table}, column {key}: {twice.count()} ids appear more than once in the snapshot ds={ds}, "
                f"for example {example[key]!r}. A snapshot has one row an id: remove the repeats"
            )
        return frame

    def id_type(self, table: str, ds: str) -> str:
        """The type that the user gave the table's id, so that what we hand back has it too."""
        key = NEVER_NULL[table][0]
        theirs = self._config[table].columns.get(key, key)
        return dict(self.warehouse.read_input(self.uri(table), [ds]).dtypes).get(theirs, "string")

    def _typed(self, table: str, raw: DataFrame, keep: list[str]) -> DataFrame:
        renames = self._config[table].columns
        types = dict(raw.dtypes)
        columns: list[Column] = []
        for name, rule in CONTRACTS[table].items():
            theirs = renames.get(name, name)
            if theirs not in types:
                if rule.required:
                    raise InputError(
                        f"table {table} ({self.uri(table)}): column {theirs!r} is missing; it has "
                        f"{', '.join(sorted(types))}. Add it, or name yours under inputs.{table}.columns"
                    )
                columns.append(F.lit(None).cast(rule.cast).alias(name))
                continue
            if types[theirs] not in rule.types and not types[theirs].startswith("decimal"):
                raise InputError(
                    f"table {table}, column {theirs!r}: its type is {types[theirs]}, wanted "
                    f"{' or '.join(sorted(rule.types))}. Cast it where the table is written"
                )
            columns.append(F.col(theirs).cast(rule.cast).alias(name))
        ours = {renames.get(name, name) for name in CONTRACTS[table]}
        columns += [F.col(name) for name in keep if name not in ours]
        return raw.select(*columns)

    def _refuse(self, table: str, frame: DataFrame, bad: dict[str, Column], days: list[str]) -> None:
        """One pass over the rows; InputError that counts each kind of bad row and shows one of them."""
        row = F.to_json(F.struct(*[F.col(name) for name in frame.columns[:6]]))
        checks = []
        for number, condition in enumerate(bad.values()):
            checks.append(F.count(F.when(condition, 1)).alias(f"bad_{number}"))
            checks.append(F.min(F.when(condition, row)).alias(f"example_{number}"))
        seen = frame.agg(F.count(F.lit(1)).alias("rows"), *checks).first()
        assert seen is not None
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        if seen["rows"] == 0:
            raise InputError(f"table {table} has no rows for ds {span}: check the feed, then run this ds again")
        wrong = [
            f"{seen[f'bad_{n}']} of {seen['rows']} rows where {what}, for example {seen[f'example_{n}']}"
            for n, what in enumerate(bad)
            if seen[f"bad_{n}"]
        ]
        if wrong:
            raise InputError(
                f"table {table}, ds {span}: {'; '.join(wrong)}. Correct or remove these rows, then run this ds again"
            )

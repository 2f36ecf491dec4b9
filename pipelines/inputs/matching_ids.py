"""Checks that two tables write ids in the same format. Otherwise joins would match nothing, without an error."""

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Checks
from pipelines.contract.errors import InputError
from pipelines.hashing import unit

SAMPLE_SIZE = 100_000  # about so many ids are compared
MIN_IDS = 10  # with fewer ids in the smaller table, the share is not meaningful


@dataclass(frozen=True)
class TableIds:
    """The name of a table and rows with its ids."""

    table: str
    rows: DataFrame


def refuse_mismatched_ids(one: TableIds, other: TableIds, column: str, count: int, checks: Checks) -> float | None:
    """The share of ids of the table with fewer ids that the other table has too; None if it has fewer than MIN_IDS.

    `column`: user_id or item_id, a string in both tables. `count`: the approximate number of ids. Of more than SAMPLE_SIZE
    ids a sample is compared, chosen by a hash of the id. Raises InputError, with an example from each table, if the share is
    below checks.matching_ids.
    """
    part = min(1.0, SAMPLE_SIZE / max(1, count))
    ids = [
        table.rows.select(F.col(column).alias("id"), *[F.lit(n == position).alias(f"in_{n}") for n in (0, 1)])
        for position, table in enumerate((one, other))
    ]
    both = ids[0].unionByName(ids[1]).where(unit("matching ids", 0, F.col("id")) < part)
    both = both.groupBy("id").agg(F.max("in_0").alias("in_0"), F.max("in_1").alias("in_1"))
    row = both.agg(
        F.count(F.when(F.col("in_0"), 1)).alias("one"),
        F.count(F.when(F.col("in_1"), 1)).alias("other"),
        F.count(F.when(F.col("in_0") & F.col("in_1"), 1)).alias("common"),
        F.min(F.when(~F.col("in_1"), F.col("id"))).alias("only_one"),
        F.min(F.when(~F.col("in_0"), F.col("id"))).alias("only_other"),
    ).first()
    assert row is not None
    fewer = min(row["one"], row["other"])
    if fewer < MIN_IDS:
        return None
    share = float(row["common"] / fewer)
    if share < checks.matching_ids:
        compared = "" if part == 1 else " that were compared"
        raise InputError(
            f"table {one.table}, column {column}: {row['common']} of its {row['one']} ids{compared} are among the "
            f"{row['other']} of {other.table}, for example {one.table} has {row['only_one']!r} and {other.table} has "
            f"{row['only_other']!r}. Write them in one format (leading zeros, decimals, capitals) in both tables, or "
            f"lower checks.matching_ids (= {checks.matching_ids:g}) if the tables have different {column.removesuffix('_id')}s"
        )
    return share

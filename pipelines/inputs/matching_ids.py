"""Whether two tables write the ids of users or items alike: ids that are written differently match nothing, silently."""

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Checks
from pipelines.contract.errors import InputError
from pipelines.hashing import unit

ENOUGH = 100_000  # ids, about, that are compared
FEWEST = 10  # ids of the smaller table below which a share says nothing


@dataclass(frozen=True)
class Ids:
    """A table and the rows that hold its ids."""

    table: str
    rows: DataFrame


def refuse_other_ids(one: Ids, other: Ids, column: str, count: int, checks: Checks) -> float | None:
    """The share of the ids of the table with fewer of them that the other one has too; None where these are too few.

    `column`: user_id or item_id, a string in both. `count`: about how many ids there are; of more than ENOUGH some are
    compared, chosen by a hash of the id. Raises InputError if the share is below checks.matching_ids, with an id of each
    table.
    """
    part = min(1.0, ENOUGH / max(1, count))
    ids = [
        ids.rows.select(F.col(column).alias("id"), *[F.lit(n == place).alias(f"in_{n}") for n in (0, 1)])
        for place, ids in enumerate((one, other))
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
    if fewer < FEWEST:
        return None
    share = float(row["common"] / fewer)
    if share < checks.matching_ids:
        compared = "" if part == 1 else " that were compared"
        raise InputError(
            f"table {one.table}, column {column}: {row['common']} of its {row['one']} ids{compared} are among the "
            f"{row['other']} of {other.table}, for example {one.table} has {row['only_one']!r} and {other.table} has "
            f"{row['only_other']!r}. Write them alike in both tables (leading zeros, decimals, capitals), or lower "
            f"checks.matching_ids (= {checks.matching_ids:g}) if the tables are of different {column.removesuffix('_id')}s"
        )
    return share

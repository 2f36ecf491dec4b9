"""What must hold of positives before they are moved into place: nothing of the future, no row twice, numbers that count."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.errors import InputError
from pipelines.hashing import hashed

REQUIRED = (
    "row_key",
    "user_id",
    "item_id",
    "event_time",
    "user_index",
    "item_index",
    "history",
    "example_age",
    "weight",
)
CHECKED_ROWS = 2_000  # rows whose histories are looked up item by item
MINIMUM_INDEX = 1  # 0 is padding: no user and no item


def check_rows(staged: DataFrame) -> int:
    """InputError where a staged row breaks a promise of its own: leakage, weights, nulls, keys. Returns the rows.

    Holds for every row: the history ends before the event, the weight is a number above 0, ids and indices are there.
    """
    # Spark holds NaN to be larger than any number.
    weighty = (F.col("weight") > 0) & (F.col("weight") < float("inf"))
    probable = (F.col("keep_probability") > 0) & (F.col("keep_probability") <= 1)
    wrong: dict[str, tuple[str, Column]] = {
        f"column {name}": ("rows have null", F.col(name).isNull()) for name in REQUIRED
    }
    wrong |= {
        "column history_until": (
            "rows have a history that reaches their own event or beyond it (leakage)",
            F.col("history_until") >= F.col("event_time"),
        ),
        "column weight ": ("rows have a weight that is not above 0 and finite", ~weighty),
        "column keep_probability": ("rows have a chance outside (0, 1]", ~probable),
        "column user_index ": ("rows have an index below 1", F.col("user_index") < MINIMUM_INDEX),
        "column item_index ": ("rows have an index below 1", F.col("item_index") < MINIMUM_INDEX),
        "column example_age ": ("rows are younger than the end of ds", F.col("example_age") < 0),
    }
    counts = [F.count(F.when(condition, 1)).alias(str(n)) for n, (_, condition) in enumerate(wrong.values())]
    row = staged.agg(F.count(F.lit(1)).alias("rows"), *counts).first()
    assert row is not None
    for number, (place, (what, condition)) in enumerate(wrong.items()):
        if row[str(number)]:
            _refuse(place.strip(), row[str(number)], what, staged.where(condition))
    return int(row["rows"])


def check_counts(rows: int, counts: dict[str, int]) -> None:
    """InputError where the staged rows are not the interactions less every reason to drop one: none vanishes uncounted."""
    dropped = sum(number for name, number in counts.items() if name.startswith("dropped"))
    if not rows == counts["kept"] == counts["interactions"] - dropped:
        raise InputError(
            f"table positives: {rows} rows were written, but of {counts['interactions']} interactions {dropped} were dropped "
            f"and {counts['kept']} kept. Nothing was written; please report this"
        )


def check_keys(staged: DataFrame) -> None:
    """InputError where two staged rows have one row_key: every random choice of the night hangs on it."""
    twice = staged.groupBy("row_key").agg(F.count(F.lit(1)).alias("rows")).where("rows > 1")
    if example := twice.first():
        rows = staged.where(F.col("row_key") == example["row_key"])
        _refuse("column row_key", twice.count(), "keys are those of several rows", rows)


def check_histories(
    staged: DataFrame, rows: int, events: DataFrame, state: DataFrame | None, *, leave_one_out: bool
) -> int:
    """InputError where a history holds what it must not, looked up item by item for about 2,000 rows. Returns the pairs.

    `rows`: of `staged`. `events`: user_id, item_index, event_time of every positive of the night. `state`: user_histories
    of the night before. Strictly before: each item of a history is a positive of this user, earlier than the row.
    Leave one out: it is a positive of this user and not the row's own item.
    """
    # Whole users, chosen by hash, so that their logs can be chosen alike; a limit, so that no user is too many rows.
    one_in = max(1, rows // CHECKED_ROWS)
    drawn = F.pmod(hashed("history check", 0, F.col("user_id")), F.lit(one_in)) == 0
    held = (
        staged.where(drawn)
        .select("user_id", "item_index", "event_time", "history")
        .limit(2 * CHECKED_ROWS)
        .select("user_id", "item_index", "event_time", F.explode("history").alias("item"))
        .where("item != 0")
    )
    did = events.where(drawn).select("user_id", F.col("item_index").alias("item"), F.col("event_time").alias("at"))
    if state is not None:
        listed = "known_items" if leave_one_out else "history_items"
        past = state.where(drawn).select("user_id", F.posexplode(listed).alias("place", "item"), "history_times")
        # The state is of the nights before; times stand beside the histories alone.
        at = F.lit(None).cast("timestamp") if leave_one_out else F.col("history_times")[F.col("place")]
        did = did.unionByName(past.select("user_id", "item", at.alias("at")))
    first = did.groupBy("user_id", "item").agg(F.min("at").alias("at"), F.lit(True).alias("did"))
    looked_up = held.join(first, on=["user_id", "item"], how="left").persist()
    if leave_one_out:
        wrong, what = (
            F.col("did").isNull() | (F.col("item") == F.col("item_index")),
            "its own or no positive of its user",
        )
    else:
        wrong, what = F.col("did").isNull() | (F.col("at") >= F.col("event_time")), "no earlier positive of its user"
    counted = looked_up.agg(F.count(F.lit(1)).alias("pairs"), F.count(F.when(wrong, 1)).alias("wrong")).first()
    assert counted is not None
    if counted["wrong"]:
        _refuse("column history", counted["wrong"], f"items of histories are {what} (leakage)", looked_up.where(wrong))
    looked_up.unpersist()
    return int(counted["pairs"])


def _refuse(place: str, number: int, what: str, rows: DataFrame) -> None:
    shown = [name for name in rows.columns if name in ("row_key", "user_id", "item_index", "item", "event_time")]
    example = rows.select(F.to_json(F.struct(*shown)).alias("row")).orderBy("row").first()
    told = example["row"] if example else "none"
    raise InputError(
        f"table positives, {place}: {number} {what}, for example {told}. Nothing was written; please report this"
    )

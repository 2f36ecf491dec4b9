"""Checks the rows of `positives` before they are moved into place: values, indices, and that all rows are accounted for."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.positives.select import DOWNSAMPLED, DROPPED, KNOWN_ITEM, NOT_LIVE, OVER_CAP

REQUIRED = ("row_key", "user_id", "item_id", "event_time", "user_index", "item_index", "example_age", "weight")
MINIMUM_INDEX = 1  # 0 is padding, which no user and no item has
FILTERS = {
    "dropped_repeated": "repeat another row",
    "dropped_deduplicated": "are not the one that counts of their user, item and day (positives.deduplicate, day_reward)",
    "dropped_unrewarded": "have a reward of 0",
    "dropped_held_out": "are the last one of their user (evaluation.split)",
    f"dropped_{NOT_LIVE}": "have an item_id that is not live: absent from table items, or published later",
    f"dropped_{KNOWN_ITEM}": "are of an item that their user had before (positives.repeats)",
    f"dropped_{DOWNSAMPLED}": "were dropped by popularity (positives.downsample)",
    f"dropped_{OVER_CAP}": "are beyond positives.per_user_cap",
}


def check_rows(staged: DataFrame, counts: dict[str, int]) -> dict[str, int]:
    """Raises InputError if a staged row has a wrong value (weight, null, index), if rows are missing, or if none trains.

    `counts`: interactions, and how many of them are not positives (dropped_...); all others must be in `staged`.
    Returns the number of positives, of those dropped for each reason, and of those kept, of which held_back are in the
    valid split. Of the rows that the night before held back: carried train now, carried_not_live are dropped because no
    snapshot describes their item.
    """
    # In Spark, NaN is greater than all numbers.
    has_weight = (F.col("weight") > 0) & (F.col("weight") < float("inf"))
    is_probability = (F.col("keep_probability") > 0) & (F.col("keep_probability") <= 1)
    wrong: dict[str, tuple[str, Column]] = {
        f"column {name}": ("rows have null", F.col(name).isNull()) for name in REQUIRED
    }
    wrong |= {
        "column weight ": ("rows have a weight that is not above 0 and finite", ~has_weight),
        "column keep_probability": ("rows have a chance outside (0, 1]", ~is_probability),
        "column user_index ": ("rows have an index below 1", F.col("user_index") < MINIMUM_INDEX),
        "column item_index ": ("rows have an index below 1", F.col("item_index") < MINIMUM_INDEX),
        "column example_age ": ("rows are younger than the end of ds", F.col("example_age") < 0),
        "column split": (
            "rows are dropped and in a split, or neither",
            F.col("split").isNull() == F.col("dropped").isNull(),
        ),
    }
    aggregates = [F.count(F.when(condition, 1)).alias(str(n)) for n, (_, condition) in enumerate(wrong.values())]
    own, carried = ~F.col("carried"), F.col("carried")
    aggregates += [F.count(F.when(own & (F.col("dropped") == reason), 1)).alias(reason) for reason in DROPPED]
    aggregates += [F.count(F.when(own, F.col("split"))).alias("kept"), F.count(F.when(own, 1)).alias("rows")]
    aggregates += [F.count(F.when(F.col("split") == split, 1)).alias(split) for split in ("train", "valid")]
    aggregates += [F.count(F.when(carried, F.col("split"))).alias("carried")]
    aggregates += [F.count(F.when(carried, F.col("dropped"))).alias("carried_not_live")]
    row = staged.agg(*aggregates).first()
    assert row is not None
    for number, (place, (what, condition)) in enumerate(wrong.items()):
        if row[str(number)]:
            _refuse(place.strip(), row[str(number)], what, staged.where(condition))
    written = {"positives": row["rows"]} | {f"dropped_{reason}": row[reason] for reason in DROPPED}
    written |= {"kept": row["kept"], "held_back": row["valid"]}
    written |= {name: row[name] for name in ("carried", "carried_not_live")}
    check_counts(counts | written)
    if not row["train"]:
        _refuse_nothing_to_train_on(staged, counts | written)
    return written


def check_counts(counts: dict[str, int]) -> None:
    """Raises InputError unless every interaction is either kept or counted as dropped for some reason."""
    dropped = sum(number for name, number in counts.items() if name.startswith("dropped"))
    if counts["kept"] != counts["interactions"] - dropped:
        raise InputError(
            f"table positives: {counts['positives']} rows were written, but of {counts['interactions']} interactions "
            f"{dropped} were dropped and {counts['kept']} kept. Nothing was written; please report this"
        )
    carried = counts["carried"] + counts["carried_not_live"]
    if carried != counts.get("held_back_before", carried):
        raise InputError(
            f"table positives: the night before held {counts['held_back_before']} rows back, and {carried} were carried into "
            "this one. Nothing was written; please report this"
        )


def _refuse_nothing_to_train_on(staged: DataFrame, counts: dict[str, int]) -> None:
    """Raises InputError with the number of rows that each filter dropped."""
    if counts["kept"]:
        raise InputError(
            f"table positives: all {counts['kept']} rows that are left are in the valid split (the last hours of ds, "
            "positives.valid_hours), so there is no row to train on. Lower positives.valid_hours, or read more days "
            "with --bootstrap-days N"
        )
    reasons = [f"{number} {FILTERS.get(name, name)}" for name, number in counts.items() if number and "dropped" in name]
    foreign = staged.where(F.col("dropped") == NOT_LIVE).agg(F.min("item_id")).first()
    example = f", for example {foreign[0]!r}" if foreign and foreign[0] is not None else ""
    raise InputError(
        f"table positives: no row is left to train on. Of {counts['interactions']} interactions whose action counts, "
        f"{', '.join(reasons)}{example}. Check that interactions and items are of the same product and write item_id alike, "
        "and the settings under positives"
    )


def _refuse(place: str, number: int, what: str, rows: DataFrame) -> None:
    """Raises InputError with the first of the wrong rows as an example."""
    shown = [name for name in rows.columns if name in ("row_key", "user_id", "item_index", "item", "event_time")]
    example = rows.select(F.to_json(F.struct(*shown)).alias("row")).orderBy("row").first()
    shown_row = example["row"] if example else "none"
    raise InputError(
        f"table positives, {place}: {number} {what}, for example {shown_row}. Nothing was written; please report this"
    )

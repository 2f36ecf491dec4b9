"""The checks of staged samples, on the samples of a small night: good ones pass, changed ones are refused."""

import dataclasses
from collections.abc import Iterator

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Inputs
from pipelines.contract.errors import InputError
from pipelines.night import Night
from pipelines.positives.select import is_positive
from pipelines.samples.checks import check_samples
from pipelines.samples.context_tables import ContextTables
from pipelines.samples.user_context import SamplingSettings
from pipelines.storage.dates import shift
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, SECOND


def context_tables(warehouse: Warehouse, settings: SamplingSettings) -> ContextTables:
    """The context tables of build_negatives on the second night."""
    night = Night.open(warehouse, Inputs(), SECOND, 17)
    read = warehouse.read
    return ContextTables(
        settings,
        CONFIG.positives.known_items,
        read("positives", SECOND).select(F.xxhash64("user_id").alias("user_key")).distinct(),
        read("positives", SECOND),
        read("item_stats", SECOND).select(F.xxhash64("item_id").alias("item_key"), "item_index"),
        read("user_histories", SECOND),
        read("user_histories", shift(SECOND, -1)),
        night.inputs.events("interactions", [SECOND], check=False),
        is_positive(CONFIG.positives),
        night.inputs.events("ranking_logs", [SECOND], check=False).withColumn("is_candidate", F.lit(True)),
    )


SETTINGS = SamplingSettings(CONFIG.negatives, 17, 1000, {}, CONFIG.features.history.length)


@pytest.fixture(scope="module")
def samples(nights: Warehouse) -> Iterator[DataFrame]:
    frame = nights.read("samples", SECOND).persist()
    yield frame
    frame.unpersist()


def test_the_samples_of_a_night_pass_every_check(nights: Warehouse, samples: DataFrame) -> None:
    facts = check_samples(samples, context_tables(nights, SETTINGS), SETTINGS, CONFIG)
    rows = samples.where("group = '00000'").collect()
    assert {row["split"] for row in rows} == {"train", "valid"}
    assert facts["checked_negatives"] == sum(len(row["negatives"]) for row in rows)
    assert facts["checked_history_items"] == sum(item > 0 for row in rows for item in row["history"]) > 0
    written = nights.require("samples", SECOND, "").facts
    assert {name: written[name] for name in facts} == facts


def replaced(name: str, place: int, value: str) -> str:
    """SQL for an array with another value at one position (from 0)."""
    return f"transform({name}, (x, n) -> if(n = {place}, {value}, x))"


# Fault -> the column, its value in one row as SQL, and a part of the message.
BROKEN = {
    "its own positive": ("negatives", replaced("negatives", 2, "item_index"), "are the row's own positive"),
    "repeated": ("negatives", replaced("negatives", 2, "negatives[0]"), "occur twice in their row"),
    "too few": ("negatives", "slice(negatives, 1, 3)", "rows do not have 7 negatives"),
    "log q of a hard negative": (
        "negative_log_q",
        "transform(negative_log_q, q -> if(q = 0, -1, q))",
        "have a log q that does not match their kind",
    ),
    "log q is NaN": (
        "negative_log_q",
        "transform(negative_log_q, q -> if(q < 0, float('nan'), q))",
        "have a log q that does not match their kind",
    ),
    "leakage": ("history_until", "event_time", "reaches their own event"),
    "known item": (
        "negatives",
        replaced("negatives", 2, "known_item"),
        "are items that the user has, did or was shown",
    ),
    "own item in the history": ("history", replaced("history", 0, "item_index"), "are not an earlier positive"),
    "item of another user": ("history", replaced("history", 0, "999"), "are not an earlier positive of the row's user"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_samples_that_fail_a_check_are_refused(nights: Warehouse, samples: DataFrame, case: str) -> None:
    column, changed, message = BROKEN[case]
    state = nights.read("user_histories", SECOND).select("user_id", F.col("known_items")[0].alias("known_item"))
    # A row whose history does not hold its own item, so that its own item is no earlier positive.
    fresh = samples.where(~F.array_contains("history", F.col("item_index")) & (F.col("history")[0] > 0))
    fresh = fresh.join(state, on="user_id").where("known_item != item_index")
    first = fresh.where("group = '00000'").agg(F.min("row_key").alias("first_key"))
    staged = samples.join(state, on="user_id").crossJoin(first)
    value = F.when(F.col("row_key") == F.col("first_key"), F.expr(changed)).otherwise(F.col(column))
    staged = staged.withColumn(column, value.cast(samples.schema[column].dataType))
    with pytest.raises(InputError) as caught:
        check_samples(staged, context_tables(nights, SETTINGS), SETTINGS, CONFIG)
    assert f"table samples, column {column}: " in str(caught.value)
    assert message in str(caught.value)
    assert "for example" in str(caught.value)


def test_leave_one_out_histories_may_hold_later_items_but_not_the_own_item(
    nights: Warehouse, samples: DataFrame
) -> None:
    settings = dataclasses.replace(SETTINGS, leave_one_out=True)
    contexts = context_tables(nights, settings)
    pool = contexts.positives.where("dropped is null").select("user_id", "item_index").distinct()
    pool = pool.groupBy("user_id").agg(F.array_sort(F.collect_set("item_index")).alias("all"))
    staged = samples.join(pool, on="user_id").withColumn("history_until", F.lit(None).cast("timestamp"))
    ahead = staged.withColumn("history", F.array_except("all", F.array("item_index")))
    assert check_samples(ahead, contexts, settings, CONFIG)["checked_history_items"] > 0
    with pytest.raises(InputError, match="are the row's own item, or not a positive of its user"):
        check_samples(staged.withColumn("history", F.col("all")), contexts, settings, CONFIG)

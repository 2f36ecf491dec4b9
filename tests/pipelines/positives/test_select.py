"""Selection of positives and their rewards, and the checks of `positives` before it is written."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.config import Downsample, Positives
from pipelines.contract.errors import InputError
from pipelines.histories import user_histories
from pipelines.positives import checks, popularity, select

pytestmark = pytest.mark.joins

DS = "2024-03-02"
NOON = datetime(2024, 3, 2, 12)
HOUR = timedelta(hours=1)
ACTIONS = {"click": 1.0, "like": 3.0}
# user, item, time, action, request, reward
LOG = [
    ("u", "i", NOON, "click", "r1", None),
    ("u", "i", NOON, "click", "r1", 2.0),  # a repeated event: counts once, with the higher reward
    ("u", "i", NOON, "click", "r2", None),  # the same instant in another request is another event
    ("u", "i", NOON, "like", None, 0.5),  # the same instant, an action with a higher configured reward
    ("u", "i", NOON - HOUR, "like", "r0", None),  # earlier that day
    ("u", "j", NOON, "view", "r1", None),  # not a configured action
    ("v", "i", NOON, "click", None, None),
    ("v", "i", NOON, "click", None, None),
    ("v", "i", NOON, "click", "", None),  # an empty request is the same as null
    (
        "v",
        "i",
        NOON + HOUR,
        "click",
        "r9",
        0.0,
    ),  # with a reward of 0 it is no positive, so it is not the last event either
]


def selected(spark: SparkSession, config: Positives) -> list[Any]:
    columns = "user_id string, item_id string, event_time timestamp, action string, request_id string, reward double"
    log = spark.createDataFrame(LOG, columns).withColumn("ds", F.lit(DS))
    frame = select.select_events(select.reward_events(log, config), config).persist()
    counts = select.count_selected(frame)
    rows = frame.collect()
    frame.unpersist()
    reasons = [row["reason"] for row in rows]
    assert counts == {
        "interactions": 9,
        "dropped_repeated": reasons.count(select.REPEATED),
        "dropped_deduplicated": reasons.count(select.DEDUPLICATED),
        "dropped_unrewarded": 1,
    }
    return rows


def positives_of(rows: list[Any]) -> list[tuple[Any, ...]]:
    positives = [row for row in rows if row["reason"] == select.COUNTS]
    assert len({row["row_key"] for row in positives}) == len(positives)
    return sorted((r["user_id"], r["event_time"], r["request_id"] or "", r["reward"]) for r in positives)


def test_exact_repeats_count_once_with_any_config(spark: SparkSession) -> None:
    every = selected(spark, Positives(actions=ACTIONS, deduplicate=False))
    assert positives_of(every) == [
        ("u", NOON - HOUR, "r0", 3.0),
        ("u", NOON, "", 1.5),
        ("u", NOON, "r1", 2.0),
        ("u", NOON, "r2", 1.0),
        ("v", NOON, "", 1.0),
    ]
    assert sum(row["reason"] == select.REPEATED for row in every) == 3


@pytest.mark.parametrize(
    ("day_reward", "of_u"),
    [
        (
            "max",
            (NOON - HOUR, "r0", 3.0),
        ),  # the like with reward 3.0, although clicks and a like with a lower reward came later
        ("last", (NOON, "", 1.5)),
        ("sum", (NOON, "", 7.5)),  # 3.0 + 1.5 + 2.0 + 1.0, without the repeated row
    ],
)
def test_day_reward_chooses_the_event_of_a_day_and_its_reward(
    spark: SparkSession, day_reward: str, of_u: tuple[Any, ...]
) -> None:
    rows = selected(spark, Positives.model_validate({"actions": ACTIONS, "day_reward": day_reward}))
    assert positives_of(rows) == [("u", *of_u), ("v", NOON, "", 1.0)]
    assert sum(row["reason"] == select.REPEATED for row in rows) == 3
    assert sum(row["reason"] == select.DEDUPLICATED for row in rows) == 3


def test_weights_decay_with_age_and_the_last_hours_are_validation(spark: SparkSession) -> None:
    times = [NOON, NOON - timedelta(days=1), datetime(2024, 3, 2, 22), datetime(2024, 3, 2, 21, 59, 59)]
    frame = spark.createDataFrame(
        [(time, 2.0, None) for time in times], "event_time timestamp, reward float, dropped string"
    )
    rows = select.finish(frame, Positives(half_life_days=0.5, valid_hours=2.0), DS).collect()
    assert [row["example_age"] for row in rows[:2]] == [0.5, 1.5]
    assert [row["weight"] for row in rows[:2]] == [1.0, 0.25]
    assert [row["split"] for row in rows] == ["train", "train", "valid", "train"]
    ancient = select.finish(frame, Positives(half_life_days=1e-4), DS).collect()
    assert all(0 < row["weight"] < 1e-20 for row in ancient[:2])
    plain = select.finish(frame, Positives(valid_hours=0.0), DS).collect()
    assert [(row["weight"], row["split"]) for row in plain] == [(2.0, "train")] * 4


def test_carried_rows_train_if_a_snapshot_describes_their_item(spark: SparkSession) -> None:
    evening = datetime(2024, 3, 1, 23)
    rows = [(item, evening, 1 / 24, 2.0, None, "valid") for item in ("here", "unknown")]
    columns = "item_id string, event_time timestamp, example_age double, weight float, dropped string, split string"
    described = spark.createDataFrame([("here",), ("other",)], "item_id string")
    carried = select.carry(spark.createDataFrame(rows, columns), described, Positives(half_life_days=1.0), DS)
    by_item = {
        row["item_id"]: (row["split"], row["dropped"], row["weight"], row["carried"]) for row in carried.collect()
    }
    assert by_item == {"here": ("train", None, 1.0, True), "unknown": (None, "item_not_live", 1.0, True)}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"form": "word2vec"}, [1.0, 1.0, (40**0.5 + 1) / 40]),
        ({"form": "power", "exponent": 0.5}, [1.0, 0.5, 40**-0.5]),
    ],
)
def test_down_sampling_follows_its_formula(spark: SparkSession, form: dict[str, Any], expected: list[float]) -> None:
    # Shares of 1, 2 or 4, and 40 times the threshold; word2vec keeps all positives up to 2.6 times the threshold.
    config = Downsample(threshold=0.01, **form)
    frame = spark.createDataFrame([(10,), (40 if form["form"] == "power" else 20,), (400,)], "count long")
    rows = frame.select(popularity.keep_probability(F.col("count"), F.lit(1000), config).alias("chance")).collect()
    assert [row["chance"] for row in rows] == pytest.approx(expected)
    assert [
        r["c"] for r in frame.select(popularity.keep_probability(F.col("count"), F.lit(9), None).alias("c")).collect()
    ] == [1.0] * 3


def test_down_sampling_counts_the_window_that_ends_with_the_day(spark: SparkSession) -> None:
    # Windows of two days. Item 2 has most positives of the first day, item 3 of the fourth; the third day has none.
    counts = [(2, 10, 8), (3, 10, 2), (2, 11, 1), (3, 11, 9), (3, 13, 30), (2, 13, 1)]
    frame = spark.createDataFrame(counts, "item_index int, day int, count long")
    rows = popularity.counts_of_days(frame, 2).collect()
    assert {(row["item_index"], row["ds"]): (row["window_count"], row["total"]) for row in rows} == {
        (2, "1970-01-11"): (8, 10),
        (3, "1970-01-11"): (2, 10),
        (2, "1970-01-12"): (9, 20),
        (3, "1970-01-12"): (11, 20),
        (2, "1970-01-14"): (1, 31),
        (3, "1970-01-14"): (30, 31),
    }
    ids = spark.createDataFrame([(2, "two"), (3, "three")], "item_index int, item_id string")
    config = Positives.model_validate({"downsample": {"threshold": 0.1, "form": "power"}})
    of_days = popularity.counts_of_days(frame, 2)
    live_days = of_days.join(ids, on="item_index").select("item_id", "ds", F.lit(True).alias("live"))
    chances = select.item_chances(ids, of_days, live_days, config)
    events = spark.createDataFrame(
        [(n, item, day) for n, (item, day) in enumerate([("three", "1970-01-11"), ("three", "1970-01-14")])],
        "row_key long, item_id string, ds string",
    )
    flagged = select.flag(events, chances, config, 17, None).orderBy("row_key").collect()
    # The popularity of the item on the fourth day does not affect its row of the first day.
    assert [row["keep_probability"] for row in flagged] == pytest.approx([0.5**0.5, (0.1 * 31 / 30) ** 0.5])


def staged(spark: SparkSession, **changes: Any) -> DataFrame:
    """Rows of two users as they are written. `changes`: values of some columns of one row."""
    rows = []
    for number in range(6):
        user, place = f"u{number % 2}", number // 2
        row = {
            "row_key": number,
            "user_id": user,
            "item_id": f"i{place}",
            "event_time": NOON + place * HOUR,
            "user_index": 2 + number % 2,
            "item_index": 10 + place,
            "example_age": 0.5,
            "weight": 1.0,
            "keep_probability": 1.0,
            "dropped": None,
            "split": "train",
            "carried": False,
        }
        rows.append(row | (changes if number == 4 else {}))
    schema = "row_key long, user_id string, item_id string, event_time timestamp, user_index int, item_index int, "
    schema += "example_age float, weight float, keep_probability float, dropped string, split string, carried boolean"
    return spark.createDataFrame([tuple(row.values()) for row in rows], schema)


def check(frame: DataFrame) -> dict[str, int]:
    return checks.check_rows(frame, {"interactions": 7, "dropped_repeated": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.0}, "column weight: 1 rows have a weight that is not above 0"),
        ({"weight": float("nan")}, "column weight: 1 rows"),
        ({"weight": float("inf")}, "column weight: 1 rows"),
        ({"item_id": None}, 'column item_id: 1 rows have null, for example {"row_key":4'),
        ({"item_index": 0}, "column item_index: 1 rows have an index below 1"),
        ({"dropped": "downsampled"}, "column split: 1 rows are dropped and in a split, or neither"),
        ({"split": None}, "column split: 1 rows are dropped and in a split, or neither"),
    ],
)
def test_rows_with_wrong_values_are_refused(spark: SparkSession, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(staged(spark, **changes))
    assert message in str(caught.value)
    assert "table positives" in str(caught.value)


def test_all_rows_must_be_counted(spark: SparkSession) -> None:
    none = {"dropped_item_not_live": 0, "dropped_known_item": 0, "dropped_downsampled": 0, "dropped_over_cap": 0}
    none |= {"held_back": 0, "carried": 0, "carried_not_live": 0}
    assert check(staged(spark)) == {"positives": 6, **none, "kept": 6}
    cut = staged(spark, dropped="over_cap", split=None)
    assert check(cut) == {"positives": 6, **none, "dropped_over_cap": 1, "kept": 5}
    # A row that the night before held back does not count as an interaction of tonight.
    carried = staged(spark, carried=True)
    assert checks.check_rows(carried, {"interactions": 5, "held_back_before": 1})["carried"] == 1
    with pytest.raises(InputError, match="the night before held 2 rows back, and 1 were carried"):
        checks.check_rows(carried, {"interactions": 5, "held_back_before": 2})
    for counts in ({"interactions": 8, "dropped_repeated": 1}, {"interactions": 7, "dropped_repeated": 0}):
        with pytest.raises(InputError, match=r"6 rows were written, but of \d interactions"):
            checks.check_rows(cut, counts)


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        (
            {"dropped": "item_not_live", "split": None},
            [
                "no row is left to train on. Of 7 interactions",
                "1 repeat another row, 6 have an item_id that is not live",
            ],
        ),
        ({"split": "valid"}, ["all 6 rows that are left are in the valid split", "positives.valid_hours"]),
    ],
)
def test_a_night_without_training_rows_is_refused_with_counts_by_reason(
    spark: SparkSession, values: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        check(staged(spark).withColumns({name: F.lit(value).cast("string") for name, value in values.items()}))
    assert [part for part in messages if part not in str(caught.value)] == []


def test_the_cap_counts_rows_that_survive_down_sampling(spark: SparkSession) -> None:
    rows = [("a", DS, n, n % 4 != 0, n % 3 != 0) for n in range(24)] + [("b", DS, 91, True, True)]
    frame = spark.createDataFrame(rows, "user_id string, ds string, row_key long, live boolean, survives boolean")
    frame = frame.withColumns({"user_key": F.xxhash64("user_id"), "known": F.lit(False)})
    assert user_histories.USER == ["user_key", "user_id"]
    config = Positives(per_user_cap=5)
    heaviest, over_cap = select.heavy_days(frame, config)
    assert (heaviest, over_cap) == ({"user_id": "a", "user_rows": 24}, 1)
    rows = select.choose(frame, config, 17, over_cap).collect()
    reasons = Counter(row["dropped"] for row in rows)
    assert reasons == {"item_not_live": 6, "downsampled": 6, "over_cap": 7, None: 6}
    chosen = {row["row_key"] for row in rows if row["dropped"] is None}
    assert all(key % 4 and key % 3 for key in chosen)
    others = select.choose(frame, config, 18, over_cap).where("dropped is null").collect()
    assert {row["row_key"] for row in others} != chosen
    assert select.heavy_days(frame, Positives(per_user_cap=None))[1] == 0

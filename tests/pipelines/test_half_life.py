"""The half-life of recent counts is the one that predicts the next days best."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from pipelines.config import Inputs
from pipelines.half_life import FIXED_POINT, DayTotals, Prediction, log_probabilities, predict
from pipelines.night import Night
from pipelines.storage.manifest import Recipe
from pipelines.storage.warehouse import Warehouse

HALF_LIVES = [1.0, 7.0, 3650.0]
UNSEEN = 0.5
FIRST_DAY = 19_000  # 2022-01-08
Counts = dict[int, dict[int, int]]  # item -> day -> positives


def counts_of(kind: str, items: int = 60, days: int = 14, seed: int = 0) -> Counts:
    """Positives by item and day. fashions: every two days other items are wanted; steady: always the same ones."""
    rng = np.random.default_rng(seed)
    steady = rng.pareto(1.2, items)
    found: Counts = {item: {} for item in range(items)}
    fashion = steady
    for day in range(days):
        if kind == "fashions" and day % 2 == 0:
            fashion = rng.permutation(steady)
        for item, count in enumerate(rng.multinomial(400, fashion / fashion.sum())):
            if count:
                found[item][day] = int(count)
    return found


def arrays(counts: Counts) -> tuple[Any, Any, Any]:
    days = [day for by_day in counts.values() for day in by_day]
    values = [count for by_day in counts.values() for count in by_day.values()]
    return (
        np.array(days, np.int64) + FIRST_DAY,
        np.array(values, np.int64),
        np.array([len(by_day) for by_day in counts.values()], np.int64),
    )


def totals_of(counts: Counts, last: int = 99) -> DayTotals:
    days = sorted({day for by_day in counts.values() for day in by_day if day <= last})
    sums = [sum(by_day.get(day, 0) for by_day in counts.values()) for day in days]
    return DayTotals(np.array(days, np.int64) + FIRST_DAY, np.array(sums, np.int64), len(counts))


def plainly(counts: Counts, half_life: float, first: int, last: int) -> tuple[float, int]:
    """The same by loops over items and days."""
    total, events = 0.0, 0

    def before(by_day: dict[int, int], day: int) -> float:
        return sum(count * 0.5 ** ((day - other) / half_life) for other, count in by_day.items() if other < day)

    for day in range(first, last + 1):
        decayed = sum(before(by_day, day) for by_day in counts.values())
        number = sum(count for by_day in counts.values() for other, count in by_day.items() if other < day)
        for by_day in counts.values():
            if day in by_day and min(by_day) < day:
                count = before(by_day, day) * number / decayed
                total += by_day[day] * np.log((count + UNSEEN) / (number + UNSEEN * len(counts)))
                events += by_day[day]
    return total, events


@pytest.mark.parametrize("last", [13, 12])
def test_probabilities_are_those_of_a_plain_loop_in_any_batches(last: int) -> None:
    counts = counts_of("fashions")
    counts[60], counts[61] = {}, {13: 5}  # an item without positives, and one that only the last day has
    totals = totals_of(counts, last)
    found = log_probabilities(*arrays(counts), totals, HALF_LIVES, UNSEEN)
    first = totals.first_predicted() - FIRST_DAY
    assert first == 7  # of 14 or 13 days with 400 positives each, the first of which nothing predicts
    for place, half_life in enumerate(HALF_LIVES):
        expected, events = plainly(counts, half_life, first, last)
        assert found[place] / FIXED_POINT == pytest.approx(expected, rel=1e-6)
        assert found[-1] == events
    parts = [{item: counts[item] for item in range(start, min(start + 25, 62))} for start in (0, 25, 50)]
    again = sum(log_probabilities(*arrays(part), totals, HALF_LIVES, UNSEEN) for part in parts)
    assert again.tolist() == found.tolist()


def test_of_equal_half_lives_the_longest_is_best() -> None:
    assert Prediction([3.0, 7.0, 14.0], [-2.0, -1.0, -1.0], 9).best == 14.0
    assert Prediction([3.0, 7.0], [0.0, 0.0], 0).best == 7.0


def night_of(spark: SparkSession, folder: Path, counts: Counts) -> Night:
    warehouse, ds = Warehouse(spark, str(folder / "warehouse")), "2022-01-21"  # day 13
    rows = [
        (item, f"i{item}", item != 5, [day + FIRST_DAY for day in by_day], list(by_day.values()))
        for item, by_day in counts.items()
    ]
    columns = "item_index int, item_id string, live boolean, day_ordinals array<int>, day_counts array<bigint>"
    warehouse.write(spark.createDataFrame(rows, columns).repartition(3), "item_stats", ds, Recipe("test", {}))
    return Night.open(warehouse, Inputs(), ds, 17)


@pytest.mark.parametrize(("kind", "best"), [("fashions", 1.0), ("steady", 3650.0)])
def test_fashions_have_a_short_half_life_and_steady_demand_a_long_one(
    spark: SparkSession, tmp_path: Path, kind: str, best: float
) -> None:
    counts = counts_of(kind)
    night = night_of(spark, tmp_path, counts)
    del counts[5]  # not live
    for held_out in (False, True):
        found = predict(night, HALF_LIVES, UNSEEN, held_out=held_out)
        assert found.best == best
        totals = totals_of(counts, 12 if held_out else 13)
        sums = log_probabilities(*arrays(counts), totals, HALF_LIVES, UNSEEN)
        assert found.events == sums[-1] > 1000
        assert list(found.mean_log_probability) == (sums[:-1] / FIXED_POINT / sums[-1]).tolist()


def test_one_day_is_no_evidence(spark: SparkSession, tmp_path: Path) -> None:
    found = predict(night_of(spark, tmp_path, {0: {13: 4}, 1: {13: 1}}), HALF_LIVES, UNSEEN, held_out=False)
    assert (found.events, found.best) == (0, 3650.0)


def test_a_sparse_window_does_not_favour_long_half_lives() -> None:
    """One positive a day, 10,000 items, of which other ones are wanted every 300 days. The constant is most of all counts."""
    rng = np.random.default_rng(3)
    counts: Counts = {item: {} for item in range(10_000)}
    for day in range(1_200):
        counts[int(rng.integers(0, 100)) + 100 * (day // 300)][day] = 1
    sums = log_probabilities(*arrays(counts), totals_of(counts, last=1_200), [60.0, 3650.0], UNSEEN)
    assert sums[0] > sums[1]

"""Chooses the half-life of recent counts: the one whose counts predict the positives of the following days best.

No model is needed. Counts are asked, day after day, how likely they make the positives of the next day; this uses all days
of the window, and not only the events that a night holds out (the prequential principle: Dawid, 1984).

Shapes: n items, E entries (an item and a day with positives), H half-lives.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.night import Night
from pipelines.positives.popularity import day_ordinal

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FIXED_POINT = 2.0**20  # Sums of integers do not depend on the order of rows, as sums of floats do.


@dataclass(frozen=True)
class DayTotals:
    """What all items together had: `days` in ascending order, their positives, and the number of items."""

    days: Ints
    counts: Ints
    items: int

    def first_predicted(self) -> int:
        """The first day to predict. The days from it on have at least half of the positives that any day can predict."""
        after = np.cumsum(self.counts[1:][::-1])[::-1]
        return int(self.days[1:][2 * after >= after[0]][-1])


@dataclass(frozen=True)
class Prediction:
    """How well the counts of each half-life predict: the mean log probability of a positive. No events: no evidence."""

    half_lives: Sequence[float]
    mean_log_probability: Sequence[float]
    events: int

    @property
    def best(self) -> float:
        """The half-life with the highest probability; the longest of equal ones, which is the steadiest."""
        return max(zip(self.mean_log_probability, self.half_lives))[1]


def predict(night: Night, half_lives: Sequence[float], unseen_count: float, *, held_out: bool) -> Prediction:
    """How well the counts of a night's window predict its own days, by half-life.

    `held_out`: leave out ds, because its last events judge the release. `unseen_count`: added to the count of each item.
    The first positive of an item is not counted: nothing predicts it.
    """
    nothing = Prediction(half_lives, [0.0] * len(half_lives), 0)
    if len(half_lives) == 1:
        return nothing
    rows = night.warehouse.read("item_stats", night.ds).where("live")
    entries = rows.select(F.explode(F.arrays_zip("day_ordinals", "day_counts")).alias("entry"))
    by_day = entries.groupBy(F.col("entry.day_ordinals").alias("day")).agg(F.sum("entry.day_counts").alias("count"))
    last = day_ordinal(night.ds) - (1 if held_out else 0)
    found = sorted((row["day"], row["count"]) for row in by_day.collect() if row["day"] <= last)
    if len(found) < 2:
        return nothing
    days, counts = (np.array(values, np.int64) for values in zip(*found))
    totals = DayTotals(days, counts, rows.count())
    sums = np.zeros(len(half_lives) + 1, np.int64)
    for row in _summed(rows.select("day_ordinals", "day_counts"), totals, half_lives, unseen_count).collect():
        sums += np.frombuffer(row["sums"], np.int64)
    events = int(sums[-1])
    if not events:
        return nothing
    return Prediction(half_lives, (sums[:-1] / FIXED_POINT / events).tolist(), events)


def _summed(rows: DataFrame, totals: DayTotals, half_lives: Sequence[float], unseen_count: float) -> DataFrame:
    """One row per task: `sums`, int64 [H + 1] as bytes: log probabilities in fixed point, and the number of events."""

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total = np.zeros(len(half_lives) + 1, np.int64)
        for batch in batches:
            days, counts = batch.column("day_ordinals"), batch.column("day_counts")
            lengths = days.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            days_E, counts_E = (column.flatten().to_numpy(zero_copy_only=False) for column in (days, counts))
            total += log_probabilities(days_E, counts_E, lengths, totals, half_lives, unseen_count)
        yield pa.RecordBatch.from_arrays([pa.array([total.tobytes()], pa.binary())], names=["sums"])

    return rows.mapInArrow(count, "sums binary")


def log_probabilities(
    days_E: Ints, counts_E: Ints, lengths_n: Ints, totals: DayTotals, half_lives: Sequence[float], unseen_count: float
) -> Ints:
    """[H + 1] the summed log probability of the predicted positives by half-life, in fixed point, and their number.

    `lengths_n`: how many entries each item has; its days ascend. On day d an item has the probability
    (c N / C + a) / (N + a M): c its decayed positives before d, C those of all M items, N their number, a `unseen_count`.
    """
    starts_n = np.cumsum(lengths_n) - lengths_n
    predicted_E = (days_E >= totals.first_predicted()) & (days_E <= totals.days[-1])
    predicted_E[starts_n[lengths_n > 0]] = False
    place_E = np.minimum(np.searchsorted(totals.days, days_E), len(totals.days) - 1)[predicted_E]
    weights = counts_E[predicted_E]
    sums = []
    number = np.cumsum(totals.counts) - totals.counts
    for half_life in half_lives:
        count = _decayed_before(days_E, counts_E, lengths_n, half_life)[predicted_E]
        everything = _decayed_before(totals.days, totals.counts, np.array([len(totals.days)]), half_life)
        scale = np.divide(number, everything, out=np.ones(len(number)), where=everything > 0)
        probability = (count * scale[place_E] + unseen_count) / (number + unseen_count * totals.items)[place_E]
        logs = np.rint(np.log(probability) * FIXED_POINT).astype(np.int64)
        sums.append((logs * weights).sum())
    return np.array([*sums, weights.sum()], np.int64)


def _decayed_before(days_E: Ints, counts_E: Ints, lengths_n: Ints, half_life: float) -> Floats:
    """[E] the item's decayed positives before each of its days, by c' = (c + n) 0.5^(gap / half-life) from day to day."""
    before_E = np.zeros(len(days_E))
    starts_n = np.cumsum(lengths_n) - lengths_n
    for step in range(1, int(lengths_n.max(initial=0))):
        at = starts_n[lengths_n > step] + step
        kept = 0.5 ** ((days_E[at] - days_E[at - 1]) / half_life)
        before_E[at] = (before_E[at - 1] + counts_E[at - 1]) * kept
    return before_E

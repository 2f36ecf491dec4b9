"""The cut of a positive: the time before which its history ends, and the ages of the items of a history at a cut.

With history order `ahead`, the cut is up to `positives.ahead_days` before the event. The model then learns to predict any
positive of the next days and not only the next one (dense all-action objective of PinnerFormer, Pancha et al., KDD 2022).
"""

from pyspark.sql import Column
from pyspark.sql import functions as F

from pipelines.config import Positives
from pipelines.feature_config import Features
from pipelines.features.encode import pad_left
from pipelines.hashing import unit

DAY_MICROS = 86_400_000_000
LARGEST_AGE = 2**31 - 1  # seconds; ages are int32


def ahead_of(features: Features, positives: Positives) -> float | None:
    """The days by which cuts may precede their events; None if each cut is the time of its event."""
    return positives.ahead_days if features.history and features.history.order == "ahead" else None


def cut_micros(ahead_days: float | None, seed: int) -> Column:
    """The cut of rows (row_key, event_time), in microseconds since 1970.

    The lag between cut and event is uniform in [0, ahead_days), by a hash of the row key: a row has the same cut whenever
    and wherever it is computed.
    """
    event = F.unix_micros("event_time")
    if ahead_days is None:
        return event
    lag = F.floor(unit("ahead", seed, F.col("row_key")) * F.lit(ahead_days * DAY_MICROS))
    return event - lag.cast("long")


def ages_at(cut: Column, times: Column, length: int) -> Column:
    """The seconds from each of the last `length` times (an array of timestamps) to the cut (a timestamp), padded left with 0.

    Both times are rounded down to whole seconds first, so that ages at two cuts differ by the seconds between the cuts.
    """
    now = F.unix_seconds(cut)
    ages = F.transform(
        times, lambda time: F.least(F.greatest(now - F.unix_seconds(time), F.lit(0)), F.lit(LARGEST_AGE))
    )
    return pad_left(ages, length)

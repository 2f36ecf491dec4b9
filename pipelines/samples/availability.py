"""Items that came while the days of a night went on: no row may draw one that was not there on its day.

A negative that nobody could have chosen would teach the model that new items are disliked.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contract.negative_kinds import POPULARITY, UNIFORM
from pipelines.features.item_versions import number
from pipelines.samples.draws import Bools, Floats, Ints


@dataclass(frozen=True)
class Availability:
    """From which day on each item can be drawn, and how much of each distribution the items of a day have."""

    first_M: npt.NDArray[np.int32]  # by item index: its first day (days since 1970-01-01), 0: on all days
    firsts: Ints  # [D] the distinct first days, ascending
    log_mass: dict[int, npt.NDArray[np.float64]]  # by kind [D + 1]: log of the mass of what is there before firsts[i]

    @classmethod
    def build(cls, items: Ints, first: Ints, mass: dict[int, npt.NDArray[np.float64]], width: int) -> "Availability":
        """From items that came late, their first days and their probabilities by kind. `width`: number of item indices."""
        first_M = np.zeros(width, np.int32)
        first_M[items] = first
        firsts, place = np.unique(first, return_inverse=True)
        log_mass = {}
        for kind, probability in mass.items():
            of_day = np.bincount(place, probability, len(firsts))
            missing = np.concatenate([np.cumsum(of_day[::-1])[::-1], [0.0]])
            log_mass[kind] = np.log(np.maximum(1 - missing, 1e-12))
        return cls(first_M, firsts, log_mass)

    def allows(self, items: Ints, day: Ints) -> Bools:
        """Whether each item was there on the day asked for with it."""
        return self.first_M[items] <= day

    def correction(self, kind: int, day: Ints) -> Floats:
        """What is taken from log q of a draw on a day: the log of the mass of the items that were there."""
        return self.log_mass[kind][np.searchsorted(self.firsts, day, side="right")].astype(np.float32)


def availability(stats: DataFrame, features: DataFrame, first_day: str, width: int) -> Availability | None:
    """Of the live items that came after the first day of the night's rows; None where there are none.

    `stats`: item_stats. `features`: item_features. What comes to the driver are the items that came during a bootstrap.
    """
    late = features.where(F.col("available_from") > number(first_day))
    if late.isEmpty():
        return None
    came = F.datediff(F.to_date(F.col("available_from").cast("string"), "yyyyMMdd"), F.lit("1970-01-01"))
    rows = late.select("item_index", came.alias("first")).join(stats.where("live"), on="item_index", how="inner")
    table = rows.select("item_index", "first", "q_uniform", "q_popularity").orderBy("item_index").toPandas()
    mass = {UNIFORM: table["q_uniform"].to_numpy(), POPULARITY: table["q_popularity"].to_numpy()}
    return Availability.build(table["item_index"].to_numpy(np.int64), table["first"].to_numpy(np.int64), mass, width)

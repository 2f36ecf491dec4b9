"""Items that appear during the days of a bootstrap: a row draws only items that were available on its day.

A negative that no user could have chosen would teach the model that users dislike new items.
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
    """The first day of each late item, and the probability mass of the items that are available on each day."""

    first_M: npt.NDArray[np.int32]  # [M] first day of each item index (days since 1970-01-01); 0: available on all days
    firsts: Ints  # [D] distinct first days, ascending
    # By kind [D + 1]: log of the mass of the items available before firsts[i]; the last entry is 0 (all items).
    log_mass: dict[int, npt.NDArray[np.float64]]

    @classmethod
    def build(cls, items: Ints, first: Ints, mass: dict[int, npt.NDArray[np.float64]], width: int) -> "Availability":
        """From late items, their first days and their probabilities by kind. `width`: number of item indices."""
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
        """Whether each item [n] is available on the day [n] given with it."""
        return self.first_M[items] <= day

    def log_mass_on(self, kind: int, day: Ints) -> Floats:
        """Log of the mass of the items that are available on each day. Subtract it from log q of a draw on that day."""
        return self.log_mass[kind][np.searchsorted(self.firsts, day, side="right")].astype(np.float32)


def availability(stats: DataFrame, features: DataFrame, first_day: str, width: int) -> Availability | None:
    """The availability of live items that appear after the first day of the night's rows; None if there are no such items.

    `stats`: item_stats. `features`: item_features. Collects only the items that appear during a bootstrap.
    """
    late = features.where(F.col("available_from") > number(first_day))
    if late.isEmpty():
        return None
    first = F.datediff(F.to_date(F.col("available_from").cast("string"), "yyyyMMdd"), F.lit("1970-01-01"))
    rows = late.select("item_index", first.alias("first")).join(stats.where("live"), on="item_index", how="inner")
    table = rows.select("item_index", "first", "q_uniform", "q_popularity").orderBy("item_index").toPandas()
    mass = {UNIFORM: table["q_uniform"].to_numpy(), POPULARITY: table["q_popularity"].to_numpy()}
    return Availability.build(table["item_index"].to_numpy(np.int64), table["first"].to_numpy(np.int64), mass, width)

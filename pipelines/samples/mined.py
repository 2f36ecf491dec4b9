"""Mined candidates: the items that the release of an earlier night ranks for each user, without the best ones.

They are hard negatives of feeds without ranking logs. Table `mined_candidates` has them; jobs/release/mined_candidates.py
writes it, because this package does not run models.
"""

from dataclasses import dataclass

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.histories.user_stream import RANKED, context, key_of
from pipelines.samples.draws import CandidateLists, Forbidden, Ints

TABLE = "mined_candidates"


def mined_rows(mined: DataFrame, users: DataFrame) -> DataFrame:
    """The candidates as stream rows (columns: user_stream.CONTEXT).

    `mined`: user_id, items (array<int>). `users`: user_key of the users whose rows are made.
    """
    keyed = mined.withColumn("user_key", key_of("user_id")).join(users, on="user_key", how="left_semi")
    return context(keyed, RANKED, F.col("items"))


@dataclass(frozen=True)
class MinedCandidates:
    """The candidates of some users that are not forbidden, ordered by user. C candidates."""

    group_C: Ints  # user of each candidate, ascending
    items_C: Ints

    @classmethod
    def build(cls, group: Ints, items: Ints, forbidden: Forbidden, width: int) -> "MinedCandidates":
        """From the items of users (`group`, ascending). Leaves out forbidden items."""
        allowed = ~forbidden.contains(group * width + items)
        return cls(group[allowed], items[allowed])

    def of_group(self, group: int) -> "MinedCandidates":
        """The candidates of one user, who becomes user 0."""
        start, stop = np.searchsorted(self.group_C, [group, group + 1])
        return MinedCandidates(np.zeros(stop - start, np.int64), self.items_C[start:stop])

    def followed_by(self, later: "MinedCandidates") -> "MinedCandidates":
        """These candidates and then those of `later`. User 0 is the same in both."""
        return MinedCandidates(*(np.concatenate(pair) for pair in zip(self._arrays, later._arrays)))

    @property
    def _arrays(self) -> tuple[Ints, Ints]:
        return self.group_C, self.items_C

    def lists(self, group_N: Ints) -> CandidateLists:
        """For each row, the list of its user."""
        start_N, stop_N = (np.searchsorted(self.group_C, group_N, side) for side in ("left", "right"))
        return CandidateLists(self.items_C, start_N, stop_N)

"""What the users of carried rows did and were shown on the day of these rows.

The night before holds its last hours out of training (split `valid`). This night trains on these rows as carried rows, but
its own logs start a day later. Without the logs of the rows' own day, an item that the user saw then could be drawn
as a negative. Only the users of carried rows are read from these logs.
"""

from dataclasses import dataclass

from pyspark.sql import DataFrame

from pipelines.histories.user_stream import key_of
from pipelines.joins import broadcast_small
from pipelines.lost_day import carried_from
from pipelines.night import Night
from pipelines.storage.dates import days_back
from pipelines.storage.manifest import Manifest


@dataclass(frozen=True)
class CarriedDay:
    """The partitions of the logs to read for the users of carried rows; both lists are empty if no row is carried."""

    rows: int  # carried rows of the night
    interaction_days: list[str]  # the day of the carried rows
    ranking_days: list[str]  # the last `negatives.exposed_days` days, up to and including that day

    @classmethod
    def of(cls, night: Night, positives: Manifest, exposed_days: int, read_anyway: list[str]) -> "CarriedDay":
        """`positives`: the manifest of this night. `read_anyway`: days of ranking_logs that the night reads for all users."""
        rows = int(positives.facts.get("counts", {}).get("carried", 0))
        if night.yesterday is None or not rows:
            return cls(0, [], [])
        # After days without data, the rows are of the last day with data.
        day = carried_from(night.warehouse.manifest("positives", night.yesterday)) or night.yesterday
        night.inputs.report.missing_days("interactions", [day])
        shown = sorted({*days_back(day, exposed_days)} - {*read_anyway})
        return cls(rows, night.inputs.present("interactions", [day]), night.inputs.present("ranking_logs", shown))

    def interactions(self, night: Night, positives: DataFrame) -> list[DataFrame]:
        """Interactions of the users of carried rows: a list of one frame, or an empty list."""
        return self._of_users(night, positives, "interactions", self.interaction_days)

    def exposures(self, night: Night, positives: DataFrame) -> list[DataFrame]:
        """Rows of ranking_logs that the users of carried rows were shown: a list of one frame, or an empty list."""
        frames = self._of_users(night, positives, "ranking_logs", self.ranking_days)
        return [frame.where("stage = 'exposed'") for frame in frames]

    def _of_users(self, night: Night, positives: DataFrame, table: str, days: list[str]) -> list[DataFrame]:
        """The rows of users of carried rows in a log. The nights of these days have checked and counted the log."""
        if not days:
            return []
        users = positives.where("carried AND split IS NOT NULL").select(key_of("user_id").alias("user_key")).distinct()
        users = broadcast_small(users, self.rows, narrow=True)
        rows = night.inputs.events(table, days, check=False).withColumn("user_key", key_of("user_id"))
        return [rows.join(users, on="user_key", how="left_semi").drop("user_key")]

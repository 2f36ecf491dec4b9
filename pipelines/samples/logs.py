"""The logs that build_negatives reads: which days, and which rows of each day."""

from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.histories.user_stream import key_of
from pipelines.joins import broadcast_small
from pipelines.lost_day import carried_from
from pipelines.night import Night, SampleConfig, log
from pipelines.samples.carried_rows import CarriedDay
from pipelines.storage.dates import days_back, shift
from pipelines.storage.manifest import Manifest


@dataclass(frozen=True)
class LogDays:
    """The days with data of each log, by what the night reads of them."""

    interactions: list[str]  # the window of the night
    ranking_logs: list[str]  # the window and the last `negatives.exposed_days` days, for all users
    before_window: list[str]  # of ranking_logs: only the requests that positives name
    carried: CarriedDay  # only the users of carried rows

    @classmethod
    def of(cls, night: Night, config: SampleConfig, positives: Manifest) -> "LogDays":
        """`positives`: the manifest of this night. Raises InputError if the night has no interactions."""
        interactions = night.log_days()
        window = sorted({*night.window, *days_back(night.ds, config.negatives.exposed_days)})
        ranking_logs = night.inputs.present("ranking_logs", window)
        # A click after midnight names a request that was logged on the day before.
        earlier_days = [shift(night.window[0], -1)]
        if night.yesterday and (day := carried_from(night.warehouse.manifest("user_histories", night.yesterday))):
            earlier_days.append(day)  # Carried rows come from that day if the days after it had no data.
        before_window = night.inputs.present("ranking_logs", earlier_days)
        carried = CarriedDay.of(night, positives, config.negatives.exposed_days, ranking_logs)
        return cls(interactions, ranking_logs, before_window, carried)

    def fingerprints(self, night: Night) -> dict[str, str]:
        """Fingerprints of the days of both logs."""
        ranking_days = sorted({*self.carried.ranking_days, *self.before_window, *self.ranking_logs})
        interaction_days = [*self.carried.interaction_days, *self.interactions]
        return {
            "interactions": night.inputs.fingerprint("interactions", interaction_days),
            "ranking_logs": night.inputs.fingerprint("ranking_logs", ranking_days),
        }

    def read_interactions(self, night: Night, positives: DataFrame) -> DataFrame:
        """Interactions of the window, and of the carried day for the users of carried rows."""
        # build_positives has checked these rows.
        interactions = night.inputs.events("interactions", self.interactions, check=False)
        return reduce(DataFrame.unionByName, self.carried.interactions(night, positives), interactions)

    def read_ranking_logs(self, night: Night, positives: DataFrame, config: SampleConfig) -> DataFrame | None:
        """Ranking logs with column `is_candidate`; None if no day has data. Checks the rows of `ranking_logs` days.

        `is_candidate`: the row may become a hard negative. Its stage is one of the configured stages, and it is of the
        night's window or of a request that a positive names. Other rows only exclude what was shown.
        """
        wants_hard = config.negatives.coarse + config.negatives.fine > 0
        if not self.ranking_logs and not self.before_window and not self.carried.ranking_days:
            if wants_hard:
                log.info(
                    "ranking_logs (%s) has no partition for %s: continuing without hard negatives; "
                    "easy negatives fill their slots",
                    night.inputs.uri("ranking_logs"),
                    night.ds,
                )
            return None
        night.inputs.report.missing_days("ranking_logs", night.window)
        stages = [*config.negatives.coarse_stages, *config.negatives.fine_stages]
        candidate = F.col("stage").isin(stages) & F.lit(wants_hard)
        logs = []
        if self.ranking_logs:
            rows = night.inputs.events("ranking_logs", self.ranking_logs)
            logs.append(rows.withColumn("is_candidate", F.col("ds").isin(night.window) & candidate))
        if self.before_window:
            # The night of that day has checked and counted these rows.
            rows = night.inputs.events("ranking_logs", self.before_window, check=False)
            logs.append(_of_requests_with_positives(rows, positives).withColumn("is_candidate", candidate))
        logs += [shown.withColumn("is_candidate", F.lit(False)) for shown in self.carried.exposures(night, positives)]
        return reduce(DataFrame.unionByName, logs)


def _of_requests_with_positives(logs: DataFrame, positives: DataFrame) -> DataFrame:
    """The log rows of the requests that positives with a split name."""
    requests = positives.where("split IS NOT NULL AND request_id IS NOT NULL")
    requests = requests.select(key_of("request_id").alias("request_key")).distinct()
    requests = broadcast_small(requests, requests.count(), narrow=True)
    keyed = logs.withColumn("request_key", key_of("request_id"))
    return keyed.join(requests, on="request_key", how="left_semi").drop("request_key")

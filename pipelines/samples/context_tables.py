"""The tables about the users of a night from which their samples are made: excluded items, hard candidates and histories."""

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.histories.user_histories import actions_of
from pipelines.histories.user_stream import EXCLUDED, PAST, context, interleaved, key_of
from pipelines.joins import broadcast_few
from pipelines.samples.funnel import requests_of
from pipelines.samples.mined import mined_rows
from pipelines.samples.user_context import SamplingSettings


@dataclass(frozen=True)
class ContextTables:
    """The tables of one night; the per-user context of the samples is read from them."""

    settings: SamplingSettings
    known_items_limit: int  # most items per user in user_histories.known_items
    users: DataFrame  # user_key of each user that has positives tonight, without repeats
    positives: DataFrame  # of tonight
    items: DataFrame  # item_key, item_index
    histories: DataFrame  # user_histories of tonight
    histories_before: DataFrame | None  # user_histories of the night before
    interactions: DataFrame
    is_positive: Column  # condition on interactions
    ranking_logs: DataFrame | None  # with is_candidate (funnel.requests_of)
    mined: DataFrame | None = None  # mined_candidates of tonight

    def stream_rows(self) -> list[DataFrame]:
        """The context of the users as stream rows (columns: user_stream.CONTEXT)."""
        other = self._interactions_not_in_known_items()
        other = other.select(key_of("user_id").alias("user_key"), key_of("item_id").alias("item_key"))
        other = other.join(self.users, on="user_key", how="left_semi").join(self.items, on="item_key", how="inner")
        other = other.groupBy("user_key").agg(F.collect_list(F.col("item_index").cast("long")).alias("items"))
        histories = _of_users(self.histories, self.users)
        parts = [context(histories, EXCLUDED, F.col("known_items")), context(other, EXCLUDED, F.col("items"))]
        if self.ranking_logs is not None:
            requests = requests_of(self.ranking_logs, self.items)
            parts.append(requests.join(self.users, on="user_key", how="left_semi"))
        if self.mined is not None:
            parts.append(mined_rows(self.mined, self.users))
        if self.settings.leave_one_out:
            # One item more than the history holds: at most one of them is the row's own.
            newest = F.slice(F.reverse("known_items"), 1, self.settings.history_length + 1)
            parts.append(context(histories, PAST, F.reverse(newest)))
        elif self.histories_before is not None:
            actions = actions_of(self.histories_before) if self.settings.actions else None
            past = interleaved(F.col("history_items"), F.col("history_times"), actions)
            parts.append(context(_of_users(self.histories_before, self.users), PAST, past))
        return parts

    def _interactions_not_in_known_items(self) -> DataFrame:
        """Interactions that `known_items` does not cover: all that are not positive, and the positives of users whose
        `known_items` is full."""
        others = self.interactions.where(~self.is_positive)
        full = self.histories.where(F.size("known_items") >= self.known_items_limit).select("user_id")
        if full.isEmpty():
            return others
        positives = self.interactions.where(self.is_positive)
        return others.unionByName(positives.join(full, on="user_id", how="left_semi"))

    def excluded_items(self, users: DataFrame) -> DataFrame:
        """All items that some users (user_key, few) interacted with or were shown: user_id, item, without repeats."""
        excluded = _of_few_users(self.histories, users).select("user_id", F.explode("known_items").alias("item"))
        logs = [self.interactions]
        if self.ranking_logs is not None:
            logs.append(self.ranking_logs.where("stage = 'exposed'"))
        for frame in logs:
            rows = _of_few_users(frame, users).select("user_id", key_of("item_id").alias("item_key"))
            rows = rows.join(self.items, on="item_key", how="inner")
            excluded = excluded.unionByName(rows.select("user_id", F.col("item_index").alias("item")))
        return excluded.distinct()

    def first_positives(self, users: DataFrame) -> DataFrame:
        """The first time of each item that the histories of some users (user_key, few) may hold: user_id, item, at.

        `at` is null if the item is known only from an earlier night, without a time.
        """
        rows = _of_few_users(self.positives, users)
        rows = rows.select("user_id", F.col("item_index").alias("item"), F.col("event_time").alias("at"))
        if self.settings.leave_one_out:
            past = _of_few_users(self.histories, users).select("user_id", F.explode("known_items").alias("item"))
            rows = rows.unionByName(past.withColumn("at", F.lit(None).cast("timestamp")))
        elif self.histories_before is not None:
            past = _of_few_users(self.histories_before, users)
            past = past.select("user_id", F.arrays_zip("history_items", "history_times").alias("past"))
            rows = rows.unionByName(past.select("user_id", F.inline("past").alias("item", "at")))
        return rows.groupBy("user_id", "item").agg(F.min("at").alias("at"))


def _of_users(histories: DataFrame, users: DataFrame) -> DataFrame:
    """The rows of these users (user_key), with column user_key."""
    return histories.withColumn("user_key", key_of("user_id")).join(users, on="user_key", how="left_semi")


def _of_few_users(rows: DataFrame, users: DataFrame) -> DataFrame:
    """The rows of users (user_key) that are few enough to broadcast, with column user_key."""
    return rows.withColumn("user_key", key_of("user_id")).join(broadcast_few(users), on="user_key", how="left_semi")

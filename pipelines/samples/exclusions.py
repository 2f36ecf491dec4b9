"""What is known of the users of a night: what they must not get, what the funnel dropped, what they did before."""

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.histories.user_stream import EXCLUDED, PAST, context, key_of, pairs
from pipelines.joins import broadcast_few
from pipelines.samples.funnel import requests_of
from pipelines.samples.user_context import Setting


@dataclass(frozen=True)
class Known:
    """The tables that tell it."""

    setting: Setting
    known_items: int  # of a user that user_histories holds at most
    users: DataFrame  # user_key of those who have positives tonight, each once
    positives: DataFrame  # of tonight
    items: DataFrame  # item_key, item_index
    tonight: DataFrame  # user_histories
    before: DataFrame | None  # user_histories of the night before
    seen: DataFrame  # interactions
    positive: Column  # which of them are positives
    logs: DataFrame | None  # ranking_logs, as requests_of takes them

    def contexts(self) -> list[DataFrame]:
        """Stream rows (streams.CONTEXT) of these users."""
        did = self._untold().select(key_of("user_id").alias("user_key"), key_of("item_id").alias("item_key"))
        did = did.join(self.users, on="user_key", how="left_semi").join(self.items, on="item_key", how="inner")
        did = did.groupBy("user_key").agg(F.collect_list(F.col("item_index").cast("long")).alias("items"))
        known = _of(self.tonight, self.users)
        parts = [context(known, EXCLUDED, F.col("known_items")), context(did, EXCLUDED, F.col("items"))]
        if self.logs is not None:
            parts.append(requests_of(self.logs, self.items).join(self.users, on="user_key", how="left_semi"))
        if self.setting.others:
            # At most one of them is the row's own.
            parts.append(
                context(known, PAST, F.reverse(F.slice(F.reverse("known_items"), 1, self.setting.history + 1)))
            )
        elif self.before is not None:
            did_before = pairs(F.col("history_items"), F.col("history_times"))
            parts.append(context(_of(self.before, self.users), PAST, did_before))
        return parts

    def _untold(self) -> DataFrame:
        """Interactions that known items do not tell of: those that are no positives, and those of users who have too many."""
        others = self.seen.where(~self.positive)
        full = self.tonight.where(F.size("known_items") >= self.known_items).select("user_id")
        if full.isEmpty():
            return others
        return others.unionByName(self.seen.where(self.positive).join(full, on="user_id", how="left_semi"))

    def done(self, users: DataFrame) -> DataFrame:
        """What some users (user_key, few) have, did or were shown: user_id, item, each once."""
        pairs = _few(self.tonight, users).select("user_id", F.explode("known_items").alias("item"))
        logs = [self.seen] if self.logs is None else [self.seen, self.logs.where("stage = 'exposed'")]
        for frame in logs:
            met = _few(frame, users).select("user_id", key_of("item_id").alias("item_key"))
            met = met.join(self.items, on="item_key", how="inner")
            pairs = pairs.unionByName(met.select("user_id", F.col("item_index").alias("item")))
        return pairs.distinct()

    def first_done(self, users: DataFrame) -> DataFrame:
        """When some users (user_key, few) first did what histories may hold: user_id, item, at (null: some night before)."""
        did = _few(self.positives, users)
        did = did.select("user_id", F.col("item_index").alias("item"), F.col("event_time").alias("at"))
        if self.setting.others:
            past = _few(self.tonight, users).select("user_id", F.explode("known_items").alias("item"))
            did = did.unionByName(past.withColumn("at", F.lit(None).cast("timestamp")))
        elif self.before is not None:
            past = _few(self.before, users).select(
                "user_id", F.arrays_zip("history_items", "history_times").alias("past")
            )
            did = did.unionByName(past.select("user_id", F.inline("past").alias("item", "at")))
        return did.groupBy("user_id", "item").agg(F.min("at").alias("at"))


def _of(histories: DataFrame, users: DataFrame) -> DataFrame:
    """The rows of these users (user_key), with user_key."""
    return histories.withColumn("user_key", key_of("user_id")).join(users, on="user_key", how="left_semi")


def _few(rows: DataFrame, users: DataFrame) -> DataFrame:
    """The rows of a few users (user_key)."""
    return rows.withColumn("user_key", key_of("user_id")).join(broadcast_few(users), on="user_key", how="left_semi")

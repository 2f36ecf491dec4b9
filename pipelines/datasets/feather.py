"""Reads Feather files (the Arrow IPC file format) into Spark DataFrames. Spark has no reader for them, so tasks use pyarrow.

Each task streams some record batches of one file and reads only the requested columns. A file may be larger than memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pyspark.sql import DataFrame, SparkSession

from pipelines.contract.errors import InputError

BATCHES_PER_TASK = 32  # pandas writes 65,536 rows per batch: 2 million rows per task
ROWS_PER_SLICE = 65_536  # rows per batch sent to the JVM, however large the batches of the file are
WHOLE, FLAG = "bigint", "boolean"  # Spark types of the columns that are read


@dataclass(frozen=True)
class FeatherFile:
    """A file under the source: its path in its filesystem, size in bytes and modification time in nanoseconds."""

    path: str
    size: int
    changed: int


@dataclass(frozen=True)
class BatchRange:
    """The record batches [first, end) of a file, which one task reads."""

    path: str
    first: int
    end: int


def open_filesystem(source: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a local folder or URI (hdfs://, s3://, gs://), and the path of the folder in it."""
    local = str(Path(source).expanduser().absolute())
    # Hadoop's scheme for S3 is s3a; pyarrow's is s3.
    return pafs.FileSystem.from_uri(source.replace("s3a://", "s3://", 1) if "://" in source else local)


def find_files(source: str) -> list[FeatherFile]:
    """All *.feather files under the source and its subfolders, sorted by path. Raises InputError if there is none."""
    filesystem, folder = open_filesystem(source)
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True))
    files = [
        FeatherFile(info.path, info.size, info.mtime_ns)
        for info in infos
        if info.is_file and info.extension == "feather" and not info.base_name.startswith((".", "_"))
    ]
    if not files:
        raise InputError(f"{source} holds no *.feather file: pass the folder of the unpacked data with --source")
    return sorted(files, key=lambda file: file.path)


def inspect_files(
    spark: SparkSession, source: str, files: Sequence[FeatherFile], columns: Iterable[str]
) -> list[BatchRange]:
    """Inspect every file on the workers. Returns the record batches of all files, cut into ranges for tasks.

    Raises InputError with the names of files that are not in Feather format, lack a column, hold a column that is not
    numeric, or have no rows.
    """
    wanted = sorted(columns)

    def inspect(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, _ = open_filesystem(source)
        for batch in batches:
            paths = batch.column(0).to_pylist()
            results = [_inspect(filesystem, path, wanted) for path in paths]
            counts, problems = ([result[n] for result in results] for n in range(2))
            columns = [pa.array(paths), pa.array(counts), pa.array(problems, pa.string())]
            yield pa.RecordBatch.from_arrays(columns, names=["path", "batches", "problem"])

    paths = [(file.path,) for file in files]
    slices = spark.sparkContext.parallelize(paths, min(len(paths), 4 * spark.sparkContext.defaultParallelism))
    schema = "path string, batches bigint, problem string"
    rows = sorted(spark.createDataFrame(slices, "path string").mapInArrow(inspect, schema).collect())
    bad = [f"{row['path']} {row['problem']}" for row in rows if row["problem"]]
    if bad:
        raise InputError(
            f"{len(bad)} of {len(files)} files in {source} cannot be imported: {'; '.join(bad[:5])}. "
            "Nothing was imported; repair these files or move them out of the folder"
        )
    return [
        BatchRange(row["path"], first, min(first + BATCHES_PER_TASK, row["batches"]))
        for row in rows
        for first in range(0, row["batches"], BATCHES_PER_TASK)
    ]


def read_ranges(spark: SparkSession, source: str, ranges: Sequence[BatchRange], columns: dict[str, str]) -> DataFrame:
    """The rows of all ranges, one task per range. `columns`: name -> WHOLE or FLAG; other columns are not read.

    A column may hold integers, bools or floats. WHOLE is null if the value is missing, NaN or has a fraction. FLAG is true
    if the value is above 0; missing and NaN are false.
    """
    names = list(columns)

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, _ = open_filesystem(source)
        for batch in batches:
            for row in batch.to_pylist():
                for rows in _stream(filesystem, BatchRange(**row), names):
                    arrays = [(to_int64 if columns[name] == WHOLE else to_bool)(rows.column(name)) for name in names]
                    yield pa.RecordBatch.from_arrays(arrays, names=names)

    work = [(part.path, part.first, part.end) for part in ranges]
    slices = spark.sparkContext.parallelize(work, len(work))
    schema = ", ".join(f"`{name}` {kind}" for name, kind in columns.items())
    return spark.createDataFrame(slices, "path string, first bigint, end bigint").mapInArrow(read, schema)


def to_int64(values: pa.Array) -> pa.Array:
    """Cast integers, bools or floats to int64. Values that are not whole numbers become null."""
    if not pa.types.is_floating(values.type):
        return values.cast(pa.int64())
    numbers = values.cast(pa.float64())
    # Above 2**53 a float does not represent every integer. NaN compares as false.
    exact = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less_equal(pc.abs(numbers), 2.0**53))
    return pc.if_else(exact, numbers, None).cast(pa.int64())


def to_bool(values: pa.Array) -> pa.Array:
    """Cast integers, bools or floats to bool: true if above 0. Missing and NaN become false."""
    if not pa.types.is_boolean(values.type):
        values = pc.greater(values.cast(pa.float64()), 0.0)
    return pc.fill_null(values, False)


def _inspect(filesystem: pafs.FileSystem, path: str, columns: list[str]) -> tuple[int, str | None]:
    """Returns the number of record batches, and the problem of the file or None."""
    try:
        with filesystem.open_input_file(path) as file:
            start = file.read_at(4, 0) if file.size() >= 4 else b""
            if start == b"FEA1":
                return 0, "is in Feather version 1 (write it again with pandas' to_feather)"
            reader = pa.ipc.open_file(file)
            missing = [name for name in columns if name not in reader.schema.names]
            if missing:
                return 0, f"lacks the columns {', '.join(missing)} (it has {', '.join(reader.schema.names)})"
            for name in columns:
                kind = reader.schema.field(name).type
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                    return 0, f"holds {kind} in column {name}, which must be numeric"
            batches = reader.num_record_batches
            if not any(reader.get_batch(number).num_rows for number in range(batches)):
                return 0, "has no rows"
            return batches, None
    except (pa.ArrowException, OSError) as error:
        return 0, f"is not a Feather file ({error})"


def _stream(filesystem: pafs.FileSystem, part: BatchRange, names: list[str]) -> Iterator[pa.RecordBatch]:
    with filesystem.open_input_file(part.path) as file:
        columns = pa.ipc.open_file(file).schema.names
        options = pa.ipc.IpcReadOptions(included_fields=[columns.index(name) for name in names])
        reader = pa.ipc.open_file(file, options=options)
        for number in range(part.first, part.end):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, ROWS_PER_SLICE):
                yield batch.slice(start, ROWS_PER_SLICE)

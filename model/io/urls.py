"""Opens files by URL. All reads and writes of `model` go through this module."""

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import unquote, urlparse

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from model.io.arrow import ColumnError, to_arrays
from model.io.object_stores import STORES, StoreError, open_store, store_of

# Messages of Arrow about the content of a file, as opposed to its path.
PART_ROWS = 65_536  # Rows of a part of a column.
_CONTENT_ERROR = re.compile(r"corrupt|deserialize|end of (stream|file|buffer)|footer|magic|page", re.IGNORECASE)


def resolve(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URL and the path in it.

    Plain paths and file: are local. hdfs:// and viewfs:// use Arrow's Hadoop file system. Object stores use
    model/io/object_stores.py. Raises StoreError for any other scheme.
    """
    scheme = urlparse(url).scheme
    if scheme in ("", "file"):
        return pafs.LocalFileSystem(), unquote(urlparse(url).path) if scheme else url
    if store_of(url):
        return open_store(url)
    if scheme not in ("hdfs", "viewfs"):
        raise StoreError(
            f"{url}: nothing reads {scheme}:// here; supported are local paths, hdfs://, viewfs://, "
            f"{', '.join(f'{prefix}://' for prefix in STORES)}"
        )
    return pafs.FileSystem.from_uri(url)


def read_bytes(url: str) -> bytes:
    """The content of a file."""
    filesystem, path = resolve(url)
    with filesystem.open_input_file(path) as file:
        return file.read()


def write_folder(url: str, files: Mapping[str, Iterable[bytes | memoryview]]) -> None:
    """Write a folder completely or not at all. Replaces an existing folder.

    Files are written in the given order, each in pieces. Local and Hadoop file systems move the finished folder into place.
    An object store cannot move a folder: there the last file marks the folder as complete, and readers check for it.
    """
    filesystem, path = resolve(url)
    path = path.rstrip("/")
    can_move = isinstance(filesystem, pafs.LocalFileSystem | pafs.HadoopFileSystem)
    target = f"{path}.writing-{uuid.uuid4().hex[:8]}" if can_move else path
    filesystem.create_dir(target, recursive=True)
    last_file = f"{path}/{list(files)[-1]}"
    if not can_move and filesystem.get_file_info(last_file).type != pafs.FileType.NotFound:
        filesystem.delete_file(last_file)  # Otherwise a mix of old and new files would look complete.
    try:
        for name, content in files.items():
            with filesystem.open_output_stream(f"{target}/{name}") as file:
                for piece in content:
                    file.write(piece)
    except BaseException:
        if can_move:  # Free the space: the disk may be full.
            filesystem.delete_dir(target)
        raise
    if can_move:
        if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
            filesystem.delete_dir(path)
        filesystem.move(target, path)


def checksum(url: str) -> str:
    """SHA-256 of a file, in hexadecimal. Reads the file in pieces."""
    filesystem, path = resolve(url)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class BrokenFileError(ValueError):
    """A Parquet file is cut short, damaged or not a Parquet file."""


@contextmanager
def naming_broken_file(url: str) -> Iterator[None]:
    """Raise Arrow's errors about the content of a file as a BrokenFileError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not _CONTENT_ERROR.search(str(error)):
            raise  # The path is unreachable; the content may be fine.
        raise BrokenFileError(f"the file {url} cannot be read: {error}") from error


def _require_columns(url: str, parquet: pq.ParquetFile, columns: Sequence[str]) -> None:
    names = parquet.schema_arrow.names
    if missing := sorted(set(columns) - set(names)):
        raise ColumnError(f"{url} lacks {', '.join(missing)}; it has {', '.join(names)}")


def read_column_parts(urls: Sequence[str], column: str) -> Iterator[np.ndarray]:
    """The values of a column of Parquet files in parts of at most PART_ROWS rows, in order. Errors as of `read_columns`."""
    for url in urls:
        filesystem, path = resolve(url)
        with naming_broken_file(url), filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            _require_columns(url, parquet, [column])
            for batch in parquet.iter_batches(PART_ROWS, columns=[column]):
                yield to_arrays(batch, url)[column]


def read_columns(urls: Sequence[str], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns of Parquet files and concatenate the files: scalars [rows], lists [rows, length].

    Raises ColumnError if a file lacks a column or breaks its contract, BrokenFileError if a file cannot be read, and
    FileNotFoundError if `urls` is empty.
    """
    if not urls:
        raise FileNotFoundError(f"no files to read {', '.join(columns)} from")
    parts = []
    for url in urls:
        filesystem, path = resolve(url)
        with naming_broken_file(url), filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            _require_columns(url, parquet, columns)
            table = parquet.read(columns=list(columns))
        if table.num_rows:  # The list length of an empty file is unknown.
            parts.append(to_arrays(table, url))
    if not parts:
        raise ColumnError(f"the {len(urls)} files from {urls[0]} on contain no rows")
    return {column: np.concatenate([part[column] for part in parts]) for column in columns}


def read_lists(urls: Sequence[str], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a column of lists of any length: (starts [rows + 1], values). Row r has values[starts[r] : starts[r + 1]].

    Raises ColumnError for nulls and for a file without the column, BrokenFileError if a file cannot be read.
    """
    lengths, values = [np.zeros(1, np.int64)], []
    for url in urls:
        filesystem, path = resolve(url)
        with naming_broken_file(url), filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            _require_columns(url, parquet, [column])
            for batch in parquet.iter_batches(PART_ROWS, columns=[column]):
                lists = batch.column(0)
                part = lists.flatten()
                if nulls := lists.null_count + part.null_count:
                    raise ColumnError(f"column {column!r} of {url}: {nulls} nulls, in {len(lists)} rows")
                lengths.append(pc.list_value_length(lists).to_numpy().astype(np.int64))
                values.append(part.to_numpy())
    return np.cumsum(np.concatenate(lengths)), np.concatenate(values) if values else np.zeros(0, np.int32)

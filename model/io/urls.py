"""Files by URL, through one resolver for everything that the room reads and writes."""

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import unquote, urlparse

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from model.io.arrow import ColumnError, to_arrays
from model.io.object_stores import STORES, StoreError, open_store, store_of

_OF_CONTENT = re.compile(r"corrupt|deserialize|end of (stream|file|buffer)|footer|magic|page", re.IGNORECASE)


def resolve(url: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URL and the path in it.

    Plain paths and file: are local; hdfs:// goes to Arrow's own filesystem, object stores to model/io/object_stores.py. Raises
    StoreError for a scheme that nothing here reads.
    """
    scheme = urlparse(url).scheme
    if scheme in ("", "file"):
        return pafs.LocalFileSystem(), unquote(urlparse(url).path) if scheme else url
    if store_of(url):
        return open_store(url)
    if scheme not in ("hdfs", "viewfs"):
        raise StoreError(
            f"{url}: nothing reads {scheme}:// here; what can be read are local paths, hdfs://, viewfs://, "
            f"{', '.join(f'{known}://' for known in STORES)}"
        )
    return pafs.FileSystem.from_uri(url)


def read_bytes(url: str) -> bytes:
    """A file, whole."""
    filesystem, path = resolve(url)
    with filesystem.open_input_file(path) as file:
        return file.read()


def write_folder(url: str, files: Mapping[str, Iterable[bytes | memoryview]]) -> None:
    """Write a folder so that it holds all of the files or is as it was; an older one there is replaced.

    Files are written in the order given, each a piece at a time.
    An object store cannot move a folder; there the last of the files is what makes it whole: readers look for that one.
    """
    filesystem, path = resolve(url)
    path = path.rstrip("/")
    movable = isinstance(filesystem, pafs.LocalFileSystem | pafs.HadoopFileSystem)
    target = f"{path}.writing-{uuid.uuid4().hex[:8]}" if movable else path
    filesystem.create_dir(target, recursive=True)
    whole = f"{path}/{list(files)[-1]}"
    if not movable and filesystem.get_file_info(whole).type != pafs.FileType.NotFound:
        filesystem.delete_file(whole)  # Or it would make old and new files together look whole.
    try:
        for name, content in files.items():
            with filesystem.open_output_stream(f"{target}/{name}") as file:
                for piece in content:
                    file.write(piece)
    except BaseException:
        if movable:  # What a full disk cut short would keep it full.
            filesystem.delete_dir(target)
        raise
    if movable:
        if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
            filesystem.delete_dir(path)
        filesystem.move(target, path)


def checksum(url: str) -> str:
    """SHA-256 of a file, in hexadecimal; read a piece at a time."""
    filesystem, path = resolve(url)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class BrokenFileError(ValueError):
    """A Parquet file is cut short, damaged or none."""


@contextmanager
def naming_broken_file(url: str) -> Iterator[None]:
    """Arrow's words about a file that it cannot read, as a BrokenFileError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not _OF_CONTENT.search(str(error)):
            raise  # Of the way to the file.
        raise BrokenFileError(f"the file {url} cannot be read: {error}") from error


def read_columns(urls: Sequence[str], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of Parquet files, the files one after another: scalars [rows], lists [rows, length].

    Raises ColumnError where a file lacks a column or breaks its contract, BrokenFileError where it cannot be read,
    FileNotFoundError where there is no file.
    """
    if not urls:
        raise FileNotFoundError(f"no files were given to read {', '.join(columns)} from")
    parts = []
    for url in urls:
        filesystem, path = resolve(url)
        with naming_broken_file(url), filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            lacking = sorted(set(columns) - set(parquet.schema_arrow.names))
            if lacking:
                raise ColumnError(f"{url} lacks {', '.join(lacking)}; it has {', '.join(parquet.schema_arrow.names)}")
            table = parquet.read(columns=list(columns))
        if table.num_rows:  # An empty file cannot tell the length of its lists.
            parts.append(to_arrays(table, url))
    if not parts:
        raise ColumnError(f"the {len(urls)} files of {urls[0]} and on hold no rows")
    return {column: np.concatenate([part[column] for part in parts]) for column in columns}

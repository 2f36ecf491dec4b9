"""Footers of Parquet files: columns, types, row counts, and columns that Spark cannot read."""

import logging
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pipelines.files.column_types import column_types
from pipelines.files.filesystem import FileSystem
from pipelines.files.table_files import THREADS, InputFile

log = logging.getLogger("nightjar")

DUPLICATE_NAME = "two columns of this name"
MAGIC, ENCRYPTED = b"PAR1", b"PARE"
TAIL = 8  # bytes at the end of a file: the length of the footer and the magic number
FIRST_READ = 1 << 16  # bytes read first: few footers are longer
# Parquet codecs that need a class which Spark does not ship.
CODEC_CLASSES = {"BROTLI": "org.apache.hadoop.io.compress.BrotliCodec", "LZO": "com.hadoop.compression.lzo.LzoCodec"}
# Encodings that Spark's vectorised reader does not support.
ENCODINGS = {"BYTE_STREAM_SPLIT"} if pyspark.__version__.startswith("3.") else set[str]()
# First bytes of a file -> format
OTHER_FORMATS = {
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"{": "JSON",
    b"[": "JSON",
}


@dataclass(frozen=True, eq=False)
class Footer:
    """The metadata of a Parquet file."""

    file: InputFile
    rows: int
    types: Mapping[str, str]  # column -> Spark type, "void" if all null, the Parquet type if Spark has none
    unreadable: Mapping[str, str] = field(
        default_factory=dict
    )  # column -> the codec or encoding that Spark cannot read

    def name_of(self, wanted: str) -> str | None:
        """The column of this name, or else the only column whose name differs in case only."""
        if wanted in self.types:
            return wanted
        matches = [name for name in self.types if name.lower() == wanted.lower()]
        return matches[0] if len(matches) == 1 else None


class FooterError(ValueError):
    """The footer of a file cannot be read. The argument gives the reason."""


class Footers:
    """Reads footers and caches them by path, length and modification time."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._read: dict[InputFile, Footer] = {}
        self._codecs: dict[str, bool] = {}

    def read(self, files: list[InputFile]) -> tuple[list[Footer], list[str]]:
        """Read the footers of the files. Returns them in order, and a message for each file without a readable footer."""
        missing = [file for file in files if file not in self._read]
        refused = []
        with ThreadPoolExecutor(THREADS) as pool:
            for file, footer in zip(missing, pool.map(self._footer_or_reason, missing), strict=True):
                if isinstance(footer, str):
                    refused.append(f"the file {file.uri} {footer}")
                else:
                    self._read[file] = footer
        return [self._read[file] for file in files if file in self._read], refused

    def _footer_or_reason(self, file: InputFile) -> Footer | str:
        try:
            return self._footer(file)
        except FooterError as error:
            return str(error)
        except PermissionError:
            return "cannot be read: permission denied. Give this user permission to read it"

    def _footer(self, file: InputFile) -> Footer:
        tail = self._read_end(file, FIRST_READ)
        if tail[-4:] == ENCRYPTED:
            raise FooterError("is encrypted: write it without encryption")
        if tail[-4:] != MAGIC or len(tail) < TAIL + len(MAGIC):
            raise FooterError(self._without_footer(file))
        length = int.from_bytes(tail[-TAIL:-4], "little") + TAIL
        if length > file.length:
            raise FooterError("cannot be read: it is damaged (its footer is longer than the file). Write it again")
        if length > len(tail):
            tail = self._read_end(file, length)
        try:
            metadata = pq.read_metadata(pa.BufferReader(tail[-length:]))
            columns = column_types(metadata.schema, metadata.schema.to_arrow_schema())
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            return self._read_with_spark(file, error)
        if not columns:
            raise FooterError("is a Parquet file without columns: delete it, or write it again")
        unreadable, names = self._unreadable(metadata, columns), Counter(name for name, _, _ in columns)
        unreadable |= {name: DUPLICATE_NAME for name, times in names.items() if times > 1}
        return Footer(file, metadata.num_rows, {name: kind for name, kind, _ in columns}, unreadable)

    def _read_end(self, file: InputFile, length: int) -> bytes:
        length = min(length, file.length)
        return self._files.read_piece(file.uri, file.length - length, length)

    def _without_footer(self, file: InputFile) -> str:
        head = self._files.read_piece(file.uri, 0, min(len(MAGIC), file.length))
        if head == MAGIC:
            return "cannot be read: it is cut short (it starts like a Parquet file but has no footer). Write it again"
        other = next((name for start, name in OTHER_FORMATS.items() if head.startswith(start)), None)
        kind = f" but looks like {other}" if other else ""
        return f"is not a Parquet file{kind}: write its rows as Parquet, or remove the file from this folder"

    def _unreadable(self, metadata: Any, columns: list[tuple[str, str, int]]) -> dict[str, str]:
        """Column -> the codec or encoding that Spark cannot read.

        Checks only the first and the last row group: writers use the same settings for all of them.
        """
        problems: dict[str, str] = {}
        for group in {0, metadata.num_row_groups - 1} if metadata.num_rows else ():
            chunks, number = metadata.row_group(group), 0
            for name, _, width in columns:
                for _ in range(width):
                    chunk, number = chunks.column(number), number + 1
                    if not self._has_codec(chunk.compression):
                        problems[name] = f"the codec {chunk.compression.lower()}"
                    elif encodings := ENCODINGS.intersection(chunk.encodings):
                        problems[name] = f"the encoding {min(encodings)}"
        return problems

    def _has_codec(self, codec: str) -> bool:
        if codec not in CODEC_CLASSES:
            return True
        if codec not in self._codecs:
            self._codecs[codec] = self._files.has_class(CODEC_CLASSES[codec])
        return self._codecs[codec]

    def _read_with_spark(self, file: InputFile, error: Exception) -> Footer:
        """The columns as Spark reads them, for files with types that this version of Arrow does not support."""
        spark: SparkSession = self._files.spark
        try:
            types = dict(spark.read.parquet(glob_escaped(file.uri)).dtypes)
        except (Py4JError, PySparkException):
            log.debug("footer of %s: %s", file.uri, error)
            raise FooterError("cannot be read: its footer is damaged. Write it again") from error
        return Footer(file, 1, types)


def glob_escaped(uri: str) -> str:
    """Escape the characters of a URI that Spark's reader would treat as a glob pattern."""
    return "".join(f"\\{letter}" if letter in "{}[]*?\\" else letter for letter in uri)

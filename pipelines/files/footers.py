"""What the footer of a Parquet file says: columns, types, rows, and what of it Spark cannot read."""

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

TWICE = "two columns of this name"
MAGIC, ENCRYPTED = b"PAR1", b"PARE"
TAIL = 8  # bytes: the length of the footer, and the magic
GUESS = 1 << 16  # bytes read at first: few footers are longer
# Codecs of Parquet for which Spark needs a class that it does not bring along.
CODEC_CLASSES = {"BROTLI": "org.apache.hadoop.io.compress.BrotliCodec", "LZO": "com.hadoop.compression.lzo.LzoCodec"}
# Encodings that Spark's vectorised reader refuses.
ENCODINGS = {"BYTE_STREAM_SPLIT"} if pyspark.__version__.startswith("3.") else set[str]()
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
    """A Parquet file before its rows are read."""

    file: InputFile
    rows: int
    types: Mapping[str, str]  # column -> Spark type, "void" where it has no value, or a word where Spark has no type
    unreadable: Mapping[str, str] = field(default_factory=dict)  # column -> what Spark cannot read of it

    def name_of(self, wanted: str) -> str | None:
        """The column of this name; where there is none, the only one whose name differs in case alone."""
        if wanted in self.types:
            return wanted
        twins = [name for name in self.types if name.lower() == wanted.lower()]
        return twins[0] if len(twins) == 1 else None


class FooterError(ValueError):
    """A file is no Parquet file that can be read; the argument says why."""


class Footers:
    """Reads footers, each file once while it does not change."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._read: dict[InputFile, Footer] = {}
        self._codecs: dict[str, bool] = {}

    def read(self, files: list[InputFile]) -> tuple[list[Footer], list[str]]:
        """The footers in the order of the files, and the reason for each file that has none."""
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
            return "may not be read: give this user the right to read it"

    def _footer(self, file: InputFile) -> Footer:
        tail = self._end(file, GUESS)
        if tail[-4:] == ENCRYPTED:
            raise FooterError("is encrypted: write it without encryption")
        if tail[-4:] != MAGIC or len(tail) < TAIL + len(MAGIC):
            raise FooterError(self._without_footer(file))
        length = int.from_bytes(tail[-TAIL:-4], "little") + TAIL
        if length > file.length:
            raise FooterError("cannot be read: it is damaged (its footer is longer than the file). Write it again")
        if length > len(tail):
            tail = self._end(file, length)
        try:
            metadata = pq.read_metadata(pa.BufferReader(tail[-length:]))
            columns = column_types(metadata.schema, metadata.schema.to_arrow_schema())
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            return self._by_spark(file, error)
        if not columns:
            raise FooterError("is a Parquet file without a column, so it says nothing: delete it, or write it again")
        unreadable, names = self._unreadable(metadata, columns), Counter(name for name, _, _ in columns)
        unreadable |= {name: TWICE for name, times in names.items() if times > 1}
        return Footer(file, metadata.num_rows, {name: kind for name, kind, _ in columns}, unreadable)

    def _end(self, file: InputFile, length: int) -> bytes:
        length = min(length, file.length)
        return self._files.read_piece(file.uri, file.length - length, length)

    def _without_footer(self, file: InputFile) -> str:
        head = self._files.read_piece(file.uri, 0, min(len(MAGIC), file.length))
        if head == MAGIC:
            return "cannot be read: it is cut short (it begins as a Parquet file and has no end). Write it again"
        other = next((name for start, name in OTHER_FORMATS.items() if head.startswith(start)), None)
        kind = f" but looks like {other}" if other else ""
        return f"is no Parquet file{kind}: write its rows as Parquet, or take the file out of this folder"

    def _unreadable(self, metadata: Any, columns: list[tuple[str, str, int]]) -> dict[str, str]:
        """What Spark cannot read: looked up in the first and the last row group, which a writer makes alike."""
        found: dict[str, str] = {}
        for group in {0, metadata.num_row_groups - 1} if metadata.num_rows else ():
            chunks, number = metadata.row_group(group), 0
            for name, _, width in columns:
                for _ in range(width):
                    chunk, number = chunks.column(number), number + 1
                    if not self._has_codec(chunk.compression):
                        found[name] = f"the codec {chunk.compression.lower()}"
                    elif encodings := ENCODINGS.intersection(chunk.encodings):
                        found[name] = f"the encoding {min(encodings)}"
        return found

    def _has_codec(self, codec: str) -> bool:
        if codec not in CODEC_CLASSES:
            return True
        if codec not in self._codecs:
            self._codecs[codec] = self._files.has_class(CODEC_CLASSES[codec])
        return self._codecs[codec]

    def _by_spark(self, file: InputFile, error: Exception) -> Footer:
        """The columns as Spark sees them, for what Arrow does not understand: types that are newer than it."""
        spark: SparkSession = self._files.spark
        try:
            types = dict(spark.read.parquet(glob_escaped(file.uri)).dtypes)
        except (Py4JError, PySparkException):
            log.debug("footer of %s: %s", file.uri, error)
            raise FooterError("cannot be read: its footer is damaged. Write it again") from error
        return Footer(file, 1, types)


def glob_escaped(uri: str) -> str:
    """A URI for Spark's reader, which takes some characters for a pattern."""
    return "".join(f"\\{letter}" if letter in "{}[]*?\\" else letter for letter in uri)

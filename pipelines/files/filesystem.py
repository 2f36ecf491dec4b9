"""Files and folders through Hadoop: local folders, hdfs://, s3a://, gs:// and other stores."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from pipelines.contract.errors import UsageError
from pipelines.files.broken_files import three_slashes

# The text form of Hadoop's FileStatus. One call prints a whole folder; reading the fields of each file would take thousands of
# calls. The access time is not parsed, because reading a file changes it.
FILE_STATUS = re.compile(
    r"path=(?P<path>[^\n]+?); isDirectory=(?P<folder>true|false); (?:length=(?P<length>\d+); )?"
    r"[^}\n]*?modification_time=(?P<modified>\d+)"
)
NOT_A_PATH = re.compile(r"Relative path in absolute URI: (\S+)")


@dataclass(frozen=True)
class Entry:
    """A file or folder in the listing of its parent."""

    name: str
    is_folder: bool
    length: int  # bytes
    modified: int  # milliseconds since 1970


class UnreadableNameError(OSError):
    """Hadoop cannot handle the name of a file. The argument is the name."""


def _local_uri(path: Path) -> str:
    """A local path as a URI for Hadoop. Hadoop does not decode %20, so spaces stay (Path.as_uri would encode them)."""
    return f"file://{path.absolute()}"


def _local_path(uri: str) -> Path | None:
    """The path of a local URI; None for other stores."""
    return Path(uri.removeprefix("file://")) if uri.startswith("file:///") else None


# Stores that rename files (also over existing ones) and folders atomically. Others copy and delete file by file.
ATOMIC_RENAME = ("file", "hdfs", "viewfs", "webhdfs", "swebhdfs")


def renames_atomically(uri: str) -> bool:
    """Whether the store of a qualified URI renames atomically."""
    return uri.partition(":")[0] in ATOMIC_RENAME


# Hadoop's errors for an unknown scheme and for missing jars.
NO_STORE = re.compile(r"No FileSystem for scheme|ClassNotFoundException")


def _local_entry(path: Path) -> Entry:
    """The entry of a local path. A dangling link counts as an empty file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = path.lstat()
        return Entry(path.name, False, 0, status.st_mtime_ns // 1_000_000)
    return Entry(path.name, path.is_dir(), status.st_size, status.st_mtime_ns // 1_000_000)


class FileSystem:
    """Access to Hadoop file systems by URI."""

    def __init__(self, spark: SparkSession) -> None:
        self.spark = spark
        # The Hadoop gateway is not part of PySpark's typed API; only this class uses it.
        self._jvm: Any = spark._jvm
        # Resolving a dotted class name makes one JVM call per dot, and a night creates thousands of paths. Resolve once.
        self._path_class: Any = self._jvm.org.apache.hadoop.fs.Path
        self._predef: Any = self._jvm.scala.Predef
        self._hadoop_conf: Any = spark._jsc.hadoopConfiguration()

    def _path(self, uri: str) -> Any:
        return self._path_class(uri)

    def _fs(self, uri: str) -> Any:
        try:
            return self._path(uri).getFileSystem(self._hadoop_conf)
        except Py4JJavaError as error:
            if not NO_STORE.search(str(error.java_exception)):
                raise
            raise UsageError(
                f"Spark cannot read {uri}: its Hadoop has no file system for {uri.partition(':')[0]}://. Add the jars of that "
                "store to Spark, e.g. --packages org.apache.hadoop:hadoop-aws:VERSION for s3a://, in the same version as "
                "Spark's hadoop-client (docs/stores.md)"
            ) from None

    def _qualified(self, uri: str) -> str:
        if "://" not in uri and not uri.startswith("file:"):
            # A bare path is local, whatever fs.defaultFS says: the same config runs on laptops and clusters.
            uri = _local_uri(Path(uri).expanduser())
        return three_slashes(self._fs(uri).makeQualified(self._path(uri)).toString().rstrip("/"))

    def has_class(self, name: str) -> bool:
        """Whether a class, for example of a codec, is on the JVM's class path."""
        try:
            self._jvm.java.lang.Class.forName(
                name, False, self._jvm.java.lang.Thread.currentThread().getContextClassLoader()
            )
        except Py4JJavaError:
            return False
        return True

    def exists(self, uri: str) -> bool:
        """Whether a file or folder exists."""
        return bool(self._fs(uri).exists(self._path(uri)))

    def delete(self, uri: str) -> None:
        """Delete a file or folder if it exists."""
        self._fs(uri).delete(self._path(uri), True)

    def rename(self, source: str, target: str) -> None:
        """Move a file or folder within one file system. Raises OSError if the target exists."""
        fs = self._fs(source)
        fs.mkdirs(self._path(target).getParent())
        if fs.exists(self._path(target)) or not fs.rename(self._path(source), self._path(target)):
            raise OSError(f"could not move {source} to {target}: the target exists or cannot be written")

    def children(self, uri: str) -> list[Any]:
        """Hadoop FileStatus of the direct children of a folder; empty if the folder does not exist."""
        return list(self._fs(uri).listStatus(self._path(uri))) if self.exists(uri) else []

    def entries(self, uri: str) -> list[Entry]:
        """The direct children of a folder, sorted by name.

        Raises FileNotFoundError if the folder does not exist. Raises UnreadableNameError if a store lists a name with a
        colon, which Hadoop cannot parse (local folders are listed by Python, which can).
        """
        if local := _local_path(uri):
            return [_local_entry(local / name) for name in sorted(os.listdir(local))]
        try:
            printed = self._predef.genericWrapArray(self._fs(uri).listStatus(self._path(uri))).mkString("\n")
        except Py4JJavaError as error:
            if name := NOT_A_PATH.search(str(error)):
                raise UnreadableNameError(name[1]) from None
            if "FileNotFoundException" in str(error.java_exception.getClass().getName()):
                raise FileNotFoundError(uri) from None
            raise
        listed = [
            Entry(
                status["path"].rpartition("/")[2],
                status["folder"] == "true",
                int(status["length"] or 0),
                int(status["modified"]),
            )
            for status in FILE_STATUS.finditer(printed)
        ]
        return sorted(listed, key=lambda entry: entry.name)

    def read_piece(self, uri: str, start: int, length: int) -> bytes:
        """Read `length` bytes from offset `start`. The file must be long enough."""
        if local := _local_path(uri):
            with local.open("rb") as file:
                file.seek(start)
                return file.read(length)
        stream = self._fs(uri).open(self._path(uri))
        try:
            stream.seek(start)
            return bytes(self._jvm.org.apache.commons.io.IOUtils.toByteArray(stream, length))
        finally:
            stream.close()

    def read_text(self, uri: str) -> str:
        """Read a small text file. Raises FileNotFoundError if it does not exist."""
        if local := _local_path(uri):
            return local.read_text(encoding="utf-8")
        if not self.exists(uri):
            raise FileNotFoundError(uri)
        stream = self._fs(uri).open(self._path(uri))
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def write_text(self, uri: str, text: str) -> None:
        """Write a small text file atomically: a reader sees the old content or the new content."""
        self._move_text(uri, text, replace=True)

    def create_text(self, uri: str, text: str) -> bool:
        """Create a small text file. Returns False if it exists. Atomic, except on some object stores."""
        if self.exists(uri):
            return False
        try:
            self._move_text(uri, text, replace=False)
        except FileExistsError:
            return False
        return True

    def _move_text(self, uri: str, text: str, *, replace: bool) -> None:
        if local := _local_path(uri):
            # Not through Hadoop: it moves the file and its checksum file one after the other, and a reader in between would
            # see a checksum that does not match.
            local.parent.mkdir(parents=True, exist_ok=True)
            new = local.with_name(f"{local.name}.{uuid.uuid4().hex}.tmp")
            try:
                new.write_text(text, encoding="utf-8")
                if replace:
                    new.replace(local)
                else:
                    os.link(new, local)  # Fails if the name exists.
                local.with_name(f".{local.name}.crc").unlink(missing_ok=True)
            finally:
                new.unlink(missing_ok=True)
            return
        if not renames_atomically(uri):
            self._put_text(uri, text, replace=replace)
            return
        temporary = f"{uri}.{uuid.uuid4().hex}.tmp"
        self._put_text(temporary, text, replace=True)
        context = self._jvm.org.apache.hadoop.fs.FileContext.getFileContext(self._path(uri).toUri(), self._hadoop_conf)
        options = self.spark.sparkContext._gateway.new_array(self._jvm.org.apache.hadoop.fs.Options.Rename, 1)
        options[0] = getattr(self._jvm.org.apache.hadoop.fs.Options.Rename, "OVERWRITE" if replace else "NONE")
        try:
            context.rename(self._path(temporary), self._path(uri), options)
        except Py4JJavaError as error:
            self.delete(temporary)
            if "FileAlreadyExistsException" in str(error.java_exception.getClass().getName()):
                raise FileExistsError(uri) from None
            raise

    def _put_text(self, uri: str, text: str, *, replace: bool) -> None:
        """Write one object; object stores show it once it is complete. Raises FileExistsError if it exists and not `replace`.

        A rename would delete the target first on these stores, and a job killed in between would leave no file.
        """
        try:
            stream = self._fs(uri).create(self._path(uri), replace)
        except Py4JJavaError as error:
            if "FileAlreadyExistsException" in str(error.java_exception.getClass().getName()):
                raise FileExistsError(uri) from None
            raise
        stream.write(bytearray(text.encode()))
        stream.close()  # Not called if the write failed: closing publishes the object.

    def upload(self, local: Path, uri: str) -> None:
        """Copy a local folder or file to a URI."""
        self._fs(uri).copyFromLocalFile(False, True, self._path(_local_uri(local)), self._path(uri))

    def replace_folder(self, staging: str, target: str, last: str) -> None:
        """Replace a folder by a staged one. The target is missing only between two renames.

        If the store cannot rename folders atomically, the file `last`, which marks the folder as complete, is deleted first
        and moved last.
        """
        if not renames_atomically(target):
            self.delete(f"{target}/{last}")
            self.delete(target)
            names = [status.getPath().getName() for status in self.children(staging)]
            for name in sorted(names, key=lambda name: (name == last, name)):
                self.rename(f"{staging}/{name}", f"{target}/{name}")
            self.delete(staging)
            return
        aside = f"{staging.rpartition('/')[0]}/{uuid.uuid4().hex}"  # new_staging deletes it if this run is killed.
        old = self.exists(target)
        if old:
            self.rename(target, aside)
        self.rename(staging, target)
        if old:
            self.delete(aside)

    def copy(self, source: str, target: str) -> None:
        """Copy a file or folder, also between file systems."""
        files = self._jvm.org.apache.hadoop.fs.FileUtil
        a, b = self._path(source), self._path(target)
        files.copy(self._fs(source), a, self._fs(target), b, False, True, self._hadoop_conf)

    def data_files(self, uri: str) -> list[str]:
        """URIs of all data files under a folder, sorted. Hidden files (_ or .) are not included."""
        statuses = self._fs(uri).listFiles(self._path(uri), True)
        files = []
        while statuses.hasNext():
            status = statuses.next()
            if not status.getPath().getName().startswith(("_", ".")):
                files.append(three_slashes(status.getPath().toString()))
        return sorted(files)

    @contextmanager
    def deleted_on_error(self, staging: str) -> Iterator[None]:
        """Delete the staging folder if the block raises, so that a failed write does not keep a full disk full."""
        try:
            yield
        except BaseException:
            self.delete(staging)
            raise

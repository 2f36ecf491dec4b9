"""Files and folders wherever Hadoop finds them: a local folder, hdfs://, s3a:// or gs://."""

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

# How Hadoop prints a FileStatus: one call prints a whole folder, where asking each file for its parts would be thousands. Its
# access time, which reading changes, is left out.
FILE_STATUS = re.compile(
    r"path=(?P<path>[^\n]+?); isDirectory=(?P<folder>true|false); (?:length=(?P<length>\d+); )?"
    r"[^}\n]*?modification_time=(?P<modified>\d+)"
)
NOT_A_PATH = re.compile(r"Relative path in absolute URI: (\S+)")


@dataclass(frozen=True)
class Entry:
    """A file or folder as its parent lists it."""

    name: str
    is_folder: bool
    length: int  # bytes
    modified: int  # milliseconds since 1970


class UnreadableNameError(OSError):
    """A file whose name Hadoop cannot work with; the argument is the name."""


def _local_uri(path: Path) -> str:
    """Hadoop takes the path as it is: a space stays a space, where Path.as_uri would write %20 and make another folder."""
    return f"file://{path.absolute()}"


def _local_path(uri: str) -> Path | None:
    """The path of a local URI."""
    return Path(uri.removeprefix("file://")) if uri.startswith("file:///") else None


# Stores that rename a file over another, or a folder, in one move. Elsewhere a rename copies and deletes, file by file.
ATOMIC_RENAME = ("file", "hdfs", "viewfs", "webhdfs", "swebhdfs")


def renames_atomically(uri: str) -> bool:
    """Whether the store of a qualified URI does."""
    return uri.partition(":")[0] in ATOMIC_RENAME


# How Hadoop reports a scheme that it does not know, or whose jars are missing.
NO_STORE = re.compile(r"No FileSystem for scheme|ClassNotFoundException")


def _local_entry(path: Path) -> Entry:
    """A link to nothing is an empty file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = path.lstat()
        return Entry(path.name, False, 0, status.st_mtime_ns // 1_000_000)
    return Entry(path.name, path.is_dir(), status.st_size, status.st_mtime_ns // 1_000_000)


class FileSystem:
    """Hadoop's file systems as a job uses them, by URI."""

    def __init__(self, spark: SparkSession) -> None:
        self.spark = spark
        # The gateway to Hadoop is not in PySpark's typed surface; this class is the one place that reaches for it.
        self._jvm: Any = spark._jvm
        # Looking a class up by its dotted name is a call to the JVM for every dot; a night makes thousands of paths.
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
                "store to Spark, e.g. --packages org.apache.hadoop:hadoop-aws:VERSION for s3a://, the version that of Spark's "
                "hadoop-client (docs/stores.md)"
            ) from None

    def _qualified(self, uri: str) -> str:
        if "://" not in uri and not uri.startswith("file:"):
            # A bare path is a local one, whatever fs.defaultFS says: config files are read on laptops and clusters.
            uri = _local_uri(Path(uri).expanduser())
        return three_slashes(self._fs(uri).makeQualified(self._path(uri)).toString().rstrip("/"))

    def has_class(self, name: str) -> bool:
        """Whether the JVM has a class, of a codec say."""
        try:
            self._jvm.java.lang.Class.forName(
                name, False, self._jvm.java.lang.Thread.currentThread().getContextClassLoader()
            )
        except Py4JJavaError:
            return False
        return True

    def exists(self, uri: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self._fs(uri).exists(self._path(uri)))

    def delete(self, uri: str) -> None:
        """Remove a file or folder, if it is there."""
        self._fs(uri).delete(self._path(uri), True)

    def rename(self, source: str, target: str) -> None:
        """Move within one file system; the target must not be there."""
        fs = self._fs(source)
        fs.mkdirs(self._path(target).getParent())
        if fs.exists(self._path(target)) or not fs.rename(self._path(source), self._path(target)):
            raise OSError(f"could not move {source} to {target}: the target exists or cannot be written")

    def children(self, uri: str) -> list[Any]:
        """Hadoop FileStatus of what lies directly under a folder; empty where there is no folder."""
        return list(self._fs(uri).listStatus(self._path(uri))) if self.exists(uri) else []

    def entries(self, uri: str) -> list[Entry]:
        """What lies directly under a folder, by name. FileNotFoundError where there is no folder.

        Raises UnreadableNameError for a name with a colon in a store that lists it; on a local disk Python lists it.
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
        found = [
            Entry(
                status["path"].rpartition("/")[2],
                status["folder"] == "true",
                int(status["length"] or 0),
                int(status["modified"]),
            )
            for status in FILE_STATUS.finditer(printed)
        ]
        return sorted(found, key=lambda entry: entry.name)

    def read_piece(self, uri: str, start: int, length: int) -> bytes:
        """Some bytes of a file; the file must have them."""
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
        """A small text file, whole. FileNotFoundError where there is none."""
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
        """A small text file, replaced in one move: a reader sees the old one or the new one."""
        self._move_text(uri, text, replace=True)

    def create_text(self, uri: str, text: str) -> bool:
        """A small text file where there is none; False where there is one. One move, but for object stores."""
        if self.exists(uri):
            return False
        try:
            self._move_text(uri, text, replace=False)
        except FileExistsError:
            return False
        return True

    def _move_text(self, uri: str, text: str, *, replace: bool) -> None:
        if local := _local_path(uri):
            # Not through Hadoop, which keeps checksums in a file of their own: a reader between its two moves finds one
            # that does not fit.
            local.parent.mkdir(parents=True, exist_ok=True)
            new = local.with_name(f"{local.name}.{uuid.uuid4().hex}.tmp")
            try:
                new.write_text(text, encoding="utf-8")
                if replace:
                    new.replace(local)
                else:
                    os.link(new, local)  # Fails where the name is taken.
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
        """One object, which an object store shows when it is complete. FileExistsError if it is there and may not be replaced.

        A rename there would delete the target first, and a job killed in between would leave none.
        """
        try:
            stream = self._fs(uri).create(self._path(uri), replace)
        except Py4JJavaError as error:
            if "FileAlreadyExistsException" in str(error.java_exception.getClass().getName()):
                raise FileExistsError(uri) from None
            raise
        stream.write(bytearray(text.encode()))
        stream.close()  # Not if writing failed: closing is what makes the object appear.

    def upload(self, local: Path, uri: str) -> None:
        """Copy a local folder or file to a URI."""
        self._fs(uri).copyFromLocalFile(False, True, self._path(_local_uri(local)), self._path(uri))

    def replace_folder(self, staging: str, target: str, last: str) -> None:
        """Put a staged folder in the place of another; readers miss it between two renames, not while files go.

        Where a folder cannot be moved at once, its file `last` goes first and comes last: it is what makes the folder whole.
        """
        if not renames_atomically(target):
            self.delete(f"{target}/{last}")
            self.delete(target)
            names = [status.getPath().getName() for status in self.children(staging)]
            for name in sorted(names, key=lambda name: (name == last, name)):
                self.rename(f"{staging}/{name}", f"{target}/{name}")
            self.delete(staging)
            return
        aside = f"{staging.rpartition('/')[0]}/{uuid.uuid4().hex}"  # Where new_staging finds what a killed run left.
        old = self.exists(target)
        if old:
            self.rename(target, aside)
        self.rename(staging, target)
        if old:
            self.delete(aside)

    def copy(self, source: str, target: str) -> None:
        """Copy a file or folder, to another file system too."""
        files = self._jvm.org.apache.hadoop.fs.FileUtil
        a, b = self._path(source), self._path(target)
        files.copy(self._fs(source), a, self._fs(target), b, False, True, self._hadoop_conf)

    def data_files(self, uri: str) -> list[str]:
        """Every data file under a folder, as full URIs in order."""
        found = self._fs(uri).listFiles(self._path(uri), True)
        files = []
        while found.hasNext():
            status = found.next()
            if not status.getPath().getName().startswith(("_", ".")):
                files.append(three_slashes(status.getPath().toString()))
        return sorted(files)

    @contextmanager
    def removed_where_it_fails(self, staging: str) -> Iterator[None]:
        """What a full disk cut short would keep it full."""
        try:
            yield
        except BaseException:
            self.delete(staging)
            raise

"""Errors of Spark about a file that it cannot read, in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from pipelines.contract.errors import InputError

# How Spark tells of a file that it cannot read: by its footer, its checksum or its pages. The last is how trainers do.
BROKEN_FILE = re.compile(
    r"(?:footer for file|Checksum error|while reading file):? (\S.*?)(?=\.(?:\s|$)| at \d+ exp)"
    r"|(?:(\w+:/.*?) is not a Parquet file|the file (\S.*?) cannot be read)",
    re.MULTILINE,
)

# Errors about files that are whole: pattern -> what is wrong.
WHOLE_FILES = {
    r"Unsupported encoding: (\w+)": "Spark cannot read its encoding {} (default encodings would do)",
    r"Class (\S+Codec) was not found": "Spark lacks its codec {} (zstd or snappy would do)",
    r"FileNotFoundException()": "it is missing, or was removed while it was read",
    r"AccessControlException()|Permission denied()": "this user may not read it",
}
DAMAGED = "it is cut short, damaged or no Parquet"


def what_is_wrong(text: str) -> str:
    """Why a file that an error names cannot be read."""
    for pattern, reason in WHOLE_FILES.items():
        if found := re.search(pattern, text):
            return reason.format(found[1])
    return DAMAGED


def broken_file(text: str) -> str | None:
    """The file that an error says cannot be read, as a URI; None where it speaks of something else."""
    found = BROKEN_FILE.search(text)
    return three_slashes(next(filter(None, found.groups()))) if found else None


def three_slashes(uri: str) -> str:
    """Hadoop prints file:/tmp; everybody else reads file:///tmp."""
    return re.sub(r"^file:/(?!/)", "file:///", uri)


@contextmanager
def naming_broken_files(table: str) -> Iterator[None]:
    """Spark's pages about a file that it cannot read, as an InputError that names the table, the file and the remedy."""
    try:
        yield
    except (Py4JError, PySparkException) as error:
        text = str(error)
        file = broken_file(text)
        if file is None:
            raise
        raise InputError(
            f"table {table}: the file {file} cannot be read: {what_is_wrong(text)}. Write this partition again"
        ) from error

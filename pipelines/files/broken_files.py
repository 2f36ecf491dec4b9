"""Turns Spark's errors about unreadable files into one-line messages."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from pipelines.contract.errors import InputError

# How errors name a file that cannot be read. The first line matches Spark (footer, checksum, pages), the second trainers.
BROKEN_FILE = re.compile(
    r"(?:footer for file|Checksum error|while reading file):? (\S.*?)(?=\.(?:\s|$)| at \d+ exp)"
    r"|(?:(\w+:/.*?) is not a Parquet file|the file (\S.*?) cannot be read)",
    re.MULTILINE,
)

# Reasons why Spark cannot read an intact file: pattern in the error -> reason.
INTACT_FILE_REASONS = {
    r"Unsupported encoding: (\w+)": "Spark cannot read its encoding {} (default encodings work)",
    r"Class (\S+Codec) was not found": "Spark lacks its codec {} (zstd and snappy work)",
    r"FileNotFoundException()": "it is missing, or was removed during the read",
    r"AccessControlException()|Permission denied()": "this user has no permission to read it",
}
DAMAGED = "it is cut short, damaged or not Parquet"


def what_is_wrong(text: str) -> str:
    """Why the file that an error message names cannot be read."""
    for pattern, reason in INTACT_FILE_REASONS.items():
        if match := re.search(pattern, text):
            return reason.format(match[1])
    return DAMAGED


def broken_file(text: str) -> str | None:
    """The URI of the unreadable file that an error message names; None if the error has another cause."""
    match = BROKEN_FILE.search(text)
    return three_slashes(next(filter(None, match.groups()))) if match else None


def three_slashes(uri: str) -> str:
    """Rewrite file:/tmp, as Hadoop prints it, to file:///tmp, as other tools read it."""
    return re.sub(r"^file:/(?!/)", "file:///", uri)


@contextmanager
def naming_broken_files(table: str) -> Iterator[None]:
    """Replace Spark's error about an unreadable file by an InputError with the table, the file and the remedy."""
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

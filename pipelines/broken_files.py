"""Files that Spark cannot read, told in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from pipelines.errors import InputError

# How Spark tells of a file that it cannot read: by its footer, its checksum or its pages. The last is how trainers do.
BROKEN_FILE = re.compile(
    r"(?:footer for file|Checksum error|while reading file):? (\S.*?)(?=\.(?:\s|$)| at \d+ exp)"
    r"|(?:(\w+:/.*?) is not a Parquet file|the file (\S.*?) cannot be read)",
    re.MULTILINE,
)


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
        if "UNABLE_TO_INFER_SCHEMA" in text:
            raise InputError(f"table {table}: a partition holds no Parquet file. Check the feed") from error
        if "CANNOT_MERGE_SCHEMAS" in text:
            schemas = " and ".join(sorted(set(re.findall(r'^"STRUCT<(.*)>"', text, re.MULTILINE))))
            raise InputError(
                f"table {table}: its files disagree on the type of a column: {schemas}. Write them alike"
            ) from error
        file = broken_file(text)
        if file is None:
            raise
        raise InputError(
            f"table {table}: the file {file} cannot be read: it is cut short, damaged or no Parquet. Write this partition "
            "again"
        ) from error

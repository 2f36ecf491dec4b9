"""Lists the data files of an input table. Decides by file name (and size) only which files hold rows."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipelines.contract.errors import InputError
from pipelines.files.filesystem import Entry, FileSystem, UnreadableNameError

THREADS = 16  # Listing folders and reading footers waits for a disk or a store.
EXAMPLES = 10  # names listed in a message
DAY = re.compile(r"ds=\d{4}-\d{2}-\d{2}")

# Files that file browsers, people and writers leave beside data. Every other file is data or is refused.
NOT_DATA = re.compile(
    r"thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|.*:zone\.identifier|.*_\$folder\$"
    r"|(?:readme|licen[cs]e|notes?|changes|changelog)(?:\..*)?|success|done|.*\.(?:md|rst|html?|pdf|png|jpe?g|svg|lnk|url)"
    r"|.*\.(?:crc|md5|sha\d+|sig|asc|log|ini|db|sh|py|sql|ya?ml|lock|done|success|ok|flag)",
    re.IGNORECASE | re.DOTALL,
)
# Files that every write of Spark and Hadoop leaves beside the data: checksums of local files and the success marker. They are
# expected in every folder, so the report does not count them.
BY_PRODUCT = re.compile(r"_SUCCESS|\..+\.crc", re.DOTALL)
# Names of unfinished files and of backups by editors or people.
BACKUP_OR_UNFINISHED = re.compile(
    r"~$|^#.*#$|\.(?:bak|backup|orig|old|save|tmp|temp|part|partial|swp|crdownload|filepart|inprogress|writing)$",
    re.IGNORECASE,
)
COPIED = re.compile(
    r"(?:copy of )?(?P<name>.*?)(?: ?\(\d+\)| ?[-_ ] ?copy(?: ?\(?\d+\)?)?)?(?P<end>\.parquet)", re.IGNORECASE
)
NAMED_DATA = re.compile(r"parq|part-\d", re.IGNORECASE)
# Folders in which writers keep files that are not, or no longer, part of the table.
WORK_FOLDER = re.compile(
    r"_temporary|_spark_metadata|_delta_log|_committed_.*|_started_.*|\.(?:spark|hive)-staging.*|\.hoodie"
)


@dataclass(frozen=True)
class InputFile:
    """A data file of one day."""

    ds: str
    uri: str
    folders: tuple[str, ...]  # names of the folders between the day and the file, for example hour=05
    length: int  # bytes
    modified: int  # milliseconds since 1970

    @property
    def folder(self) -> str:
        """The URI of the folder that holds the file."""
        return self.uri.rpartition("/")[0]

    @property
    def shown(self) -> str:
        """The path of the file in messages: relative to the table."""
        return "/".join((f"ds={self.ds}", *self.folders, self.uri.rpartition("/")[2]))


@dataclass
class InputFiles:
    """The files of a list of days, sorted into data and the rest."""

    data: list[InputFile] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)  # named like data, but Spark ignores the name as private
    skipped: list[str] = field(default_factory=list)  # not data, and not by-products of Spark
    refused: list[str] = field(default_factory=list)  # one message per file, with the reason
    whole: set[str] = field(default_factory=set)  # folders in which Spark would read exactly the files of `data`

    def empty_days(self, days: Iterable[str]) -> list[str]:
        """The days without a data file."""
        return sorted(set(days) - {file.ds for file in self.data})


def list_files(files: FileSystem, uri: str, days: list[str]) -> InputFiles:
    """List the files of these days of an input table, including subfolders. Raises InputError if a day has no folder."""
    listed = InputFiles()
    with ThreadPoolExecutor(THREADS) as pool:
        for day in pool.map(lambda ds: _list_day(files, uri, ds), days):
            listed.data += day.data
            listed.hidden += day.hidden
            listed.skipped += day.skipped
            listed.refused += day.refused
            listed.whole |= day.whole
    return listed


def other_days(files: FileSystem, uri: str) -> dict[str, str]:
    """Folders of an input table that look like days but are not named ds=YYYY-MM-DD, as name -> day."""
    misnamed = {}
    for entry in _entries(files, uri) if files.exists(uri) else []:
        digits = re.search(r"(\d{4})\D?(\d{1,2})\D?(\d{1,2})(?!\d)", entry.name)
        if entry.is_folder and digits and not DAY.fullmatch(entry.name):
            misnamed[entry.name] = f"{digits[1]}-{int(digits[2]):02}-{int(digits[3]):02}"
    return misnamed


def is_hidden(name: str) -> bool:
    """Whether Spark skips a file of this name because it looks private to a writer."""
    return name.startswith(".") or name.endswith("._COPYING_") or (name.startswith("_") and "=" not in name)


def shortened(names: Iterable[str]) -> str:
    """The first names of a list as text, and the number of the others."""
    every = list(names)
    more = f" and {len(every) - EXAMPLES} more" if len(every) > EXAMPLES else ""
    return ", ".join(every[:EXAMPLES]) + more


def _list_day(files: FileSystem, uri: str, ds: str) -> InputFiles:
    listed = InputFiles()
    _list_folder(files, f"{uri}/ds={ds}", ds, (), listed)
    return listed


def _list_folder(files: FileSystem, folder: str, ds: str, inside: tuple[str, ...], listed: InputFiles) -> None:
    """Add the files of a folder to `listed`. `inside`: the names of the folders between the day and this folder."""
    entries = _entries(files, folder)
    names = {entry.name for entry in entries}
    data, whole = 0, True
    for entry in entries:
        shown = "/".join((f"ds={ds}", *inside, entry.name))
        if entry.is_folder and not is_hidden(entry.name):
            whole = False
            _list_folder(files, f"{folder}/{entry.name}", ds, (*inside, entry.name), listed)
        elif entry.is_folder:
            if not WORK_FOLDER.fullmatch(entry.name):
                listed.hidden += _named_like_data(files, f"{folder}/{entry.name}", shown)
        elif BY_PRODUCT.fullmatch(entry.name):
            continue
        elif is_hidden(entry.name):
            private = entry.name.startswith(("_metadata", "_common_metadata"))
            is_data = NAMED_DATA.search(entry.name) and not entry.name.endswith(".crc") and not private
            (listed.hidden if is_data else listed.skipped).append(shown)
        elif NOT_DATA.fullmatch(entry.name):
            whole = False
            listed.skipped.append(shown)
        elif reason := _reason_to_refuse(entry, names):
            whole = False
            listed.refused.append(f"the file {folder}/{entry.name} {reason}")
        else:
            data += 1
            listed.data.append(InputFile(ds, f"{folder}/{entry.name}", inside, entry.length, entry.modified))
    if whole and data:
        listed.whole.add(folder)


def _named_like_data(files: FileSystem, folder: str, shown: str) -> list[str]:
    """Files under a hidden folder whose names look like data."""
    names = []
    for entry in _entries(files, folder):
        if entry.is_folder:
            names += _named_like_data(files, f"{folder}/{entry.name}", f"{shown}/{entry.name}")
        elif NAMED_DATA.search(entry.name) and not entry.name.endswith(".crc"):
            names.append(f"{shown}/{entry.name}")
    return names


def _reason_to_refuse(entry: Entry, names: set[str]) -> str | None:
    """Why a file is refused, judged by its name and size only; None if it is read."""
    if ":" in entry.name:
        return "has a colon in its name, which Hadoop cannot read: rename it"
    if BACKUP_OR_UNFINISHED.search(entry.name):
        return (
            "has the name of a backup copy or an unfinished file, so its rows may be read twice: delete it, or give it a name "
            "that ends in .parquet if its rows belong to this day"
        )
    copied = COPIED.fullmatch(entry.name)
    if copied and (original := copied["name"] + copied["end"]) != entry.name and original in names:
        return f"has the name of a copy of {original}, so its rows would be read twice: delete it, or rename it"
    if entry.length == 0:
        return "is empty (0 bytes): its writer was probably stopped. Write it again, or delete it"
    return None


def _entries(files: FileSystem, folder: str) -> list[Entry]:
    try:
        return files.entries(folder)
    except UnreadableNameError as error:
        raise InputError(
            f"the file {folder}/{error} has a colon in its name, which Hadoop cannot read: rename it, then run this ds again"
        ) from None
    except FileNotFoundError:
        raise InputError(f"{folder} does not exist: check the feed and the paths under `inputs`") from None
    except PermissionError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): give this user permission to read it") from None

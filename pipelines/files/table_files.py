"""Which files of an input table hold rows: what its folders hold, sorted by name alone."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipelines.contract.errors import InputError
from pipelines.files.filesystem import Entry, FileSystem, UnreadableNameError

THREADS = 16  # Listing and reading ends of files is waiting for a disk or a store.
EXAMPLES = 10  # names in a message
DAY = re.compile(r"ds=\d{4}-\d{2}-\d{2}")

# What file browsers, people and writers leave beside data. Everything else is data, or is refused.
NO_DATA = re.compile(
    r"thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|.*:zone\.identifier|.*_\$folder\$"
    r"|(?:readme|licen[cs]e|notes?|changes|changelog)(?:\..*)?|success|done|.*\.(?:md|rst|html?|pdf|png|jpe?g|svg|lnk|url)"
    r"|.*\.(?:crc|md5|sha\d+|sig|asc|log|ini|db|sh|py|sql|ya?ml|lock|done|success|ok|flag)",
    re.IGNORECASE | re.DOTALL,
)
# What every write of Spark and Hadoop leaves beside its data: checksums of local files and the mark of a finished write.
# They are expected in any log folder, so the report does not count them.
BY_PRODUCT = re.compile(r"_SUCCESS|\..+\.crc", re.DOTALL)
# Ends of names of files that are not finished, or that an editor or a person put aside.
PUT_ASIDE = re.compile(
    r"~$|^#.*#$|\.(?:bak|backup|orig|old|save|tmp|temp|part|partial|swp|crdownload|filepart|inprogress|writing)$",
    re.IGNORECASE,
)
COPIED = re.compile(
    r"(?:copy of )?(?P<name>.*?)(?: ?\(\d+\)| ?[-_ ] ?copy(?: ?\(?\d+\)?)?)?(?P<end>\.parquet)", re.IGNORECASE
)
NAMED_DATA = re.compile(r"parq|part-\d", re.IGNORECASE)
# Folders in which writers keep what is not (or no longer) part of the table.
WORK_FOLDER = re.compile(
    r"_temporary|_spark_metadata|_delta_log|_committed_.*|_started_.*|\.(?:spark|hive)-staging.*|\.hoodie"
)


@dataclass(frozen=True)
class InputFile:
    """A file that holds rows of a day."""

    ds: str
    uri: str
    folders: tuple[str, ...]  # names of the folders between the day and the file, as hour=05
    length: int  # bytes
    modified: int  # milliseconds since 1970

    @property
    def folder(self) -> str:
        """The URI of the folder that holds the file."""
        return self.uri.rpartition("/")[0]

    @property
    def shown(self) -> str:
        """The file as messages name it."""
        return "/".join((f"ds={self.ds}", *self.folders, self.uri.rpartition("/")[2]))


@dataclass
class InputFiles:
    """The files of some days."""

    data: list[InputFile] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)  # named like data, in a way that Spark takes for private
    skipped: list[str] = field(default_factory=list)  # no data, and not a by-product of Spark
    refused: list[str] = field(default_factory=list)  # the reason for each file
    whole: set[str] = field(default_factory=set)  # folders in which Spark sees these data files and nothing else

    def empty_days(self, days: Iterable[str]) -> list[str]:
        """The days without a data file."""
        return sorted(set(days) - {file.ds for file in self.data})


def list_files(files: FileSystem, uri: str, days: list[str]) -> InputFiles:
    """The files of these days of an input table, in folders inside a day too. InputError where a day has no folder."""
    found = InputFiles()
    with ThreadPoolExecutor(THREADS) as pool:
        for listed in pool.map(lambda ds: _list_day(files, uri, ds), days):
            found.data += listed.data
            found.hidden += listed.hidden
            found.skipped += listed.skipped
            found.refused += listed.refused
            found.whole |= listed.whole
    return found


def other_days(files: FileSystem, uri: str) -> dict[str, str]:
    """Folders of an input table that seem to be days and are not called ds=YYYY-MM-DD: name -> the day."""
    found = {}
    for entry in _entries(files, uri) if files.exists(uri) else []:
        digits = re.search(r"(\d{4})\D?(\d{1,2})\D?(\d{1,2})(?!\d)", entry.name)
        if entry.is_folder and digits and not DAY.fullmatch(entry.name):
            found[entry.name] = f"{digits[1]}-{int(digits[2]):02}-{int(digits[3]):02}"
    return found


def is_hidden(name: str) -> bool:
    """Whether Spark takes the file for a private one of some writer and does not read it."""
    return name.startswith(".") or name.endswith("._COPYING_") or (name.startswith("_") and "=" not in name)


def shortened(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - EXAMPLES} more" if len(listed) > EXAMPLES else ""
    return ", ".join(listed[:EXAMPLES]) + more


def _list_day(files: FileSystem, uri: str, ds: str) -> InputFiles:
    found = InputFiles()
    _list_folder(files, f"{uri}/ds={ds}", ds, (), found)
    return found


def _list_folder(files: FileSystem, folder: str, ds: str, inside: tuple[str, ...], found: InputFiles) -> None:
    entries = _entries(files, folder)
    names = {entry.name for entry in entries}
    data, whole = 0, True
    for entry in entries:
        shown = "/".join((f"ds={ds}", *inside, entry.name))
        if entry.is_folder and not is_hidden(entry.name):
            whole = False
            _list_folder(files, f"{folder}/{entry.name}", ds, (*inside, entry.name), found)
        elif entry.is_folder:
            if not WORK_FOLDER.fullmatch(entry.name):
                found.hidden += _named_data(files, f"{folder}/{entry.name}", shown)
        elif BY_PRODUCT.fullmatch(entry.name):
            continue
        elif is_hidden(entry.name):
            private = entry.name.startswith(("_metadata", "_common_metadata"))
            is_data = NAMED_DATA.search(entry.name) and not entry.name.endswith(".crc") and not private
            (found.hidden if is_data else found.skipped).append(shown)
        elif NO_DATA.fullmatch(entry.name):
            whole = False
            found.skipped.append(shown)
        elif reason := _reason_against(entry, names):
            whole = False
            found.refused.append(f"the file {folder}/{entry.name} {reason}")
        else:
            data += 1
            found.data.append(InputFile(ds, f"{folder}/{entry.name}", inside, entry.length, entry.modified))
    if whole and data:
        found.whole.add(folder)


def _named_data(files: FileSystem, folder: str, shown: str) -> list[str]:
    """Files below a hidden folder that are named like data."""
    found = []
    for entry in _entries(files, folder):
        if entry.is_folder:
            found += _named_data(files, f"{folder}/{entry.name}", f"{shown}/{entry.name}")
        elif NAMED_DATA.search(entry.name) and not entry.name.endswith(".crc"):
            found.append(f"{shown}/{entry.name}")
    return found


def _reason_against(entry: Entry, names: set[str]) -> str | None:
    """Why a file that may hold rows is not read, by its name alone; None where it is read."""
    if ":" in entry.name:
        return "has a colon in its name, which Hadoop cannot read: rename it"
    if PUT_ASIDE.search(entry.name):
        return (
            "is by its name a copy that was put aside or a file that is not finished, so its rows may come twice: delete it, "
            "or give it a name that ends in .parquet if its rows belong to this day"
        )
    copied = COPIED.fullmatch(entry.name)
    if copied and (original := copied["name"] + copied["end"]) != entry.name and original in names:
        return f"is by its name a copy of {original}, so its rows would be read twice: delete it, or rename it"
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
        raise InputError(f"{folder} may not be read ({error.strerror}): give this user the right to read it") from None

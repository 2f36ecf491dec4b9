"""Cases of bad files and partitions, missing earlier nights, and bad flags and configs."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.common.config import load_config
from jobs.common.days import days_of
from jobs.nightly import _flags
from pipelines.storage.manifest import MANIFEST
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.inputs.bad_case import Case
from tests.pipelines.inputs.good_inputs import DS, LAST, NOON, interactions, items, night, put, samples


def _cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def _damage(path: Path) -> None:
    """Overwrite the first pages with zeros. The footer stays intact."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) // 3) + content[4 + len(content) // 3 :])


def _remove(path: Path) -> None:
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


def _file(root: Path) -> Path:
    return root / "interactions" / f"ds={DS}" / "part-0.parquet"


def _beside(root: Path, name: str, content: bytes) -> None:
    """Write another file into the folder of the interactions."""
    _file(root).with_name(name).write_bytes(content)


def _config(text: str, *overrides: str) -> Callable[[Warehouse], object]:
    """Load a config file with this text."""

    def run(warehouse: Warehouse) -> None:
        path = Path(warehouse.root.removeprefix("file://")) / "night.yaml"
        path.write_text(text)
        load_config(str(path), list(overrides))

    return run


def _set(title: str, expected: list[str], text: str, *overrides: str) -> Case:
    return Case(title, expected, run=_config(text, *overrides), exit_code=2)


def _flag(*argv: str) -> Callable[[Warehouse], object]:
    return lambda _: days_of(_flags().parse_args(["--config", "x", *argv]))


FILES = [
    Case(
        "a file that is cut short", ["part-0.parquet cannot be read", "cut short"], lambda root: _cut(_file(root), 0.5)
    ),
    Case("a file of 0 bytes", ["part-0.parquet is empty (0 bytes)", "delete it"], lambda root: _cut(_file(root), 0.0)),
    Case(
        "a file in another format",
        ["part-1.csv is not a Parquet file"],
        lambda root: _beside(root, "part-1.csv", b"a,b\n1,2\n"),
    ),
    Case(
        "a Parquet file without columns",
        ["part-1.parquet is a Parquet file without columns"],
        lambda root: pq.write_table(pa.table({}), _file(root).with_name("part-1.parquet")),
    ),
    Case(
        "a file name with a colon",
        ["10:00.parquet has a colon", "rename"],
        lambda root: _beside(root, "10:00.parquet", b"PAR1"),
    ),
    Case(
        "a backup copy beside a file",
        ["part-0.parquet~ has the name of a backup copy"],
        lambda root: _beside(root, "part-0.parquet~", b"PAR1"),
    ),
    Case(
        "a codec that Spark does not have",
        ["'item_id'", "is whole, but has the codec brotli", "zstd or snappy"],
        lambda root: pq.write_table(pq.read_table(_file(root)), _file(root), compression={"item_id": "brotli"}),
    ),
    Case("a file with damaged pages", ["part-0.parquet cannot be read"], lambda root: _damage(_file(root))),
    Case("a partition without a file", ["holds no Parquet file"], lambda root: _file(root).unlink()),
    Case("a partition without rows", ["no rows for ds 2024-03-05"], lambda root: put(root, "interactions", DS, [])),
    Case(
        "a day without a partition",
        ["no partition for ds=2024-03-05", "it has 2024-03-01 to 2024-03-04"],
        lambda root: _remove(root / "interactions" / f"ds={DS}"),
    ),
    Case(
        "no interactions at all",
        ["table interactions", "it has no partition at all"],
        lambda root: _remove(root / "interactions"),
    ),
    Case("no items", ["no snapshot at or before", "inputs.items.path"], lambda root: _remove(root / "items")),
    Case(
        "items that are all published in the future",
        ["table items, column publish_time", "nothing to recall"],
        lambda root: put(root, "items", DS, [row | {"publish_time": NOON + timedelta(days=30)} for row in items()]),
    ),
    Case(
        "items of another product",
        ["table interactions, column item_id: none of the items of 12 positives", "'1000'", "items has '0'"],
        lambda root: put(
            root, "interactions", DS, [row | {"item_id": row["item_id"] + 1000} for row in interactions()]
        ),
    ),
    Case(
        "items of another product in every snapshot",
        ["is in any of the 2 snapshots ds=2024-03-01 to 2024-03-05 of items"],
        lambda root: (
            put(root, "interactions", DS, [row | {"item_id": row["item_id"] + 1000} for row in interactions()]),
            put(root, "items", DS, items()),
        ),
    ),
    Case(
        "no snapshot of users before the first day",
        ["table users", "no snapshot before the events", "earlier day"],
        lambda root: _remove(root / "users"),
    ),
]
STATE = [
    Case(
        "a missing night in between",
        ["no partition ds=2024-03-05", "--bootstrap-days N"],
        run=lambda warehouse: night(warehouse, "2024-03-06"),
        change=lambda root: put(root, "interactions", "2024-03-06", interactions("2024-03-06")),
    ),
    Case(
        "a partition of the night before without its manifest",
        ["table item_stats has no partition ds=2024-03-04", "--bootstrap-days N"],
        lambda root: (root / "item_stats" / f"ds={LAST}" / MANIFEST).unlink(),
    ),
    Case(
        "a ds without logs and without a night before it",
        ["There are no logs of ds=2024-01-01: check the ds", "interactions has 2024-03-01 to 2024-03-05"],
        run=lambda warehouse: night(warehouse, "2024-01-01"),
    ),
    Case(
        "build_negatives before build_positives",
        ["table positives has no partition ds=2024-03-05", "run build_positives for ds=2024-03-05 first"],
        run=lambda warehouse: samples(warehouse, DS, 0),
    ),
]
SETTINGS = [
    Case("a ds that is not a day", ["'2024-02-30'", "YYYY-MM-DD"], run=_flag("--ds", "2024-02-30"), exit_code=2),
    Case("no ds", ["--ds YYYY-MM-DD"], run=_flag(), exit_code=2),
    Case("--from after --to", ["swap"], run=_flag("--from", "2024-03-02", "--to", "2024-03-01"), exit_code=2),
    _set("a config key that does not exist", ["night.yaml", "did you mean 'bad_rows'"], "checks: {bad_row: 0.1}\n"),
    _set("a config value out of range", ["checks.bad_rows", "less than or equal to 1"], "checks: {bad_rows: 2}\n"),
    _set("a config value of the wrong type", ["checks.null_rise", "'often'"], "", "checks.null_rise=often"),
    _set("an override without a value", ["write it as section.key=value"], "", "checks.bad_rows"),
    _set("a config that is not valid YAML", ["not valid YAML"], "checks: [\n"),
]

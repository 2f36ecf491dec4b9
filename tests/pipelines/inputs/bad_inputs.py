"""The bad inputs of docs/bad-inputs.md: a small good product, and for each case what is changed and what is run on it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.common.config import load_config
from jobs.common.days import days_of
from jobs.nightly import _flags
from pipelines.config import Features, Inputs, Negatives, Positives, Samples
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.dates import days_back, parse_ds
from pipelines.storage.manifest import MANIFEST
from pipelines.storage.warehouse import Warehouse

LAST = "2024-03-04"  # the night that is done, with four days of logs
DS = "2024-03-05"  # the night that the bad inputs are for
NOON = datetime(2024, 3, 5, 12, tzinfo=timezone.utc)
CONFIG = SampleConfig(
    Features.model_validate(
        {
            "user": [{"kind": "categorical", "name": "age"}],
            "item": [
                {"kind": "categorical", "name": "category"},
                {"kind": "multi_categorical", "name": "tags"},
                {"kind": "numeric", "name": "price"},
            ],
        }
    ),
    Positives(downsample=None),
    Negatives(),
    Samples(),
)
TIME = pa.timestamp("us", tz="UTC")
SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "interactions": {
        "user_id": pa.string(),
        "item_id": pa.int64(),
        "event_time": TIME,
        "action": pa.string(),
        "reward": pa.float64(),
        "request_id": pa.string(),
    },
    "ranking_logs": {
        "request_id": pa.string(),
        "user_id": pa.string(),
        "item_id": pa.int64(),
        "event_time": TIME,
        "stage": pa.string(),
        "position": pa.int32(),
    },
    "users": {"user_id": pa.string(), "age": pa.string()},
    "items": {
        "item_id": pa.int64(),
        "publish_time": TIME,
        "category": pa.string(),
        "tags": pa.list_(pa.string()),
        "price": pa.float64(),
    },
}
Row = dict[str, Any]


def interactions(ds: str = DS) -> list[Row]:
    """Four users, three clicks each."""
    noon = NOON + (parse_ds(ds) - parse_ds(DS))
    return [
        {"user_id": f"u{n % 4}", "item_id": n, "event_time": noon, "action": "click", "reward": 1.0, "request_id": "r"}
        for n in range(12)
    ]


def ranking_logs(ds: str = LAST) -> list[Row]:
    """One request."""
    noon = NOON + (parse_ds(ds) - parse_ds(DS))
    row = {"request_id": "r", "user_id": "u1", "event_time": noon, "stage": "fine"}
    return [row | {"item_id": n, "position": n} for n in range(12, 18)]


def users() -> list[Row]:
    """A snapshot of four users."""
    return [{"user_id": f"u{n}", "age": "young"} for n in range(4)]


def items() -> list[Row]:
    """A snapshot of twenty items."""
    return [{"item_id": n, "publish_time": None, "category": "a", "tags": ["x"], "price": 1.0} for n in range(20)]


def put(
    root: Path, table: str, ds: str, rows: list[Row], types: dict[str, pa.DataType] | None = None, part: int = 0
) -> Path:
    """Write a file of an input partition, as another tool than Spark would; `types` replace those of the schema."""
    schema = {name: kind for name, kind in (SCHEMAS[table] | (types or {})).items() if any(name in row for row in rows)}
    folder = root / table / f"ds={ds}"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in schema.items()}
    empty = pa.schema(SCHEMAS[table].items()).empty_table()
    pq.write_table(pa.table(columns) if rows else empty, folder / f"part-{part}.parquet")
    return folder / f"part-{part}.parquet"


def put_good(root: Path) -> None:
    """Inputs that nothing is wrong with, of four days and the fifth."""
    for ds in days_back(DS, 5):
        put(root, "interactions", ds, interactions(ds))
        put(root, "ranking_logs", ds, ranking_logs(ds))
    put(root, "users", "2024-02-29", users())
    put(root, "users", LAST, users())
    put(root, "items", "2024-03-01", items())


def first_two(rows: list[Row], **changes: Any) -> list[Row]:
    """The rows, with the first two changed."""
    return [row | changes if n < 2 else row for n, row in enumerate(rows)]


def night(warehouse: Warehouse, ds: str = DS, bootstrap_days: int = 0, config: SampleConfig = CONFIG) -> None:
    """build_positives of a night."""
    opened = Night.open(warehouse, Inputs(), ds, 17, bootstrap_days, config.checks, config.features)
    build_positives(opened, config, "config")


def samples(warehouse: Warehouse, ds: str = LAST, bootstrap_days: int = 4, config: SampleConfig = CONFIG) -> None:
    """build_negatives of a night."""
    opened = Night.open(warehouse, Inputs(), ds, 17, bootstrap_days, config.checks, config.features)
    build_negatives(opened, config, "config")


@dataclass(frozen=True)
class Case:
    """A bad input: what is wrong with it, what the message must say, and how it comes about."""

    wrong: str
    says: list[str]
    change: Callable[[Path], object] = lambda root: None
    run: Callable[[Warehouse], object] = night
    exit_code: int = 3


def _rows(wrong: str, says: list[str], **changes: Any) -> Case:
    """Two bad rows in twelve interactions."""
    return Case(
        wrong,
        [f"2 of 12 rows where {says[0]}", *says[1:], "checks.bad_rows"],
        lambda root: put(root, "interactions", DS, first_two(interactions(), **changes)),
    )


def _logs(wrong: str, says: list[str], **changes: Any) -> Case:
    """Two bad rows in the ranking logs of four days."""
    return Case(
        wrong,
        ["table ranking_logs", f"2 of 24 rows where {says[0]}", *says[1:]],
        lambda root: put(root, "ranking_logs", LAST, first_two(ranking_logs(), **changes)),
        samples,
    )


def _types(wrong: str, says: list[str], table: str, rows: list[Row], ds: str, **types: pa.DataType) -> Case:
    return Case(wrong, [f"table {table}", *says], lambda root: put(root, table, ds, rows, types))


def _without(rows: list[Row], name: str, **other: Any) -> list[Row]:
    return [{key: value for key, value in row.items() if key != name} | other for row in rows]


def _with(rows: list[Row], **changes: Any) -> list[Row]:
    return [row | changes for row in rows]


def _cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def _damage(path: Path) -> None:
    """Zeros where the first pages were; the footer stays whole."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) // 3) + content[4 + len(content) // 3 :])


def _remove(path: Path) -> None:
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


def _file(root: Path) -> Path:
    return root / "interactions" / f"ds={DS}" / "part-0.parquet"


def _beside(root: Path, name: str, content: bytes) -> None:
    """Another file in the folder of the interactions."""
    _file(root).with_name(name).write_bytes(content)


def _config(text: str, *overrides: str) -> Callable[[Warehouse], object]:
    """Load a config file of this text."""

    def run(warehouse: Warehouse) -> None:
        path = Path(warehouse.root.removeprefix("file://")) / "night.yaml"
        path.write_text(text)
        load_config(str(path), list(overrides))

    return run


def _set(wrong: str, says: list[str], text: str, *overrides: str) -> Case:
    return Case(wrong, says, run=_config(text, *overrides), exit_code=2)


def _flag(*argv: str) -> Callable[[Warehouse], object]:
    return lambda _: days_of(_flags().parse_args(["--config", "x", *argv]))


FAR = datetime(1600, 1, 1, tzinfo=timezone.utc)
CASES = [
    # rows
    _rows("a user that is null", ["user_id is null", '"user_id":null'], user_id=None),
    _rows("a user that is an empty text", ["user_id is empty"], user_id=""),
    _rows("an item that is null", ["item_id is null", '"user_id":"u0"'], item_id=None),
    _rows("an event without a time", ["event_time is null"], event_time=None),
    _rows(
        "an event of another day",
        ["event_time is outside its ds (UTC)", "2024-03-06T00:00:00", "correct or remove"],
        event_time=NOON + timedelta(hours=12),
    ),
    _rows(
        "an event a microsecond too early",
        ["event_time is outside"],
        event_time=NOON - timedelta(hours=12, microseconds=1),
    ),
    _rows("an action that is null", ["action is null"], action=None),
    _rows("a reward below 0", ["reward is negative, not finite or above 1e+12", "-1.0"], reward=-1.0),
    _rows("a reward that is no number", ["reward is negative, not finite or above 1e+12", "NaN"], reward=float("nan")),
    _rows("a reward without end", ["reward is negative, not finite or above 1e+12", "Infinity"], reward=float("inf")),
    _rows("a reward that no gradient survives", ["reward is negative, not finite or above", "1.0E30"], reward=1e30),
    Case(
        "a price that float32 cannot hold",
        ["table items, ds 2024-03-05: 2 of 20 rows where price is infinite or beyond 1e+19", "1.0E300"],
        lambda root: put(root, "items", DS, first_two(items(), price=1e300)),
    ),
    _logs("a stage that the funnel does not have", ["stage is not one of recall, coarse, fine, rerank"], stage="shown"),
    _logs("a position below 0", ["position is negative"], position=-1),
    _logs("a request that is null", ["request_id is null"], request_id=None),
    # columns and types
    _types(
        "a column that is missing",
        ["'item_id' is missing", "it has action, event_time", "inputs.interactions.columns"],
        "interactions",
        _without(interactions(), "item_id"),
        DS,
    ),
    _types(
        "a time that is text",
        ["'event_time'", "string", "wanted timestamp"],
        "interactions",
        _with(interactions(), event_time="2024-03-05 12:00"),
        DS,
        event_time=pa.string(),
    ),
    _types(
        "ids that are fractions",
        ["'item_id'", "its type is double", "Cast it"],
        "interactions",
        _with(interactions(), item_id=1.0),
        DS,
        item_id=pa.float64(),
    ),
    _types(
        "a feature without a column",
        ["'category' is missing", "features.item"],
        "items",
        _without(items(), "category"),
        DS,
    ),
    _types(
        "one value where a feature has several",
        ["'tags'", "its type is string", "declared multi_categorical"],
        "items",
        _with(items(), tags="x"),
        DS,
        tags=pa.string(),
    ),
    _types(
        "text where a feature is a number",
        ["'price'", "its type is string", "declared numeric"],
        "items",
        _with(items(), price="cheap"),
        DS,
        price=pa.string(),
    ),
    _types(
        "several values where a feature has one",
        ["'age'", "its type is array<string>", "declared categorical"],
        "users",
        _with(users(), age=["young"]),
        LAST,
        age=pa.list_(pa.string()),
    ),
    Case(
        "two files of a day with different types",
        [
            "table interactions, column 'item_id'",
            f"bigint in ds={DS}/part-0.parquet and string in ds={DS}/part-1.parquet",
        ],
        lambda root: put(root, "interactions", DS, _with(interactions(), item_id="x"), {"item_id": pa.string()}, 1),
    ),
    # files and partitions
    Case(
        "a file that is cut short", ["part-0.parquet cannot be read", "cut short"], lambda root: _cut(_file(root), 0.5)
    ),
    Case("a file of no bytes", ["part-0.parquet is empty (0 bytes)", "delete it"], lambda root: _cut(_file(root), 0.0)),
    Case(
        "a file of another format",
        ["part-1.csv is not a Parquet file"],
        lambda root: _beside(root, "part-1.csv", b"a,b\n1,2\n"),
    ),
    Case(
        "a Parquet file without columns",
        ["part-1.parquet is a Parquet file without columns"],
        lambda root: pq.write_table(pa.table({}), _file(root).with_name("part-1.parquet")),
    ),
    Case(
        "a name with a colon",
        ["10:00.parquet has a colon", "rename"],
        lambda root: _beside(root, "10:00.parquet", b"PAR1"),
    ),
    Case(
        "a copy beside its file",
        ["part-0.parquet~ has the name of a backup copy"],
        lambda root: _beside(root, "part-0.parquet~", b"PAR1"),
    ),
    Case(
        "a codec that Spark lacks",
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
        "items that nobody has published yet",
        ["table items, column publish_time", "nothing to recall"],
        lambda root: put(root, "items", DS, _with(items(), publish_time=NOON + timedelta(days=30))),
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
        "no users before the first day",
        ["table users", "no snapshot before the events", "earlier day"],
        lambda root: _remove(root / "users"),
    ),
    # snapshots
    Case(
        "an item twice in a snapshot",
        ["table items, ds 2024-03-05: 2 of 21 rows where item_id appears more than once", '"item_id":0'],
        lambda root: put(root, "items", DS, [*items(), items()[0]]),
    ),
    Case(
        "a user that is null in a snapshot",
        ["table users, ds 2024-03-04: 2 of 4 rows where user_id is null"],
        lambda root: put(root, "users", LAST, first_two(users(), user_id=None)),
    ),
    Case(
        "an item published in another age",
        ["2 of 20 rows where publish_time is before 1900"],
        lambda root: put(root, "items", DS, first_two(items(), publish_time=FAR)),
    ),
    # against the nights before
    Case(
        "hardly any rows",
        ["table interactions: 2 rows on ds=2024-03-05", "0.2 times the median", "(12)", "checks.rows_low"],
        lambda root: put(root, "interactions", DS, interactions()[:2]),
    ),
    Case(
        "far too many rows",
        ["table interactions: 72 rows", "more than 5 times", "checks.rows_high"],
        lambda root: put(root, "interactions", DS, interactions() * 6),
    ),
    Case(
        "a feature that is suddenly not known",
        ["table users, column age: 100.0% of the values of ds=2024-03-04", "0.0%", "checks.null_rise"],
        lambda root: put(root, "users", LAST, _with(users(), age=None)),
    ),
    Case(
        "a feed that was delivered twice",
        ["12 of 24 rows repeat another one", "checks.duplicates", "remove one copy"],
        lambda root: put(root, "interactions", DS, interactions(), part=1),
    ),
    Case(
        "no action that counts",
        ["column action", "'click'", "positives.actions"],
        lambda root: put(root, "interactions", DS, _with(interactions(), action="view")),
    ),
    # what the night before left
    Case(
        "a night that is missing in between",
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
        "samples before positives",
        ["table positives has no partition ds=2024-03-05", "run build_positives for ds=2024-03-05 first"],
        run=lambda warehouse: samples(warehouse, DS, 0),
    ),
    # flags and config
    Case("a ds that is no day", ["'2024-02-30'", "YYYY-MM-DD"], run=_flag("--ds", "2024-02-30"), exit_code=2),
    Case("no ds", ["--ds YYYY-MM-DD"], run=_flag(), exit_code=2),
    Case("days the wrong way round", ["swap"], run=_flag("--from", "2024-03-02", "--to", "2024-03-01"), exit_code=2),
    _set("a config key that does not exist", ["night.yaml", "did you mean 'bad_rows'"], "checks: {bad_row: 0.1}\n"),
    _set("a config value out of range", ["checks.bad_rows", "less than or equal to 1"], "checks: {bad_rows: 2}\n"),
    _set("a config value of the wrong kind", ["checks.null_rise", "'often'"], "", "checks.null_rise=often"),
    _set("an override that is none", ["write it as section.key=value"], "", "checks.bad_rows"),
    _set("a config that is no YAML", ["not valid YAML"], "checks: [\n"),
]

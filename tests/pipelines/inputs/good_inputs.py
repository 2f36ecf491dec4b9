"""Good input tables of a small product, which the cases of bad inputs change, and the steps to run on them."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.feature_config import Features
from pipelines.night import Night, SampleConfig
from pipelines.positives.build import build_positives
from pipelines.samples.build import build_negatives
from pipelines.storage.dates import days_back, parse_ds
from pipelines.storage.warehouse import Warehouse

LAST = "2024-03-04"  # the last completed night, with four days of logs
DS = "2024-03-05"  # the night with the bad inputs
NOON = datetime(2024, 3, 5, 12, tzinfo=timezone.utc)
CONFIG = SampleConfig(
    Features.model_validate(
        {
            "user": [{"kind": "categorical", "name": "age"}],
            "item": [
                {"kind": "categorical", "name": "category"},
                {"kind": "multi_categorical", "name": "tags"},
                {"kind": "numeric", "name": "price"},
                {"kind": "vector", "name": "look", "length": 3},
            ],
            "context": [{"kind": "categorical", "name": "device"}],
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
        "device": pa.string(),
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
        "look": pa.list_(pa.float32()),
    },
}
Row = dict[str, Any]


def interactions(ds: str = DS) -> list[Row]:
    """Three clicks of each of four users."""
    noon = NOON + (parse_ds(ds) - parse_ds(DS))
    row = {"event_time": noon, "action": "click", "reward": 1.0, "request_id": "r", "device": "tv"}
    return [{"user_id": f"u{n % 4}", "item_id": n} | row for n in range(12)]


def ranking_logs(ds: str = LAST) -> list[Row]:
    """The six items of one request."""
    noon = NOON + (parse_ds(ds) - parse_ds(DS))
    row = {"request_id": "r", "user_id": "u1", "event_time": noon, "stage": "fine"}
    return [row | {"item_id": n, "position": n} for n in range(12, 18)]


def users() -> list[Row]:
    """A snapshot of four users."""
    return [{"user_id": f"u{n}", "age": "young"} for n in range(4)]


def items() -> list[Row]:
    """A snapshot of twenty items."""
    row = {"publish_time": None, "category": "a", "tags": ["x"], "price": 1.0, "look": [0.0, 1.0, 0.5]}
    return [{"item_id": n} | row for n in range(20)]


def put(
    root: Path, table: str, ds: str, rows: list[Row], types: dict[str, pa.DataType] | None = None, part: int = 0
) -> Path:
    """Write a file of an input partition with pyarrow. `types` override the types of SCHEMAS."""
    schema = {name: kind for name, kind in (SCHEMAS[table] | (types or {})).items() if any(name in row for row in rows)}
    folder = root / table / f"ds={ds}"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in schema.items()}
    empty = pa.schema(SCHEMAS[table].items()).empty_table()
    pq.write_table(pa.table(columns) if rows else empty, folder / f"part-{part}.parquet")
    return folder / f"part-{part}.parquet"


def put_good(root: Path) -> None:
    """Write valid inputs of five days, up to DS."""
    for ds in days_back(DS, 5):
        put(root, "interactions", ds, interactions(ds))
        put(root, "ranking_logs", ds, ranking_logs(ds))
    put(root, "users", "2024-02-29", users())
    put(root, "users", LAST, users())
    put(root, "items", "2024-03-01", items())


def first_two(rows: list[Row], **changes: Any) -> list[Row]:
    """The rows, with changed values in the first two."""
    return [row | changes if n < 2 else row for n, row in enumerate(rows)]


def night(warehouse: Warehouse, ds: str = DS, bootstrap_days: int = 0, config: SampleConfig = CONFIG) -> None:
    """Run build_positives."""
    opened = Night.open(warehouse, Inputs(), ds, 17, bootstrap_days, config.checks, config.features)
    build_positives(opened, config, "config")


def samples(warehouse: Warehouse, ds: str = LAST, bootstrap_days: int = 4, config: SampleConfig = CONFIG) -> None:
    """Run build_negatives."""
    opened = Night.open(warehouse, Inputs(), ds, 17, bootstrap_days, config.checks, config.features)
    build_negatives(opened, config, "config")

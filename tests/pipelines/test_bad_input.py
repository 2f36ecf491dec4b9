"""Bad input is refused by name, with a count, an example and a remedy, and nothing is left half-written."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F

from pipelines.build_negatives import build_negatives
from pipelines.build_positives import build_positives
from pipelines.config import Features, Inputs, Negatives, Positives, Samples
from pipelines.errors import InputError, UsageError
from pipelines.night import Night, SampleConfig
from pipelines.storage import Warehouse

DS = "2024-03-02"
COLUMNS = {
    "interactions": "ds string, user_id string, item_id bigint, event_time timestamp, action string",
    "users": "ds string, user_id string, age string",
    "items": "ds string, item_id bigint, category string, tags array<string>",
    "ranking_logs": "ds string, request_id string, user_id string, item_id bigint, event_time timestamp, stage string, "
    "position int",
}
NOON = datetime(2024, 3, 2, 12)
ROWS: dict[str, list[tuple[Any, ...]]] = {
    "interactions": [(DS, f"u{n % 4}", n, NOON, "click") for n in range(12)],
    "users": [("2024-03-01", f"u{n}", "young") for n in range(4)],
    "items": [(DS, n, "a", ["x"]) for n in range(20)],
    "ranking_logs": [(DS, "r1", "u1", n, NOON, "fine", n) for n in range(12, 18)],
}
CONFIG = SampleConfig(
    Features.model_validate(
        {
            "user": [{"kind": "categorical", "name": "age"}],
            "item": [{"kind": "categorical", "name": "category"}, {"kind": "multi_categorical", "name": "tags"}],
        }
    ),
    Positives(downsample=None),
    Negatives(),
    Samples(),
)


@pytest.fixture
def write(warehouse: Warehouse) -> Callable[..., Warehouse]:
    """Write all inputs, some of them with other rows, other columns, or not at all (None)."""

    def inner(columns: dict[str, str] | None = None, **rows: list[tuple[Any, ...]] | None) -> Warehouse:
        for table in COLUMNS:
            chosen = rows.get(table, ROWS[table])
            if chosen is not None:
                schema = (columns or {}).get(table, COLUMNS[table])
                warehouse.write_input(warehouse.spark.createDataFrame(chosen, schema), table)
        return warehouse

    return inner


def build(warehouse: Warehouse, ds: str = DS, bootstrap_days: int = 1, inputs: Inputs | None = None) -> None:
    night = Night.open(warehouse, inputs or Inputs(), ds, 17, bootstrap_days)
    build_positives(night, CONFIG, "config")
    build_negatives(night, CONFIG, "config")


def tables_written(warehouse: Warehouse) -> set[str]:
    """Everything of ours with a manifest, and anything that a failed run left lying about."""
    root = Path(warehouse.root.removeprefix("file://"))
    left = {str(path.relative_to(root)) for path in (root / "_staging").rglob("*.parquet")}
    return {path.parent.parent.name for path in root.rglob("_manifest.json")} | left


def bad(**changes: Any) -> list[tuple[Any, ...]]:
    """The interactions with two rows changed in a column."""
    names = [part.split()[0] for part in COLUMNS["interactions"].split(", ")]
    rows = [dict(zip(names, row)) for row in ROWS["interactions"]]
    for row in rows[:2]:
        row.update(changes)
    return [tuple(row.values()) for row in rows]


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a null user": ({"interactions": bad(user_id=None)}, ["table interactions", "2 of 12 rows where user_id is null"]),
    "a null item": ({"interactions": bad(item_id=None)}, ["2 of 12 rows where item_id is null", '"user_id":"u0"']),
    "a null time": ({"interactions": bad(event_time=None)}, ["event_time is null"]),
    "an event of another day": (
        {"interactions": bad(event_time=datetime(2024, 3, 5))},
        ["2 of 12 rows where event_time is outside its ds (UTC)", "2024-03-05", "Correct or remove"],
    ),
    "no action that counts": (
        {"interactions": bad(action="view")[:2]},
        ["column action", "'click'", "positives.actions"],
    ),
    "an unknown stage": (
        {"ranking_logs": [(DS, "r", "u1", 3, NOON, "shown", 1)]},
        ["table ranking_logs", "stage is none of recall, coarse, fine, rerank, exposed"],
    ),
    "an item twice in the snapshot": ({"items": ROWS["items"] * 2}, ["table items", "20 ids appear more than once"]),
    "no items": ({"items": None}, ["table items", "no snapshot at or before", "inputs.items.path"]),
    "no users before the day": (
        {"users": [(DS, "u1", "young")]},
        ["table users", "no snapshot before the events", "earlier day"],
    ),
    "no interactions at all": ({"interactions": None}, ["table interactions", "it has no partition at all"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_rows_are_refused_by_name(write: Callable[..., Warehouse], case: str) -> None:
    rows, said = CASES[case]
    warehouse = write(**rows)
    with pytest.raises(InputError) as caught:
        build(warehouse)
    assert [part for part in said if part not in str(caught.value)] == [], str(caught.value)
    assert caught.value.exit_code == 3
    finished = {"vocabularies", "item_features", "user_histories", "positives", "item_stats"}
    assert tables_written(warehouse) in (set(), finished)  # a refused ranking log leaves the finished step before it


@pytest.mark.parametrize(
    ("table", "schema", "said"),
    [
        ("interactions", COLUMNS["interactions"].replace("item_id", "product"), ["'item_id' is missing", "product"]),
        (
            "interactions",
            COLUMNS["interactions"].replace("timestamp", "string"),
            ["'event_time'", "string", "timestamp"],
        ),
        ("items", COLUMNS["items"].replace("category", "genre"), ["'category' is missing", "features.item"]),
        ("items", COLUMNS["items"].replace("array<string>", "string"), ["'tags'", "declared multi_categorical"]),
    ],
)
def test_wrong_columns_are_refused_by_name(
    write: Callable[..., Warehouse], table: str, schema: str, said: list[str]
) -> None:
    rows = [tuple(str(v) if isinstance(v, datetime | list) else v for v in row) for row in ROWS[table]]
    rows = rows if "string, action" in schema or "tags string" in schema else ROWS[table]
    warehouse = write(columns={table: schema}, **{table: rows})
    with pytest.raises(InputError) as caught:
        build(warehouse)
    assert [part for part in [f"table {table}", *said] if part not in str(caught.value)] == [], str(caught.value)
    assert tables_written(warehouse) == set()


def test_columns_may_have_other_names(write: Callable[..., Warehouse]) -> None:
    warehouse = write(columns={"interactions": COLUMNS["interactions"].replace("event_time", "ts")})
    inputs = Inputs.model_validate({"interactions": {"columns": {"event_time": "ts"}}})
    build(warehouse, inputs=inputs)
    assert warehouse.require("samples", DS, "").rows == 12


def test_no_state_says_how_to_bootstrap(write: Callable[..., Warehouse]) -> None:
    with pytest.raises(InputError, match=r"no partition ds=2024-03-01.*--bootstrap-days N"):
        build(write(), bootstrap_days=0)


def test_a_day_without_a_feed_says_which_days_there_are(write: Callable[..., Warehouse]) -> None:
    warehouse = write()
    build(warehouse)
    with pytest.raises(InputError, match=r"no partition for ds=2024-03-03: it has 2024-03-02 to 2024-03-02"):
        build(warehouse, ds="2024-03-03", bootstrap_days=0)


def test_no_ranking_logs_goes_on_and_says_so(write: Callable[..., Warehouse], caplog: pytest.LogCaptureFixture) -> None:
    warehouse = write(ranking_logs=None)
    with caplog.at_level("INFO", logger="nightjar"):
        build(warehouse)
    assert "going on without hard negatives" in caplog.text
    assert warehouse.require("samples", DS, "").facts["kinds"]["fine"] == 0


@pytest.mark.parametrize("ds", ["2024-3-7", "yesterday", "2024-02-30", "2024-03-07; drop", ""])
def test_a_ds_that_is_no_day_is_a_usage_error(warehouse: Warehouse, ds: str) -> None:
    with pytest.raises(UsageError, match="write it as YYYY-MM-DD"):
        build(warehouse, ds=ds)


def test_an_empty_output_is_refused_and_the_old_partition_stays(write: Callable[..., Warehouse]) -> None:
    warehouse = write()
    build(warehouse)
    before = warehouse.require("positives", DS, "")
    from pipelines.storage import Recipe

    with pytest.raises(InputError, match="would be empty"):
        warehouse.write(warehouse.read("positives", DS).where(F.lit(False)), "positives", DS, Recipe("other", {}))
    assert warehouse.require("positives", DS, "") == before


def test_a_partition_without_a_manifest_does_not_exist(write: Callable[..., Warehouse]) -> None:
    warehouse = write()
    build(warehouse)
    warehouse.delete(f"{warehouse.path('positives', DS)}/_manifest.json")  # as after a kill in the middle of a move
    with pytest.raises(InputError, match="no partition ds=2024-03-02"):
        warehouse.read("positives", DS)
    build(warehouse)
    assert warehouse.read("positives", DS).count() == 12


def test_a_step_that_dies_half_way_leaves_nothing_that_the_next_night_would_build_on(
    write: Callable[..., Warehouse], monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = write()
    build(warehouse)
    late = (DS, "aaron", 19, NOON, "click")  # sorts before the others: new indices mean other users
    write(interactions=[*ROWS["interactions"], late])

    def dies(*_: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.histories.roll_histories", dies)
        with pytest.raises(OSError, match="killed"):
            build(warehouse)
    with pytest.raises(InputError, match="no state of the night before"):
        Night.open(warehouse, Inputs(), "2024-03-03", 17).state()
    build(warehouse)
    assert warehouse.read("positives", DS).count() == 13


def test_numbers_that_are_none_are_not_known(warehouse: Warehouse) -> None:
    from pipelines import encode

    side = encode.Side(
        "item",
        Features.model_validate(
            {
                "item": [
                    {"kind": "numeric", "name": "price"},
                    {"kind": "numeric", "name": "size", "boundaries": [1.0, 2.0]},
                ]
            }
        ).item,
    )
    values = [1.0, 3.0, float("nan"), float("inf"), None]
    snapshot = warehouse.spark.createDataFrame(
        [(str(n), value, value) for n, value in enumerate(values)], "item_id string, price double, size double"
    )
    statistics = encode.statistics_of(side, snapshot, {})
    assert statistics == {"item.price": {"mean": 2.0, "std": 1.0}}
    no_words = warehouse.spark.createDataFrame([], "feature string, value string, index int")
    rows = encode.encode(side, snapshot, no_words, statistics, ["item_id"]).orderBy("item_id").collect()
    assert [row["item_price"] for row in rows] == [1.0, 3.0, 2.0, 2.0, 2.0]
    assert [row["item_size"] for row in rows] == [3, 4, 1, 1, 1]

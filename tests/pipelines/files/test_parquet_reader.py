"""Input tables from other tools: the configured columns are read, whatever else files and folders contain."""

import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import Inputs
from pipelines.contract.errors import InputError
from pipelines.feature_config import Features
from pipelines.files.column_types import widest
from pipelines.files.parquet_reader import Wanted
from pipelines.files.table_files import list_files
from pipelines.inputs.tables import InputTables
from pipelines.night import Night
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.inputs.good_inputs import DS, LAST, TIME, interactions, items, put, put_good, users

NOON = datetime(2024, 3, 5, 12, tzinfo=timezone.utc)
WANTED = [Wanted("item_id", number=False, required=True), Wanted("reward", "double"), Wanted("event_time", "timestamp")]


def root_of(warehouse: Warehouse) -> Path:
    return Path(warehouse.root.removeprefix("file://"))


def write(warehouse: Warehouse, path: str, columns: dict[str, pa.Array], **options: Any) -> Path:
    """Write a file of interactions."""
    file = root_of(warehouse) / "interactions" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(list(columns.values()), names=list(columns)), file, **options)
    return file


def one(item: int = 1, **columns: pa.Array) -> dict[str, pa.Array]:
    """The columns of one row."""
    return {"item_id": pa.array([item]), **columns}


def read(warehouse: Warehouse, *days: str, wanted: list[Wanted] | None = WANTED) -> list[dict[str, Any]]:
    """Read these days of interactions, sorted."""
    rows = warehouse.input_rows(warehouse.path("interactions"), list(days or [DS]), "interactions", wanted).rows
    return sorted((row.asDict() for row in rows.collect()), key=str)


@pytest.mark.parametrize(
    ("one", "other", "as_text", "as_number"),
    [
        ("int", "bigint", "bigint", "bigint"),
        ("void", "string", "string", "string"),
        ("float", "double", None, "double"),
        ("bigint", "double", None, "double"),
        ("bigint", "decimal(38,0)", "decimal(38,0)", "decimal(38,0)"),
        ("smallint", "decimal(7,4)", "decimal(9,4)", "decimal(9,4)"),
        ("bigint", "decimal(38,20)", None, "double"),
        ("decimal(9,2)", "double", None, "double"),
        ("timestamp_ntz", "timestamp", "timestamp", "timestamp"),
        ("timestamp_ns", "timestamp_ntz", "timestamp", "timestamp"),
        ("array<int>", "array<bigint>", "array<bigint>", "array<bigint>"),
        ("array<int>", "int", None, None),
        ("boolean", "int", None, None),
        ("string", "bigint", None, None),
        ("date", "timestamp", None, None),
    ],
)
def test_the_widest_type_loses_nothing(one: str, other: str, as_text: str | None, as_number: str | None) -> None:
    for first, second in ((one, other), (other, one)):
        assert widest(first, second, number=False) == as_text
        assert widest(first, second, number=True) == as_number


def test_types_that_differ_by_file_are_widened(warehouse: Warehouse) -> None:
    naive, moment = datetime(2024, 3, 5, 12), 1_709_640_000_123_456_789
    write(
        warehouse, f"ds={DS}/a.parquet", one(1, reward=pa.array([0.5], pa.float32()), event_time=pa.array([NOON], TIME))
    )
    write(warehouse, f"ds={DS}/b.parquet", one(2, reward=pa.array([2], pa.int32()), event_time=pa.array([naive])))
    write(warehouse, f"ds={DS}/c.parquet", {"item_id": pa.array([3], pa.int8()), "reward": pa.nulls(1)})
    times = pa.array([moment], pa.timestamp("ns"))
    write(warehouse, f"ds={LAST}/a.parquet", {"item_id": pa.array([4], pa.decimal128(38, 0)), "event_time": times})
    # Empty data frames lose their types.
    write(
        warehouse,
        f"ds={LAST}/b.parquet",
        {"item_id": pa.array([], pa.string()), "reward": pa.array([], pa.time64("us"))},
    )
    rows = read(warehouse, LAST, DS)
    noon = datetime(2024, 3, 5, 12)
    assert [(int(row["item_id"]), row["reward"], row["event_time"], row["ds"]) for row in rows] == [
        (1, 0.5, noon, DS),
        (2, 2.0, noon, DS),
        (3, None, None, DS),
        (4, None, datetime(2024, 3, 5, 12, 0, 0, 123456), LAST),
    ]


def test_columns_that_are_not_wanted_are_not_read(warehouse: Warehouse) -> None:
    extra = {"note": pa.array(["x"]), "ITEM_ID": pa.array(["x"]), "opened": pa.array([5], pa.time64("ns"))}
    write(warehouse, f"ds={DS}/a.parquet", one(1, **extra), compression={"note": "brotli"})
    write(warehouse, f"ds={DS}/b.parquet", one(2, note=pa.array([1]), created=pa.array([5], pa.timestamp("ns"))))
    assert [(row["item_id"], list(row)) for row in read(warehouse)] == [(1, ["item_id", "ds"]), (2, ["item_id", "ds"])]


def test_a_column_name_may_differ_in_case_if_it_is_unique(warehouse: Warehouse) -> None:
    write(warehouse, f"ds={DS}/a.parquet", {"ITEM_ID": pa.array([1])})
    write(warehouse, f"ds={DS}/b.parquet", one(2))
    assert [row["item_id"] for row in read(warehouse)] == [1, 2]


def test_folders_inside_a_day_are_read(warehouse: Warehouse) -> None:
    for number, folder in enumerate(("", "hour=05/", "hour=06/", "hour=06/late/", "07/")):
        write(warehouse, f"ds={DS}/{folder}part-0.parquet", one(number))
    write(warehouse, f"ds={LAST}/part-0.parquet", one(5))
    rows = read(warehouse, LAST, DS)
    assert [(row["item_id"], row["ds"]) for row in rows] == [(0, DS), (1, DS), (2, DS), (3, DS), (4, DS), (5, LAST)]
    write(warehouse, f"ds={DS}/action=click/part-0.parquet", one(6))
    rows = read(warehouse, wanted=[Wanted("item_id", number=False), Wanted("action")])
    assert {row["item_id"]: row["action"] for row in rows} == dict.fromkeys(range(5)) | {6: "click"}


def test_all_file_names_are_read_and_other_files_are_skipped(
    warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    names = [
        "part 0 \u00e9.parquet",
        "part-0%20x.parquet",
        "part[1].parquet",
        "a=b.parquet",
        "part-{1,2}#",
        "b*?.parquet",
    ]
    for number, name in enumerate(names):
        write(warehouse, f"ds={DS}/{name}", one(number))
    day = root_of(warehouse) / "interactions" / f"ds={DS}"
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "README.md",
        "hour=05_$folder$",
        "x.parquet:Zone.Identifier",
    ):
        (day / name).write_bytes(b"no data")
    pq.write_metadata(pa.schema([("item_id", pa.string())]), day / "_metadata")
    assert [row["item_id"] for row in read(warehouse)] == list(range(len(names)))
    assert len(list_files(warehouse, warehouse.path("interactions"), [DS]).skipped) == 7


def test_by_products_of_spark_are_not_reported(warehouse: Warehouse, caplog: pytest.LogCaptureFixture) -> None:
    write(warehouse, f"ds={DS}/part-0000.parquet", one())
    day = root_of(warehouse) / "interactions" / f"ds={DS}"
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-0000.parquet.crc"):
        (day / name).write_bytes(b"")
    caplog.set_level(logging.INFO, logger="nightjar")
    assert [row["item_id"] for row in read(warehouse)] == [1]
    assert [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()] == []
    files = list_files(warehouse, warehouse.path("interactions"), [DS])
    assert (files.skipped, files.hidden, len(files.whole)) == ([], [], 1)


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("b.parquet", pa.array(["x"]), ["'reward'", f"string in ds={LAST}/b.parquet and double in ds={DS}/a.parquet"]),
        ("b.parquet", pa.array([5], pa.time64("us")), ["'reward'", f"time in ds={LAST}/b.parquet", "Cast it"]),
        ("b (1).parquet", None, ["b (1).parquet has the name of a copy of b.parquet"]),
        ("b.parquet.tmp", None, ["b.parquet.tmp has the name of a backup copy"]),
    ],
)
def test_errors_name_the_column_or_file_that_cannot_be_read(
    warehouse: Warehouse, name: str, column: pa.Array | None, expected: list[str]
) -> None:
    write(warehouse, f"ds={DS}/a.parquet", one(1, reward=pa.array([1.0])))
    write(warehouse, f"ds={LAST}/b.parquet", one(1) if column is None else one(1, reward=column))
    if name != "b.parquet":
        write(warehouse, f"ds={LAST}/{name}", one(1))
    with pytest.raises(InputError) as caught:
        read(warehouse, LAST, DS)
    assert [part for part in expected if part not in str(caught.value)] == [], caught.value


def test_errors_name_encodings_and_columns_that_spark_cannot_read(warehouse: Warehouse) -> None:
    split = {"use_dictionary": False, "use_byte_stream_split": ["reward"]}
    write(warehouse, f"ds={DS}/a.parquet", one(1, reward=pa.array([1.0])), **split)
    with pytest.raises(InputError, match=r"a.parquet is whole, but has the encoding BYTE_STREAM_SPLIT"):
        read(warehouse)
    write(warehouse, f"ds={DS}/a.parquet", one(1))
    write(warehouse, f"ds={DS}/b.parquet", {"item": pa.array([1])})
    with pytest.raises(InputError, match=r"'item_id' is missing in the file \S+b.parquet, which has item\."):
        read(warehouse)
    schema = pa.schema([("item_id", pa.int64()), ("item_id", pa.int64())])
    repeated = pa.Table.from_arrays([pa.array([1]), pa.array([2])], schema=schema)
    pq.write_table(repeated, root_of(warehouse) / "interactions" / f"ds={DS}" / "b.parquet")
    with pytest.raises(InputError, match=r"b.parquet has two columns of this name"):
        read(warehouse)


def test_the_fingerprint_depends_only_on_data_files(warehouse: Warehouse) -> None:
    write(warehouse, f"ds={DS}/hour=05/a.parquet", one(1))

    def fingerprint() -> str:
        return warehouse.input_fingerprint(warehouse.path("interactions"), [DS])

    before = fingerprint()
    (root_of(warehouse) / "interactions" / f"ds={DS}" / "README.md").write_text("no data")
    assert fingerprint() == before
    write(warehouse, f"ds={DS}/hour=06/a.parquet", one(1))
    added = fingerprint()
    write(warehouse, f"ds={DS}/hour=06/a.parquet", one(1, reward=pa.array([1.0])))
    assert len({before, added, fingerprint()}) == 3


def test_the_log_names_days_that_are_not_read(warehouse: Warehouse, caplog: pytest.LogCaptureFixture) -> None:
    put_good(root_of(warehouse))
    table = root_of(warehouse) / "interactions"
    for ds, name in {"2024-03-01": "DS=2024-03-01", "2024-03-02": "dt=20240302"}.items():
        (table / f"ds={ds}").rename(table / name)
    (table / "ds=2024-03-03" / "part-0.parquet").rename(table / "ds=2024-03-03" / "_part-0.parquet")
    (table / "old-2023-01-01").mkdir()
    night = Night.open(warehouse, Inputs(), DS, 17, 5)
    with caplog.at_level(logging.WARNING, logger="nightjar"):
        days = night.log_days()
        assert night.inputs.events("interactions", days).count() == 24
        night.log_days()
    assert "interactions: 2 of the 5 requested days have no partition: 2024-03-01 to 2024-03-02" in caplog.text
    assert "must be named ds=YYYY-MM-DD: DS=2024-03-01, dt=20240302\n" in caplog.text
    assert "ds=2024-03-03/_part-0.parquet. Rename them" in caplog.text
    assert len(caplog.records) == 4  # one record each; the last is about the day without a file
    with pytest.raises(InputError, match=r"holds no Parquet file except ds=2024-03-03/_part-0.parquet"):
        night.inputs.events("interactions", ["2024-03-03"])


def test_only_feature_columns_are_read_from_a_snapshot(warehouse: Warehouse) -> None:
    people = [row | {"height": n} for n, row in enumerate(users())]
    put(root_of(warehouse), "users", LAST, people, {"height": pa.int64()})
    put(root_of(warehouse), "items", DS, [row | {"tags": None} for row in items()], {"tags": pa.null()})
    features = Features.model_validate(
        {"user": [{"kind": "numeric", "name": "height"}], "item": [{"kind": "multi_categorical", "name": "tags"}]}
    )
    inputs = InputTables(warehouse, Inputs(), features=features)
    assert inputs.snapshot("users", LAST).dtypes == [("user_id", "string"), ("height", "bigint")]
    assert dict(inputs.snapshot("items", DS).dtypes)["tags"] == "array<string>"
    put(root_of(warehouse), "interactions", DS, interactions())
    assert "ds" in inputs.events("interactions", [DS]).columns

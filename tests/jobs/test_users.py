"""Users of a night: user files of `recommend`, items that each user has seen, and targets of the days after."""

import argparse
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.common.config import Config
from jobs.common.runner import Context
from jobs.recommend import _listed, _read_ids, user_id_type
from pipelines.config import Inputs, Positives
from pipelines.contract.errors import InputError, UsageError
from pipelines.night import Night
from pipelines.queries import next_positives, user_queries, with_held_out_items
from pipelines.storage.manifest import Recipe
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, SECOND, logs


@pytest.fixture
def night(nights: Warehouse) -> Night:
    return Night.open(nights, Inputs(), SECOND, 17)


@pytest.fixture
def context(nights: Warehouse) -> Context:
    return Context(Config(), nights.spark, nights, argparse.Namespace(), SECOND)


@pytest.mark.parametrize(
    "data",
    [
        b"u1\nu2\nu1\n",
        b"\xef\xbb\xbfu1\r\nu2\r\n",
        b'\xef\xbb\xbf"user_id"\nu2\n\nu1\n',
        "USER_ID\nu1\nu2".encode("utf-16"),
    ],
)
def test_byte_order_mark_and_header_are_not_users(context: Context, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "users.txt"
    file.write_bytes(data)
    assert _read_ids(context, str(file)) == ["u1", "u2"]


@pytest.mark.parametrize(("data", "message"), [(b"\xff\xfau1\n", "not UTF-8"), (b"user_id\n", "names no user")])
def test_a_file_without_users_is_a_usage_error(context: Context, tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "users.txt"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=message):
        _read_ids(context, str(file))


def test_known_and_unknown_users_of_a_file_are_counted(
    context: Context, night: Night, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "users.txt"
    file.write_text("u1\nU-9\nnewcomer\n  u19 \nother\n")  # u19 is in the users table, newcomer in interactions only
    with caplog.at_level("INFO", logger="nightjar"):
        assert _listed(context, night, str(file), "string", refuse=False).count() == 5
    assert f"of 5 users in {file}, 3 known, 2 unknown, for example 'U-9'" in caplog.text


def test_a_file_without_any_known_user_is_refused(context: Context, night: Night, tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text("U-1\nU-2\n")
    with pytest.raises(InputError, match="none of its 2 users is known on ds=2024-03-03, for example 'U-1'") as refused:
        _listed(context, night, str(file), "string", refuse=False)
    assert "Known ids look like 'newcomer', 'u0', 'u1'" in str(refused.value)


def test_unknown_users_are_refused_on_request(context: Context, night: Night, tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text("u1\nU-9\nother\n")
    with pytest.raises(InputError, match="2 of its 3 users are unknown on ds=2024-03-03, for example 'U-9'"):
        _listed(context, night, str(file), "string", refuse=True)


@pytest.mark.parametrize("wrong", ["nobody", "1.5", "007", "9223372036854775808"])
def test_an_id_that_the_type_of_users_cannot_hold_is_refused(
    context: Context, night: Night, tmp_path: Path, wrong: str
) -> None:
    """A cast would write it as null, or as the id of another user."""
    file = tmp_path / "users.txt"
    file.write_text(f"12\n-3\n{wrong}\n")
    with pytest.raises(InputError, match=f"1 of its lines cannot be user ids, which are bigint .*'{wrong}'"):
        _listed(context, night, str(file), "bigint", refuse=False)


@pytest.mark.parametrize(
    ("users", "interactions", "expected"),
    [
        (pa.int64(), pa.int64(), "bigint"),
        (pa.int32(), pa.int64(), "bigint"),
        (pa.int64(), pa.string(), "string"),
        (None, pa.int64(), "string"),
    ],
)
def test_the_type_of_recommended_users_holds_every_id(
    spark: SparkSession, tmp_path: Path, users: pa.DataType | None, interactions: pa.DataType, expected: str
) -> None:
    for table, kind in (("users", users), ("interactions", interactions)):
        if kind is not None:
            (folder := tmp_path / table / f"ds={FIRST}").mkdir(parents=True)
            columns = {"user_id": pa.array([1]).cast(kind), "item_id": pa.array([1]), "action": pa.array(["click"])}
            columns["event_time"] = pa.array([datetime(2024, 3, 2)], pa.timestamp("us"))
            pq.write_table(pa.table(columns), folder / "part-0.parquet")
    assert user_id_type(Night.open(Warehouse(spark, str(tmp_path)), Inputs(), SECOND, 17)) == expected


def test_held_out_items_of_all_nights_count_as_known(night: Night) -> None:
    warehouse = night.warehouse
    before = {r["user_id"]: set(r["known_items"]) for r in user_queries(night, CONFIG.features).collect()}
    columns = "user_id string, item_index int"
    for ds, rows in ((FIRST, [("u1", 2), ("u2", 3)]), (SECOND, [("u1", 4), ("newcomer", 5)])):
        warehouse.write(warehouse.spark.createDataFrame(rows, columns), "holdout", ds, Recipe("", {}))
    try:
        rows = with_held_out_items(user_queries(night, CONFIG.features), night).collect()
    finally:
        for ds in (FIRST, SECOND):
            warehouse.remove("holdout", ds)
    added = {"u1": {2, 4}, "u2": {3}, "newcomer": {5}}
    assert {r["user_id"]: set(r["known_items"]) for r in rows} == {
        u: k | added.get(u, set()) for u, k in before.items()
    }


def test_targets_of_later_days_have_a_reward(spark: SparkSession, warehouse: Warehouse, nights: Warehouse) -> None:
    """Events with reward 0 are not targets; events with reward 1 or without a reward are."""
    columns = "ds string, user_id string, item_id int, event_time timestamp, action string, request_id string"
    reward = F.expr("CASE pmod(item_id, 3) WHEN 0 THEN 0.0 WHEN 1 THEN 1.0 END")
    rows = spark.createDataFrame(logs()[0], columns).where(F.col("ds") == SECOND).withColumn("reward", reward)
    warehouse.write_input(rows, "interactions")
    inputs = Inputs.model_validate({"interactions": {"path": f"{warehouse.root}/interactions"}})
    night = Night.open(nights, inputs, FIRST, 17)
    found = {(r["user_id"], int(r["item_id"])) for r in next_positives(night, Positives(), [SECOND]).collect()}
    clicks = {(row[1], row[2]) for row in logs()[0] if row[0] == SECOND and row[4] == "click"}
    assert found == {pair for pair in clicks if pair[1] % 3}

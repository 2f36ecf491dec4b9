"""Tables with ids in different formats are refused with an example of each; tables that share ids are accepted."""

from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Checks, Inputs
from pipelines.contract.errors import InputError
from pipelines.inputs import matching_ids
from pipelines.inputs.matching_ids import TableIds, refuse_mismatched_ids
from pipelines.night import Night
from pipelines.samples.build import build_negatives
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST


def ids(spark: SparkSession, table: str, values: list[str]) -> TableIds:
    return TableIds(table, spark.createDataFrame([(value,) for value in values], "user_id string"))


def test_the_share_is_relative_to_the_table_with_fewer_ids(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ids(spark, "ranking_logs", [f"u{n}" for n in range(1000)] * 2)
    some = ids(spark, "interactions", [f"u{n}" for n in range(995, 1005)] * 3)
    assert refuse_mismatched_ids(many, some, "user_id", 1000, Checks()) == 0.5
    assert refuse_mismatched_ids(some, many, "user_id", 1000, Checks()) == 0.5
    few = ids(spark, "interactions", [f"v{n}" for n in range(9)])
    assert refuse_mismatched_ids(many, few, "user_id", 1000, Checks()) is None
    monkeypatch.setattr(matching_ids, "SAMPLE_SIZE", 100)
    every = ids(spark, "interactions", [f"u{n}" for n in range(2000)])
    assert (
        refuse_mismatched_ids(many, every, "user_id", 1000, Checks()) == 1.0
    )  # the hash samples the same ids in both tables


def test_mismatched_ids_are_refused_with_an_example_of_each(spark: SparkSession) -> None:
    padded = ids(spark, "ranking_logs", [f"{n:05d}" for n in range(100)])
    plain = ids(spark, "interactions", [str(n) for n in range(100)])
    with pytest.raises(InputError, match=r"ranking_logs has '00000' and interactions has '0'.*checks.matching_ids"):
        refuse_mismatched_ids(padded, plain, "user_id", 100, Checks())
    assert refuse_mismatched_ids(padded, plain, "user_id", 100, Checks(matching_ids=0)) == 0.0


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("user_id", "ranking_logs has 'U0' and interactions has 'u0'"),
        ("item_id", "ranking_logs has '0.0' and items has '0'"),
    ],
)
def test_ranking_logs_with_mismatched_ids_are_refused_before_samples(
    nights: Warehouse, tmp_path: Path, column: str, message: str
) -> None:
    other = {"user_id": F.upper("user_id"), "item_id": F.concat(F.col("item_id").cast("string"), F.lit(".0"))}
    logs = nights.read_input(f"{nights.root}/ranking_logs", [FIRST]).withColumn(column, other[column])
    logs.write.partitionBy("ds").parquet(str(tmp_path / "logs"))
    inputs = Inputs.model_validate({"ranking_logs": {"path": str(tmp_path / "logs")}})
    with pytest.raises(InputError) as caught:
        build_negatives(Night.open(nights, inputs, FIRST, 17, 2), CONFIG, "config", force=True)
    assert message in str(caught.value)

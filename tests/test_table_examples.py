"""Every table has an example in docs/tables.md, and DuckDB, pandas and Spark give the same answer."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pipelines.inputs.contracts import CONTRACTS
from pipelines.storage.table_keys import KEYS
from tests.jobs.nightly_run import SECOND, NightlyRun
from tests.table_examples import answers, examples, preamble, rows_of

NIGHT = "2024-03-09"  # the night of the examples
OTHERS = {"models", "releases", "quarantine", "sim_truth_users", "sim_truth_items"}
MAY_BE_EMPTY = {"item_versions", "item_features"}  # no earlier versions; every item has trained


@pytest.fixture(scope="module")
def all_tables(first_night: NightlyRun, tmp_path_factory: pytest.TempPathFactory) -> NightlyRun:
    """A second night that writes every table: mined negatives, a recency prior, a bad row, and a holdout."""
    run = first_night.copy(tmp_path_factory.mktemp("tables"))
    day = run.warehouse / "interactions" / f"ds={SECOND}"
    schema = pa.schema([field.with_nullable(True) for field in pq.read_schema(next(day.glob("*.parquet")))])
    bad = dict.fromkeys(schema.names) | {"item_id": 1, "action": "click"}  # without a user and a time
    pq.write_table(pa.Table.from_pylist([bad], schema), day / "bad.parquet")
    of_mined = ("--set", "negatives.mined=1", "--set", "negatives.mined_ranks=[2, 50]")
    run.run("nightly", "--ds", SECOND, *of_mined, "--set", "prior={}", "--set", "checks.bad_rows=0.1")
    of_holdout = ("--set", "evaluation.split=last_positive", "--set", "evaluation.simulated_truth=false")
    run.run("build_positives", "--ds", SECOND, "--force", *of_holdout, "--set", "checks.bad_rows=0.1")
    return run


def test_every_table_has_an_example() -> None:
    assert set(examples()) == {*KEYS, *CONTRACTS, *OTHERS}


@pytest.mark.slow
@pytest.mark.parametrize("table", examples())
def test_the_three_answers_of_an_example_are_equal(all_tables: NightlyRun, spark: SparkSession, table: str) -> None:
    (release,) = [path.name for path in (all_tables.warehouse / "releases").glob(f"{SECOND}-*")]
    names = {"spark": spark}
    exec(preamble().replace('spark = open_session("tables")', ""), names)
    code = re.sub(rf"{NIGHT}-[0-9a-f]{{8}}", release, examples()[table]).replace(NIGHT, SECOND)
    code = code.replace("warehouse-demo", str(all_tables.warehouse))
    by_duckdb, by_pandas, by_spark = [rows_of(answer) for answer in answers(code, names)]
    assert by_duckdb == by_pandas == by_spark
    assert by_duckdb or table in MAY_BE_EMPTY


def test_a_wrong_answer_is_noticed() -> None:
    code = "import pandas as pd\npd.DataFrame([1.0, None])\npd.DataFrame([2.0, None])\n"
    one, other = (rows_of(answer) for answer in answers(code, {}))
    assert one == [("1.00000",), ("null",)]
    assert one != other


@pytest.mark.slow
def test_ids_are_text_in_every_written_table(all_tables: NightlyRun) -> None:
    """The inputs have integers. Samples of a packed night would have lists of text."""
    types = {
        (table, name): str(pq.read_schema(file).field(name).type)
        for table in KEYS
        for file in sorted((all_tables.warehouse / table / f"ds={SECOND}").rglob("*.parquet"))[:1]
        for name in {"user_id", "item_id"} & set(pq.read_schema(file).names)
    }
    assert len(types) == 13
    assert set(types.values()) == {"string"}

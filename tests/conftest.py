"""What tests share: one Spark session with real shuffles, and an empty warehouse."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.session import open_session
from pipelines.storage.warehouse import Warehouse
from tests.jobs.nightly_run import FIRST, SECOND, House, run
from tests.joining import chosen_joins
from tests.two_nights import run_nights, write_inputs

# Many JVMs are short, and two files share the cores: the second compiler would take more than most of them get back.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")

# Times that tests write without a zone are UTC on every machine. Tests of zones set their own.
os.environ["TZ"] = "UTC"
time.tzset()


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """Two cores and several shuffle partitions, so that order and placement differ between runs."""
    session = open_session(
        "nightjar-tests",
        {"spark.master": "local[2]", "spark.sql.shuffle.partitions": "4", "spark.driver.memory": "2g"} | chosen_joins(),
    )
    yield session
    session.stop()


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    """An empty warehouse of its own for each test."""
    return Warehouse(spark, str(tmp_path / "warehouse"))


@pytest.fixture(scope="session")
def nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """The two small nights, written. Who changes a partition writes it back."""
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("nights")))
    write_inputs(warehouse)
    run_nights(warehouse)
    return warehouse


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> House:
    """What `house` is made of; for no test."""
    built = House.build(tmp_path_factory.mktemp("house"))
    run("nightly", "--config", built.config, "--ds", FIRST, "--bootstrap-days", "4")
    return built


@pytest.fixture(scope="session")
def first_night(begun: House, tmp_path_factory: pytest.TempPathFactory) -> House:
    """The first of two nights alone, to be copied by who goes on from it."""
    return begun.copy(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="session")
def house(begun: House, first_night: House) -> House:
    """Two nights from logs to release. Who changes what is published works on a copy."""
    run("nightly", "--config", begun.config, "--ds", SECOND)
    return begun

"""Fixtures that all tests share: a Spark session with real shuffles, warehouses, and nights that are built once."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from xdist.scheduler import LoadFileScheduling

from pipelines.session import open_session
from pipelines.storage.warehouse import Warehouse
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, SECOND, NightlyRun
from tests.joining import chosen_joins
from tests.two_nights import run_nights, write_inputs

# Most JVMs of the tests live for seconds and share two cores: the optimizing compiler would cost more than it saves.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

# Two workers share two cores. More threads in each would wait for each other. Tests of threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Times without a zone are UTC on every machine. Tests of time zones set TZ themselves.
os.environ["TZ"] = "UTC"
time.tzset()


JVM_FIXTURES = {"spark", "first_night", "nightly_run"}  # all fixtures that start a JVM use one of these


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use a JVM, so that `make test-fast` leaves them out, and long tests as slow."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
        if JVM_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("jvm")


class OneWorkerPerFixture(LoadFileScheduling):
    """Run all files that use the nightly run on one xdist worker, which builds it once; likewise the two small nights."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        text = (self.config.rootpath / file).read_text()
        shared = [name for name in (r"\w+: NightlyRun", r"nights: Warehouse") if re.search(rf"\b{name}\b", text)]
        return shared[0] if shared else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return OneWorkerPerFixture(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A session on two cores with four shuffle partitions, so that the order of rows differs between runs."""
    session = open_session(
        "nightjar-tests",
        {"spark.master": "local[2]", "spark.sql.shuffle.partitions": "4", "spark.driver.memory": "2g"} | chosen_joins(),
    )
    yield session
    session.stop()


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    """An empty warehouse."""
    return Warehouse(spark, str(tmp_path / "warehouse"))


@pytest.fixture(scope="session")
def nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A warehouse with the two small nights. A test that changes a partition restores it."""
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("nights")))
    write_inputs(warehouse)
    run_nights(warehouse)
    return warehouse


@pytest.fixture(scope="session")
def _growing_run(tmp_path_factory: pytest.TempPathFactory) -> NightlyRun:
    """The run that `first_night` copies after one night and that becomes `nightly_run`. Tests do not use it."""
    simulated = NightlyRun.simulate(tmp_path_factory.mktemp("nightly"))
    simulated.run("nightly", "--ds", FIRST, *BOOTSTRAP)
    return simulated


@pytest.fixture(scope="session")
def first_night(_growing_run: NightlyRun, tmp_path_factory: pytest.TempPathFactory) -> NightlyRun:
    """Simulated logs and the first night, from the logs to the release. Read-only: tests work on copies."""
    return _growing_run.copy(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def first_night_copy(first_night: NightlyRun, tmp_path_factory: pytest.TempPathFactory) -> NightlyRun:
    """A copy of the first night, which the tests of one module share and may change."""
    return first_night.copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="session")
def nightly_run(_growing_run: NightlyRun, first_night: NightlyRun) -> NightlyRun:
    """Two nights, from the logs to the release. A test that publishes other releases works on a copy."""
    _growing_run.run("nightly", "--ds", SECOND)
    return _growing_run

"""Checks at the start of a night of what its last steps need."""

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.common.config import Config
from jobs.night.preconditions import require_truth, trainers_fault
from model.config import TrainingConfig
from model.training.launch import is_local_master
from pipelines.contract.errors import InputError
from pipelines.storage.warehouse import Warehouse

YARN = {"spark.master": "yarn", "spark.executor.instances": "2"}


def training(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"launcher": "spark", "processes": 2} | changes)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (YARN | {"spark.dynamicAllocation.enabled": "true"}, "spark.dynamicAllocation.enabled"),
        (YARN | {"spark.ssl.enabled": "true"}, "spark.ssl.enabled"),
        (YARN | {"spark.executor.instances": "1"}, "runs 1 tasks"),
        (YARN | {"spark.executor.cores": "2", "spark.task.cpus": "4"}, "runs 0 tasks"),
        ({"spark.master": "spark://host:7077", "spark.cores.max": "1"}, "runs 1 tasks"),
        ({"spark.master": "local-cluster[1,1,1024]"}, "runs 1 tasks"),
    ],
)
def test_a_cluster_that_cannot_start_the_processes_is_named(settings: dict[str, str], named: str) -> None:
    fault = trainers_fault(training(), settings)
    assert fault is not None
    assert named in fault
    for elsewhere in (training(processes=1), training(launcher="torchrun")):
        assert trainers_fault(elsewhere, settings) is None


@pytest.mark.parametrize(
    "settings",
    [
        YARN,
        {"spark.master": "local[2]", "spark.dynamicAllocation.enabled": "true"},
        {"spark.master": "spark://host:7077", "spark.cores.max": "4", "spark.executor.cores": "2"},
        {"spark.master": "spark://host:7077"},
        {"spark.master": "local-cluster[2,1,1024]"},
    ],
)
def test_a_cluster_that_can_start_the_processes_passes(settings: dict[str, str]) -> None:
    assert trainers_fault(training(), settings) is None


@pytest.mark.parametrize(
    ("master", "local"),
    [("local", True), ("local[*]", True), ("local[2,3]", True), ("local-cluster[2,1,1024]", False), ("yarn", False)],
)
def test_a_local_cluster_is_not_a_local_master(master: str, local: bool) -> None:
    assert is_local_master(master) is local


def test_simulated_truth_without_its_tables_is_refused(warehouse: Warehouse) -> None:
    context: Any = SimpleNamespace(
        config=Config.model_validate({"evaluation": {"simulated_truth": True}}), warehouse=warehouse
    )
    with pytest.raises(InputError, match=r"evaluation\.simulated_truth needs table sim_truth_users"):
        require_truth(context)
    spark = warehouse.spark
    for table in ("sim_truth_users", "sim_truth_items"):
        warehouse.write_input(spark.createDataFrame([("2024-03-01", "u")], "ds string, user_id string"), table)
    require_truth(context, "2024-03-01")
    with pytest.raises(
        InputError, match=r"needs ds=2024-03-02 of table sim_truth_users, which has 1 days from 2024-03-01"
    ):
        require_truth(context, "2024-03-02")
    require_truth(SimpleNamespace(config=Config(), warehouse=warehouse), "2024-03-02")  # type: ignore[arg-type]

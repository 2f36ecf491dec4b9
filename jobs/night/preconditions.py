"""Checks before the first step, which may take hours, of what later steps need besides tables."""

import re
from collections.abc import Mapping

from jobs.common.runner import Context
from model.config import TrainingConfig
from model.training.launch import is_local_master
from pipelines.contract.errors import InputError, UsageError

TRUTH = ("sim_truth_users", "sim_truth_items")


def require_trainers(context: Context) -> None:
    """Raises UsageError if training cannot start its processes on this Spark."""
    settings = dict(context.spark.sparkContext.getConf().getAll())
    if fault := trainers_fault(context.config.training, settings):
        raise UsageError(fault)


def require_truth(context: Context, day: str | None = None) -> None:
    """Raises InputError if the config compares with the truth of simulated logs, and there is none (for `day`)."""
    if not context.config.evaluation.simulated_truth:
        return
    warehouse = context.warehouse
    remedy = "set evaluation.simulated_truth: false, unless jobs.simulate_logs writes the logs of this warehouse"
    for table in TRUTH:
        if not warehouse.exists(warehouse.path(table)):
            raise InputError(f"evaluation.simulated_truth needs table {table}, which {warehouse.root} lacks: {remedy}")
    if day and day not in (known := warehouse.input_days(warehouse.path(TRUTH[0]))):
        raise InputError(
            f"evaluation.simulated_truth needs ds={day} of table {TRUTH[0]}, which has {len(known)} days"
            f"{f' from {known[0]} to {known[-1]}' if known else ''}: {remedy}"
        )


def trainers_fault(training: TrainingConfig, settings: Mapping[str, str]) -> str | None:
    """Why launcher spark cannot start the processes under these Spark settings; None if it can or is not used."""
    master = settings.get("spark.master", "local")
    if training.launcher != "spark" or training.processes == 1 or is_local_master(master):
        return None
    if _is_on(settings, "spark.dynamicAllocation.enabled"):
        return (
            "training.launcher: spark starts all processes at once (Spark's barrier mode), which Spark refuses under "
            "spark.dynamicAllocation.enabled: set it to false for this application, with spark.executor.instances, or "
            "train on the driver (training.launcher: torchrun, or training.processes: 1)"
        )
    ignore = "pytorch.spark.distributor.ignoreSsl"
    if _is_on(settings, "spark.ssl.enabled") and not _is_on(settings, ignore):
        return (
            "training.launcher: spark does not encrypt what the processes send each other, and spark.ssl.enabled is on: "
            f"set {ignore} to true if that is acceptable, or train on the driver (training.launcher: torchrun)"
        )
    slots = slots_of(master, settings)
    if slots is not None and slots < training.processes:
        return (
            f"training.processes: {training.processes} processes start at once, and the cluster runs {slots} tasks at a "
            f"time ({_SIZES}): give the application more, or lower training.processes"
        )
    return None


_SIZES = "spark.executor.instances x spark.executor.cores / spark.task.cpus, spark.cores.max"


def slots_of(master: str, settings: Mapping[str, str]) -> int | None:
    """Number of tasks that the executors run at once, if the settings determine it; None if it depends on the cluster.

    >>> slots_of("yarn", {"spark.executor.instances": "3", "spark.executor.cores": "4", "spark.task.cpus": "2"})
    6
    >>> slots_of("spark://host:7077", {})
    """
    cpus, cores = int(settings.get("spark.task.cpus", 1)), settings.get("spark.executor.cores")
    if simulated := re.match(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)", master):
        return int(simulated[1]) * (int(simulated[2]) // cpus)
    if master.startswith(("yarn", "k8s")):
        return int(settings.get("spark.executor.instances", 2)) * (int(cores or 1) // cpus)
    if "spark.cores.max" not in settings:
        return None
    most = int(settings["spark.cores.max"])
    return most // int(cores) * (int(cores) // cpus) if cores else most // cpus


def _is_on(settings: Mapping[str, str], key: str) -> bool:
    return str(settings.get(key, "false")).lower() == "true"

"""System metrics of a run: processor, memory, disk, network and GPUs of the driver's machine, in MLflow's own names."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from jobs.tracking.job_run import JobRun

SECONDS = 10.0  # between two measurements, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise
logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # It logs the errors that it suppresses.


@contextmanager
def system_metrics(job: JobRun) -> Iterator[None]:
    """Log system metrics while the block runs, and once at its end, so that a short job has them too.

    Errors are suppressed: a job does not fail because of them.
    """
    monitor = SystemMetricsMonitor(job.run_id, sampling_interval=SECONDS)
    monitor.start()
    try:
        yield
    finally:
        with suppress(Exception):
            monitor.finish()
    with suppress(Exception):
        monitor.collect_metrics()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()

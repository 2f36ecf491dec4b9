"""One MLflow run: parameters, metrics, tables, plots and input datasets of a job."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from jobs.common.check_tables import metrics_of, rows_by_day, table_of
from jobs.common.plots import input_rows, null_shares
from jobs.tracking.client import TrackingClient
from pipelines.config import Checks
from pipelines.drift import NIGHTS_BEFORE
from pipelines.storage.dates import days_back
from pipelines.storage.manifest import Manifest
from pipelines.storage.warehouse import Warehouse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMS_PER_CALL, METRICS_PER_CALL, LONGEST_PARAM = 100, 1000, 6000  # MLflow's limits


class JobRun:
    """The child run of one job."""

    def __init__(self, client: TrackingClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def params(self, values: dict[str, Any]) -> None:
        """Log parameters. Nested values become dotted names."""
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in _flatten(values)]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_CALL])

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log metrics at one step. NaN values are left out."""
        self._log([(name, value, step) for name, value in values.items()])

    def series(self, points: list[dict[str, float]], step: str) -> None:
        """Log metrics at many steps. `step` is the key of the step number in each point."""
        self._log(
            [(name, value, int(point[step])) for point in points for name, value in point.items() if name != step]
        )

    def _log(self, points: list[tuple[str, float, int]]) -> None:
        timestamp = now()
        metrics = [Metric(name, float(value), timestamp, step) for name, value, step in points if value == value]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_PER_CALL])

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def inputs(self, root: str, tables: Mapping[str, str]) -> None:
        """Log input tables as datasets. `tables`: name -> fingerprint."""
        datasets = []
        for name, fingerprint in tables.items():
            table = name.partition("@")[0]
            source = json.dumps({"uri": f"{root}/{table}"})
            dataset = Dataset(name=name, digest=fingerprint[:36], source_type="local", source=source)
            datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "input")]))
        self._client.log_inputs(self.run_id, datasets)

    def figure(self, figure: "Figure", name: str) -> None:
        """Log a plot as plots/NAME.png."""
        self._client.log_figure(self.run_id, figure, f"plots/{name}.png")

    def table(self, columns: dict[str, list[Any]], name: str) -> None:
        """Log a table that the UI displays, as tables/NAME.json. `columns`: name -> values."""
        self._client.log_table(self.run_id, columns, f"tables/{name}.json")

    def text(self, text: str, name: str) -> None:
        """Log a text artifact."""
        self._client.log_text(self.run_id, text, name)

    def json(self, value: Any, name: str) -> None:
        """Log a JSON artifact."""
        self._client.log_dict(self.run_id, value, name)


def log_partition(job: JobRun, warehouse: Warehouse, manifest: Manifest, checks: Checks) -> None:
    """Log a written partition: its input tables, and the results of its checks as metrics, a table and plots."""
    job.inputs(warehouse.root, manifest.inputs)
    job.tags({"table": manifest.table, "fingerprint": manifest.fingerprint})
    job.metrics(metrics_of(manifest))
    job.table(table_of(manifest, checks), "checks")
    earlier = [warehouse.manifest(manifest.table, ds) for ds in days_back(manifest.ds, NIGHTS_BEFORE + 1)[:-1]]
    if days := rows_by_day(manifest, [night for night in earlier if night]):
        job.figure(input_rows(days, (checks.rows_low, checks.rows_high)), "input_rows")
    if inputs := manifest.facts.get("input"):
        job.figure(null_shares({name: facts["null_share"] for name, facts in inputs.items()}), "null_shares")


def now() -> int:
    """Milliseconds since 1970, as MLflow stores times."""
    return int(time.time() * 1000)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

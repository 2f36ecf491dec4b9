"""One MLflow run: parameters, metrics, tables, plots and input datasets of a job."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from jobs.common.check_tables import metrics_of, rows_by_day, table_of
from jobs.common.plots import input_rows, null_shares
from jobs.common.runner import Context
from jobs.tracking.client import TrackingClient
from jobs.tracking.datasets import InputDataset, datasets_of
from pipelines.drift import NIGHTS_BEFORE
from pipelines.storage.dates import days_back
from pipelines.storage.manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_NIGHT = ("interactions", "ranking_logs", "users", "items", "samples")  # the datasets of the run of the night
PARAMS_PER_CALL, METRICS_PER_CALL, LONGEST_PARAM = 100, 1000, 6000  # MLflow's limits


class JobRun:
    """A run. `outcome`: what the job achieved, in a few words, for the name of its run."""

    def __init__(self, client: TrackingClient, run_id: str, night: str | None = None) -> None:
        """`night`: the run of the night, if this is that of one of its jobs."""
        self._client, self.run_id, self.night = client, run_id, night
        self.outcome = ""

    def params(self, values: dict[str, Any]) -> None:
        """Log parameters. Nested values become dotted names."""
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in _flatten(values)]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_CALL])

    def metrics(self, values: Mapping[str, float], step: int = 0, at: int | None = None) -> None:
        """Log metrics at one step. NaN values are left out. `at`: their time, in milliseconds since 1970; None: now."""
        self._log([(name, value, step) for name, value in values.items()], at)

    def series(self, points: list[dict[str, float]], step: str, prefix: str = "") -> None:
        """Log metrics at many steps. `step` is the key of the step number in each point."""
        values = [(name, value, int(point[step])) for point in points for name, value in point.items() if name != step]
        self._log([(f"{prefix}{name}", value, number) for name, value, number in values])

    def _log(self, points: list[tuple[str, float, int]], at: int | None = None) -> None:
        timestamp = now() if at is None else at
        metrics = [Metric(name, float(value), timestamp, step) for name, value, step in points if value == value]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_PER_CALL])

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def inputs(self, tables: Sequence[InputDataset], use: str) -> None:
        """Log input tables as datasets. `use`: what for, in one word.

        Those of OF_NIGHT also become datasets of the run of the night.
        """
        logged = [_logged(table, use) for table in tables]
        self._client.log_inputs(self.run_id, logged)
        of_night = [dataset for dataset in logged if dataset.dataset.name in OF_NIGHT]
        if self.night and of_night:
            self._client.log_inputs(self.night, of_night)

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


def log_partition(job: JobRun, context: Context, manifest: Manifest, use: str) -> None:
    """Log a written partition: its input tables, and the results of its checks as metrics, a table and plots.

    `use`: see `JobRun.inputs`.
    """
    warehouse, checks = context.warehouse, context.config.checks
    job.inputs(datasets_of(context, manifest.inputs, manifest), use)
    job.tags({"table": manifest.table, "fingerprint": manifest.fingerprint})
    job.metrics(metrics_of(manifest))
    job.table(table_of(manifest, checks), "checks")
    earlier = [warehouse.manifest(manifest.table, ds) for ds in days_back(manifest.ds, NIGHTS_BEFORE + 1)[:-1]]
    if days := rows_by_day(manifest, [night for night in earlier if night]):
        job.figure(input_rows(days, (checks.rows_low, checks.rows_high)), "input_rows")
    if inputs := manifest.facts.get("input"):
        job.figure(null_shares({name: facts["null_share"] for name, facts in inputs.items()}), "null_shares")


def _logged(table: InputDataset, use: str) -> DatasetInput:
    dataset = Dataset(
        name=table.name,
        digest=table.digest,
        source_type=table.source_type,
        source=json.dumps({"uri": table.uri}),
        schema=table.schema,
        profile=json.dumps(table.profile) if table.profile else None,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", use)])


def now() -> int:
    """Milliseconds since 1970, as MLflow stores times."""
    return int(time.time() * 1000)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

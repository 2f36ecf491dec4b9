"""MLflow's one home: a run a night, a child run a job, and the release as a model version (pyfunc.py is what runs there).

Everything goes through the client, never through the "active run" of a thread: jobs nest, and Spark has threads.
"""

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import model
import pipelines
from jobs.common.check_tables import metrics_of, rows_by_day, table_of
from jobs.common.config import Config
from jobs.common.known_faults import causes
from jobs.common.plots import input_rows, null_shares
from model.serving.request_encoder import example_request
from pipelines.config import Checks
from pipelines.contract.errors import NightjarError, UsageError
from pipelines.contract.request_fields import HistoryField, MultiValueField, NumberField, RequestField, RequestFields
from pipelines.drift import NIGHTS_BEFORE
from pipelines.storage.dates import days_back, parse_ds
from pipelines.storage.manifest import Manifest, code_version
from pipelines.storage.warehouse import Warehouse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # of each run, by a server
for _name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.pyfunc"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # a fresh sqlite store tells of thirty migrations

import mlflow  # noqa: E402  the loggers above speak while it is imported
import requests  # noqa: E402
import urllib3  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import ModelSignature  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema  # noqa: E402
from mlflow.types.schema import Array  # noqa: E402

# What answering needs, as a version of the registered model lists it.
SERVING = ["faiss-cpu", "mlflow", "numpy", "pandas", "petastorm", "psutil", "pyarrow", "pydantic", "safetensors"]
SERVING += ["torch", "tqdm", "xxhash"]
NIGHT, JOB, RECORD = "nightjar.night", "nightjar.job", "nightjar.record"


def tracking_uri(config: Config, root: str) -> str:
    """Where the record is: as configured, else sqlite in a local warehouse. UsageError where neither can be."""
    if config.tracking.uri:
        return config.tracking.uri
    if not root.startswith("file://"):
        raise UsageError(f"tracking.uri is not set, and the warehouse {root} is not local: name an MLflow server")
    return f"sqlite:///{root.removeprefix('file://')}/mlflow.db"


class TrackingError(NightjarError):
    """The record does not answer (exit 1)."""


class _Client:
    """MLflow's client: where the record does not answer, TrackingError; after the first it is not asked again."""

    def __init__(self, uri: str) -> None:
        self._uri, self._error = uri, None  # type: str, TrackingError | None
        with self._answered():
            mlflow.set_tracking_uri(uri)
            try:
                self._client = MlflowClient(uri)
            except ImportError as error:
                raise UsageError(f"tracking.uri {uri} cannot be opened: {_first_line(error)}") from error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def asked(*args: Any, **kwargs: Any) -> Any:
            with self._answered():
                return method(*args, **kwargs)

        return asked

    @contextmanager
    def _answered(self) -> Iterator[None]:
        if self._error:
            raise self._error
        try:
            yield
        except Exception as error:
            if not any(map(_is_no_answer, causes(error))):
                raise
            self._error = TrackingError(
                f"the record at {self._uri} does not answer ({_first_line(error)}). What was written stays; when it answers "
                "again, the same command goes on"
            )
            raise self._error from error


def _is_no_answer(error: BaseException) -> bool:
    """Whether an error is of the way to the server, or of a server that is not well."""
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    return isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


class JobRun:
    """One child run: what a job has to say."""

    def __init__(self, client: _Client, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def params(self, values: dict[str, Any]) -> None:
        """Parameters; nested values as dotted names."""
        flat = [Param(name, str(value)[:6000]) for name, value in _flatten(values)]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self.run_id, params=flat[start : start + 100])

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Metrics at a step; values that are not numbers (NaN) are left out."""
        now = _now()
        kept = [Metric(name, float(value), now, step) for name, value in values.items() if value == value]
        for start in range(0, len(kept), 1000):
            self._client.log_batch(self.run_id, metrics=kept[start : start + 1000])

    def series(self, points: list[dict[str, float]], step: str) -> None:
        """Many steps at once; `step` is the key of the step number in each point."""
        now = _now()
        metrics = [
            Metric(name, float(value), now, int(point[step]))
            for point in points
            for name, value in point.items()
            if name != step and value == value
        ]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def tags(self, values: dict[str, str]) -> None:
        """Tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def inputs(self, root: str, tables: dict[str, str]) -> None:
        """Input tables as datasets: name -> fingerprint."""
        found = []
        for name, fingerprint in tables.items():
            table = name.partition("@")[0]
            source = json.dumps({"uri": f"{root}/{table}"})
            dataset = Dataset(name=name, digest=fingerprint[:36], source_type="local", source=source)
            found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "input")]))
        self._client.log_inputs(self.run_id, found)

    def figure(self, figure: "Figure", name: str) -> None:
        """A plot, as plots/NAME.png."""
        self._client.log_figure(self.run_id, figure, f"plots/{name}.png")

    def table(self, columns: dict[str, list[Any]], name: str) -> None:
        """A table that the UI shows: column -> values, as tables/NAME.json."""
        self._client.log_table(self.run_id, columns, f"tables/{name}.json")

    def json(self, value: Any, name: str) -> None:
        """A JSON artifact."""
        self._client.log_dict(self.run_id, value, name)


class Tracker:
    """The record of one night. Nothing is written before the first job has something to do."""

    def __init__(self, config: Config, warehouse: Warehouse, ds: str, *, join_finished: bool = False) -> None:
        """`join_finished`: add to the newest run of this ds even where it has ended (jobs run one by one)."""
        self._config, self._root, self.ds, self._join = config, warehouse.root, ds, join_finished
        self._update = warehouse.update
        self.name = f"{ds} {self._update.name}" if self._update else ds
        self.uri = tracking_uri(config, warehouse.root)
        self._night_run: str | None = None
        # Runs are opened when there is something to say; they began when the one before ended.
        self._since = _now()
        self._opened: _Client | None = None

    @property
    def _client(self) -> _Client:
        if self._opened is None:
            self._opened = _Client(self.uri)
        return self._opened

    def _experiment(self) -> str:
        name = self._config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:")
        place = f"{self._root}/mlartifacts" if local and self._root.startswith("file://") else None
        # The kind makes the UI show columns of metrics and parameters instead of traces.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(name, artifact_location=place, tags=tags))

    def _night(self) -> str:
        """The night's parent run: the newest of its name where that has not ended (a killed night goes on), else a new one."""
        if self._night_run is None:
            experiment = self._experiment()
            before = self._newest(experiment)
            if before and (self._join or before.info.status != "FINISHED"):
                self._night_run = before.info.run_id
                self._client.update_run(self._night_run, status="RUNNING")
                self._end_killed(experiment, before.info.run_id)
            else:
                tags = {NIGHT: self.name} | self._tags("incremental" if self._update else "nightly")
                name = self.name if self._update else f"night {self.name}"
                run = self._client.create_run(experiment, self._since, run_name=name, tags=tags)
                self._night_run = run.info.run_id
                night = JobRun(self._client, self._night_run)
                night.params(self._config.model_dump(mode="json"))
                night.json(self._config.model_dump(mode="json"), "config.json")
        return self._night_run

    def _newest(self, experiment: str) -> Any:
        """The newest parent run of this name; None where there is none."""
        found = self._client.search_runs([experiment], f"tags.`{NIGHT}` = '{self.name}'", max_results=1)
        return found[0] if found else None

    def _end_killed(self, experiment: str, night: str) -> None:
        """Whoever holds the lock of the day is alone: children that still run were killed with their job."""
        running = f"tags.`mlflow.parentRunId` = '{night}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment], running):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _tags(self, name: str) -> dict[str, str]:
        """What every run carries; the source is what the UI's column of that name shows."""
        source = {"mlflow.source.name": f"jobs.{name}", "mlflow.source.type": "JOB"}
        return {"ds": self.ds, "code_version": code_version()} | source

    @contextmanager
    def job(self, name: str) -> Iterator[JobRun]:
        """A child run of the night; FAILED with the error where the job raises."""
        parent = self._night()
        tags = {"mlflow.parentRunId": parent, JOB: name} | self._tags(name)
        run = self._client.create_run(self._experiment(), self._since, run_name=f"{name} {self.name}", tags=tags)
        job = JobRun(self._client, run.info.run_id)
        try:
            yield job
        except BaseException as error:
            with suppress(Exception):  # The error that counts is the first one.
                job.tags({"error": str(error)[:4000]})
                self._client.set_terminated(run.info.run_id, "FAILED")
            raise
        self._client.set_terminated(run.info.run_id, "FINISHED")
        self._since = _now()

    def night_metrics(self, values: dict[str, float]) -> None:
        """The few figures that the list of nights should show, on the parent run."""
        JobRun(self._client, self._night()).metrics(values)

    def night_tags(self, values: dict[str, str]) -> None:
        """Tags on the parent run."""
        JobRun(self._client, self._night()).tags(values)

    def record(self, name: str, value: float) -> None:
        """A point of a curve over the nights: one run of the experiment has them all, and the step is the day since 1970.

        Of an update within the day the step is the minute since 1970 that it ends at.
        """
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{RECORD}` = 'true'", max_results=1)
        if found:
            run_id = found[0].info.run_id
        else:
            tags = {RECORD: "true", "mlflow.source.name": "jobs.nightly", "mlflow.source.type": "JOB"}
            run = self._client.create_run(experiment, self._since, run_name="all nights", tags=tags)
            run_id = run.info.run_id
            self._client.set_terminated(run_id, "FINISHED")
        step = (parse_ds(self.ds) - date(1970, 1, 1)).days
        if self._update:
            step = (datetime.fromisoformat(self._update.until) - datetime(1970, 1, 1)) // timedelta(minutes=1)
        JobRun(self._client, run_id).metrics({name: value}, step)
        self.night_metrics({name: value})

    def close_night(self, status: str) -> None:
        """End the parent run, if there is one: FINISHED or FAILED. A failure to say FAILED is not told: the night's own is."""
        if status != "FINISHED":
            with suppress(Exception):
                self._end_night(status)
            return
        experiment = self._client.get_experiment_by_name(self._config.tracking.experiment)
        if self._night_run is None and experiment is not None:
            left = self._newest(experiment.experiment_id)
            if left and left.info.status == "RUNNING":  # Killed at its very end; this run found nothing to do.
                self._end_killed(experiment.experiment_id, left.info.run_id)
                self._night_run = left.info.run_id
        self._end_night(status)

    def _end_night(self, status: str) -> None:
        if self._night_run is not None:
            self._client.set_terminated(self._night_run, status)
            self._night_run = None

    def register(self, job: JobRun, manifest: dict[str, Any], uri: str) -> str:
        """The release as a model version that `mlflow models serve` can run. Returns the version.

        The version holds the code that answers and the URI of the release, not its files, which may be many gigabytes.
        """
        name = self._config.tracking.registered_model
        with tempfile.TemporaryDirectory(prefix="nightjar-version-") as folder:
            _save_served(Path(folder, "release"), manifest, uri)
            self._client.log_artifacts(job.run_id, folder)
        job.json(manifest, "release/manifest.json")
        try:
            self._client.create_registered_model(name, description="Releases of the nightly two-tower model")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(job.run_id).info.artifact_uri}/release"
        version = self._client.create_model_version(
            name, source=source, run_id=job.run_id, tags={"release_id": manifest["release_id"], "uri": uri}
        )
        return str(version.version)

    def version_of(self, release_id: str) -> str | None:
        """The newest model version of a release, where it has been registered."""
        name = self._config.tracking.registered_model
        found = self._client.search_model_versions(f"name = '{name}' and tags.release_id = '{release_id}'")
        return str(max((int(version.version) for version in found), default="")) or None

    def make_champion(self, version: str) -> None:
        """Point the alias `champion` at a version."""
        self._client.set_registered_model_alias(self._config.tracking.registered_model, "champion", version)

    def make_challenger(self, version: str) -> None:
        """Point the alias `challenger` at a version: of the newest release that was refused."""
        self._client.set_registered_model_alias(self._config.tracking.registered_model, "challenger", version)


def _save_served(folder: Path, manifest: dict[str, Any], uri: str) -> None:
    """An MLflow model of a release: jobs/common/pyfunc.py with the model room beside it, and what goes in and out."""
    fields = RequestFields.validate_python(manifest["request"])
    columns = []
    for field in fields:
        kind = _kind(field)
        columns.append(
            ColSpec(
                Array(kind) if isinstance(field, MultiValueField | HistoryField) else kind, field.name, required=False
            )
        )
        if isinstance(field, MultiValueField) and field.weights:
            columns.append(ColSpec(Array(DataType.double), field.weights, required=False))
    answer = {"item_ids": Array(_kind(fields[-1])), "scores": Array(DataType.double)}
    outputs = Schema(
        [ColSpec(kind, name) for name, kind in (answer | {"k": DataType.long, "release_id": DataType.string}).items()]
    )
    params = ParamSchema([ParamSpec("k", DataType.long, 100), ParamSpec("exclude_seen", DataType.boolean, False)])
    signature = ModelSignature(Schema(columns), outputs, params)
    # Requests come to the retriever as they were sent. Else MLflow makes a pandas table of them: it drops a field that it
    # does not know, makes floats of whole numbers where one is missing, and refuses a 3 for a 3.0.
    signature._is_signature_from_type_hint = True
    # MLflow asks for type hints, over any filter: why there are none is said in pyfunc.py.
    with warnings.catch_warnings(record=True) as said:
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            code_paths=[str(Path(str(package.__file__)).parent) for package in (model, pipelines)],
            model_config={"release": uri},
            signature=signature,
            input_example=([example_request(fields)], {"k": 10}),
            metadata={"release_id": manifest["release_id"], "request": manifest["request"]},
            pip_requirements=[f"{package}=={version(package)}" for package in SERVING],
        )
    for one in said:
        if "Add type hints to the `predict`" not in str(one.message):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _kind(field: RequestField) -> DataType:
    """The type of a field of a request, as MLflow calls it."""
    if field.type in ("integer", "boolean"):
        return DataType.long if field.type == "integer" else DataType.boolean
    return DataType.double if isinstance(field, NumberField) else DataType.string


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def log_partition(job: JobRun, warehouse: Warehouse, manifest: Manifest, checks: Checks) -> None:
    """What the jobs of the sample tables record: inputs as datasets, and what the checks found as numbers, table and plots."""
    job.inputs(warehouse.root, manifest.inputs)
    job.tags({"table": manifest.table, "fingerprint": manifest.fingerprint})
    job.metrics(metrics_of(manifest))
    job.table(table_of(manifest, checks), "checks")
    before = [warehouse.manifest(manifest.table, ds) for ds in days_back(manifest.ds, NIGHTS_BEFORE + 1)[:-1]]
    if days := rows_by_day(manifest, [night for night in before if night]):
        job.figure(input_rows(days, (checks.rows_low, checks.rows_high)), "input_rows")
    if told := manifest.facts.get("input"):
        job.figure(null_shares({name: facts["null_share"] for name, facts in told.items()}), "null_shares")


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

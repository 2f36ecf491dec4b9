"""Where to look at the MLflow record. It needs no mlflow for a local record, so that jobs that only print it start fast."""

import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.common.config import Config
from pipelines.contract.errors import NightjarError, UsageError

VIEW = "nights"  # the name of the saved view of the table of runs (jobs/tracking/saved_view.py)
LOCAL_UI = "http://127.0.0.1:5000"
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class RecordAddress:
    """The link that opens the table of nights, and the command that starts the UI for it (None: a server runs)."""

    command: str | None
    link: str

    def lines(self) -> list[str]:
        """The address as lines of text."""
        return [f"start the MLflow UI: {self.command}", f"then open: {self.link}"] if self.command else [self.link]


def tracking_uri(config: Config, root: str) -> str:
    """The MLflow tracking URI: `tracking.uri`, else a sqlite file in a local warehouse.

    Raises UsageError if `tracking.uri` is not set and the warehouse is not local.
    """
    if config.tracking.uri:
        return config.tracking.uri
    if not root.startswith("file://"):
        raise UsageError(f"tracking.uri is not set, and the warehouse {root} is not local: name an MLflow server")
    return f"{SQLITE}{root.removeprefix('file://')}/mlflow.db"


def record_address(config: Config, root: str) -> RecordAddress:
    """The address of the table of nights.

    If the record has no experiment yet, or its server does not answer, the link opens the home page of the UI.
    """
    uri = tracking_uri(config, root)
    served = uri.startswith(("http://", "https://"))
    experiment = _experiment_id(uri, config.tracking.experiment)
    ui = uri.rstrip("/") if served else LOCAL_UI
    command = None if served else f"{mlflow_command()} ui --backend-store-uri {shlex.quote(_shortened(uri))}"
    return RecordAddress(command, nights_link(ui, experiment) if experiment else ui)


def nights_link(ui: str, experiment_id: str) -> str:
    """The link that opens the runs of the experiment with the saved view."""
    return f"{ui}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def _experiment_id(uri: str, name: str) -> str | None:
    if uri.startswith(SQLITE):
        return _from_sqlite(Path(uri.removeprefix(SQLITE)), name)
    from jobs.tracking.client import TrackingClient  # mlflow takes seconds to import

    try:
        with _one_short_request():
            experiment = TrackingClient(uri).get_experiment_by_name(name)
    except NightjarError:
        return None
    return str(experiment.experiment_id) if experiment else None


@contextmanager
def _one_short_request() -> Iterator[None]:
    """MLflow asks a server that does not answer for minutes. A link is not worth that."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _from_sqlite(file: Path, name: str) -> str | None:
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1)) as database:
            row = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", [name]).fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None


def mlflow_command() -> str:
    """The mlflow command of this environment, as it is typed in the working directory."""
    beside = Path(sys.executable).with_name("mlflow")
    if not beside.exists():
        return "mlflow"
    return shlex.quote(os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside))


def _shortened(uri: str) -> str:
    """A sqlite URI with the path relative to the working directory, if the file is below it."""
    file = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and file.is_absolute() and file.is_relative_to(Path.cwd()):
        return f"{SQLITE}{file.relative_to(Path.cwd())}"
    return uri

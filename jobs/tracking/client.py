"""The MLflow client, and the errors that say that the tracking server or its sqlite file cannot be used."""

import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
import requests
import urllib3
from mlflow.tracking import MlflowClient

from jobs.common.known_faults import FULL, causes
from jobs.tracking.address import mlflow_command
from jobs.tracking.sqlite_store import StoreError, fault_of
from pipelines.contract.errors import NightjarError, UsageError


class TrackingError(NightjarError):
    """The tracking server does not answer, or refuses (exit 1)."""


class TrackingClient:
    """MlflowClient that raises TrackingError when the server does not answer, and StoreError when sqlite refuses.

    After the first such error it raises the same error at once, so that a job does not wait for every later call.
    """

    def __init__(self, uri: str) -> None:
        """Raises UsageError if a package for this kind of URI is missing."""
        self._uri, self._error = uri, None  # type: str, NightjarError | None
        with self._translated():
            mlflow.set_tracking_uri(uri)
            try:
                self._client = MlflowClient(uri)
            except ImportError as error:
                raise UsageError(f"tracking.uri {uri} cannot be opened: {_first_line(error)}") from error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._translated():
                return method(*args, **kwargs)

        return call

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._error:
            raise self._error
        try:
            yield
        except Exception as error:
            self._error = self._fault(error)
            if self._error is None:
                raise
            raise self._error from error

    def _fault(self, error: Exception) -> NightjarError | None:
        """The error to show to the user; None if it is not about the server or the file."""
        of_sqlite = next((cause for cause in causes(error) if isinstance(cause, sqlite3.Error)), None)
        if isinstance(of_sqlite, sqlite3.IntegrityError):  # MLflow answers with it that a name exists.
            return None
        if of_sqlite and not FULL.search(str(of_sqlite)):
            return StoreError(fault_of(self._uri, of_sqlite))
        if "out-of-date database schema" in str(error):
            return StoreError(
                f"the MLflow store {self._uri} was written by another version of MLflow ({_first_line(error)}) Use that "
                f"version, or copy the store and run {mlflow_command()} db upgrade {shlex.quote(self._uri)}"
            )
        if str(error).startswith("API request to endpoint"):  # MLflow says so of any answer that it does not expect.
            return TrackingError(
                f"the server at {self._uri} refuses the request, or is not an MLflow server ({_first_line(error)}). Check "
                "tracking.uri, and the user or token of MLflow (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN), then run the same command again"
            )
        if any(map(_is_unreachable, causes(error))):
            return TrackingError(
                f"the MLflow tracking server at {self._uri} does not answer ({_first_line(error)}). The tables that were "
                "written stay. When the server answers again, run the same command again"
            )
        return None


def _is_unreachable(error: BaseException) -> bool:
    """Whether an error comes from the network, or from a server that reports an internal error (5xx)."""
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    return isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]

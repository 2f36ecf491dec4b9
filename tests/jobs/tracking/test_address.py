"""The link that a night prints opens the table of nights, with the columns of the saved view."""

import json
import os
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from jobs.common.config import Config, Tracking
from jobs.tracking.address import record_address
from jobs.tracking.saved_view import saved_view
from pipelines.contract.errors import UsageError


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    """A warehouse with a record that has the experiment `nightjar` under id 7."""
    folder = tmp_path / "my warehouse"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        database.execute("INSERT INTO experiments VALUES (1, 'other'), (7, 'nightjar')")
        database.commit()
    return folder


def test_the_link_of_a_local_record_opens_the_runs_with_the_saved_view(warehouse: Path) -> None:
    address = record_address(Config(), f"file://{warehouse}")
    view = "workflowType=machine_learning&viewStateShareKey=nights"
    assert address.link == f"http://127.0.0.1:5000/#/experiments/7/runs?{view}"
    assert address.command is not None
    assert address.command.endswith(f"mlflow ui --backend-store-uri 'sqlite:///{warehouse}/mlflow.db'")
    assert address.lines() == [f"start the MLflow UI: {address.command}", f"then open: {address.link}"]


def test_the_command_names_a_store_below_the_working_directory_as_it_is_typed(
    warehouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(warehouse.parent)
    command = record_address(Config(), f"file://{warehouse}").command
    assert command is not None
    assert command.endswith("--backend-store-uri 'sqlite:///my warehouse/mlflow.db'")


@pytest.mark.parametrize("content", [None, b"", b"this is no database"])
def test_without_an_experiment_the_link_opens_the_home_page(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "mlflow.db").write_bytes(content)
    assert record_address(Config(), f"file://{tmp_path}").link == "http://127.0.0.1:5000"


def test_a_remote_warehouse_needs_the_address_of_a_server() -> None:
    with pytest.raises(UsageError, match="name an MLflow server"):
        record_address(Config(), "s3a://bucket/warehouse")


def test_a_store_of_another_experiment_has_no_link_to_it(warehouse: Path) -> None:
    config = Config(tracking=Tracking(experiment="not yet"))
    assert record_address(config, f"file://{warehouse}").link == "http://127.0.0.1:5000"


def test_the_saved_view_has_ten_columns_and_only_nights() -> None:
    view = json.loads(saved_view(20))
    columns = ["Run name", "Created", "Duration", *view["selectedColumns"]]  # The UI always shows the first three.
    assert {"tags.`verdict`", "metrics.`eval/recall_at_20`", "tags.`gates`", "tags.`release_id`"} < set(columns)
    assert len(columns) == 11
    assert view["columnOrder"] == [*view["selectedColumns"], "duration"], "the UI ignores widths without an order"
    assert view["searchFilter"] == "tags.`nightjar.night` LIKE '%'"


def test_a_server_that_does_not_answer_does_not_delay_the_report() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        before, started = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT"), time.monotonic()
        assert record_address(Config(tracking=Tracking(uri=uri)), "file:///warehouse").lines() == [uri]
    assert time.monotonic() - started < 30
    assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") == before

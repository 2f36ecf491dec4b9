"""A locked or damaged sqlite file of MLflow is one error with a remedy, before a job works for hours."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from jobs.tracking.client import TrackingClient
from jobs.tracking.sqlite_store import StoreError, require_store

ROOT = Path(__file__).resolve().parents[3]
SHORT = 0.1  # seconds


@pytest.fixture
def store(tmp_path: Path) -> Path:
    file = tmp_path / "my warehouse" / "mlflow.db"
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE runs (id)")
    return file


@pytest.mark.processes
def test_the_error_names_the_program_that_keeps_the_store_locked(store: Path) -> None:
    code = (
        "import sqlite3, sys; store = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "store.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreError) as caught:
            require_store(f"sqlite:///{store}", SHORT)
        other.communicate("")
    assert caught.value.exit_code == 1
    assert "is locked: another program writes to it and does not finish" in str(caught.value)
    assert f"process {other.pid})" in str(caught.value)
    assert "Close that program, or let it finish, then run the same command again" in str(caught.value)
    require_store(f"sqlite:///{store}", SHORT)


def test_readers_do_not_matter_and_a_store_may_not_exist_yet(store: Path) -> None:
    with closing(sqlite3.connect(store)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM runs").fetchall()
        require_store(f"sqlite:///{store}", SHORT)
    require_store(f"sqlite:///{store.parent}/new.db", SHORT)
    assert not (store.parent / "new.db").exists()
    require_store("http://127.0.0.1:1", SHORT)


def test_a_file_that_is_no_database_is_named(store: Path) -> None:
    store.write_text("not a database, but longer than its header" * 10)
    with pytest.raises(StoreError, match=r"mlflow\.db cannot be used \(file is not a database\)\. .* Restore the file"):
        require_store(f"sqlite:///{store}", SHORT)


def test_a_lock_in_the_middle_of_a_night_is_the_same_error(store: Path) -> None:
    client = TrackingClient("http://127.0.0.1:1")
    client._uri = f"sqlite:///{store}"
    of_mlflow = OperationalError("UPDATE runs", {}, sqlite3.OperationalError("database is locked"))
    of_mlflow.__cause__ = of_mlflow.orig
    with pytest.raises(StoreError, match="is locked"), client._translated():
        raise of_mlflow


def test_a_full_disk_is_not_a_fault_of_the_store(store: Path) -> None:
    client = TrackingClient("http://127.0.0.1:1")
    with pytest.raises(sqlite3.OperationalError), client._translated():
        raise sqlite3.OperationalError("database or disk is full")


def test_a_name_that_exists_is_an_answer_and_not_a_fault_of_the_store(store: Path) -> None:
    client = TrackingClient("http://127.0.0.1:1")
    client._uri = f"sqlite:///{store}"
    for _ in range(2):  # An error that it stores would be raised again.
        with pytest.raises(MlflowException, match="exists"), client._translated():
            raise MlflowException("Registered Model exists") from sqlite3.IntegrityError("UNIQUE constraint failed")


def test_a_store_of_another_version_of_mlflow_names_the_command_that_upgrades_it(store: Path) -> None:
    client = TrackingClient("http://127.0.0.1:1")
    client._uri = f"sqlite:///{store}"
    with pytest.raises(StoreError, match=rf"mlflow db upgrade 'sqlite:///{store}'$"), client._translated():
        raise MlflowException("Detected out-of-date database schema (found version 1, but expected 2).")


@pytest.mark.slow  # imports all libraries of a job
def test_a_job_ends_before_it_starts_spark(store: Path) -> None:
    store.write_text("not a database, but longer than its header" * 10)
    config = store.parent / "night.yaml"
    config.write_text(f"warehouse: '{store.parent}'")
    command = [sys.executable, "-m", "jobs.build_positives", "--config", str(config), "--ds", "2024-03-04"]
    environment = os.environ | {"JAVA_HOME": "/nowhere", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: the MLflow store sqlite:///{store} cannot be used (file is not a database)")
    assert len(done.stderr.splitlines()) == 1

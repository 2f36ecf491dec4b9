"""Finds out whether MLflow's sqlite file can be written, before a job works for hours and then cannot record it.

It needs no mlflow.
"""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import psutil

from jobs.common.config import Config
from jobs.tracking.address import tracking_uri
from pipelines.contract.errors import NightjarError
from pipelines.storage.local_warehouse import LocalWarehouse, is_local

WAIT = 5.0  # seconds; a job holds the lock for milliseconds


class StoreError(NightjarError):
    """MLflow's sqlite file cannot be used (exit 1)."""


def require_store(uri: str, wait: float = WAIT) -> None:
    """Raises StoreError if the sqlite file of `uri` cannot be written, or stays locked for `wait` seconds."""
    file = sqlite_file(uri)
    if file is None or not file.is_file():  # MLflow creates it.
        return
    try:
        with closing(sqlite3.connect(file, timeout=wait, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StoreError(fault_of(uri, error)) from None


def require_record(config: Config) -> None:
    """`require_store` for the record that a config names. A job calls it before it starts Spark."""
    root = LocalWarehouse(config.warehouse).root if is_local(config.warehouse) else config.warehouse
    if config.tracking.uri or root.startswith("file://"):
        require_store(tracking_uri(config, root))


def sqlite_file(uri: str) -> Path | None:
    """The file of a URI of sqlite; None for a server or another database."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def fault_of(uri: str, error: sqlite3.Error) -> str:
    """What is wrong with the sqlite file, and what to do, as text."""
    again = "then run the same command again: it skips finished steps and continues"
    if "locked" not in str(error):
        return (
            f"the MLflow store {uri} cannot be used ({error}). Tables and releases are whole. Restore the file or its "
            f"permissions, or move it away to begin a new record, {again}"
        )
    file = sqlite_file(uri)
    users = ", ".join(users_of(file)) if file else ""
    return (
        f"the MLflow store {uri} is locked: another program writes to it and does not finish"
        f"{users and f' (open in: {users})'}. Tables and releases are whole. Close that program, or let it finish, {again}"
    )


def users_of(file: Path) -> list[str]:
    """The first few other processes that have the file open, as far as this user may know."""
    names = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            is_open = str(file.resolve()) in {opened.path for opened in process.open_files()}
            if is_open and process.pid != os.getpid():
                names.append(f"{process.name()}, process {process.pid}")
    return names[:5]

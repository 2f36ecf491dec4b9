"""A local warehouse that is read without Spark: for jobs that print what small files say, and should answer at once."""

import os
from pathlib import Path
from typing import Any

from pipelines.storage.warehouse import Warehouse


def is_local(warehouse: str) -> bool:
    """Whether a warehouse, as the config names it, is a local folder."""
    return "://" not in warehouse and not warehouse.startswith("file:")


class LocalWarehouse(Warehouse):
    """Manifests, listings and small files of a local warehouse. Everything that needs Hadoop or Spark raises an error."""

    def __init__(self, root: str) -> None:
        self.root = f"file://{os.path.abspath(Path(root).expanduser())}"

    def exists(self, uri: str) -> bool:
        """Whether a file or folder exists."""
        return _path(uri).exists()

    def data_files(self, uri: str) -> list[str]:
        """URIs of all data files under a folder, sorted. Hidden files (_ or .) are not included."""
        files = (path for path in _path(uri).rglob("*") if path.is_file() and not path.name.startswith(("_", ".")))
        return sorted(f"file://{path}" for path in files)

    def _fs(self, uri: str) -> Any:
        raise NotImplementedError(f"{uri}: this job was started without Spark, which it needs to use Hadoop")


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))

"""The tables that a job read, as MLflow shows datasets: path, columns with their types, and counts."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

from pyarrow import parquet as pq

from jobs.common.runner import Context
from model.io.urls import resolve
from pipelines.inputs.contracts import CONTRACTS
from pipelines.inputs.tables import InputTables
from pipelines.samples.packing import positives_in
from pipelines.storage.manifest import Manifest


@dataclass(frozen=True)
class InputDataset:
    """A table of one day. `name` has the form TABLE or TABLE@DS, where DS is another day than that of the night."""

    name: str
    fingerprint: str
    uri: str
    columns: dict[str, str] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The fingerprint, in the length that MLflow stores."""
        return self.fingerprint[:36]

    @property
    def source_type(self) -> str:
        """The kind of source. The UI shows the path of `local` and `s3`."""
        scheme = urlparse(self.uri).scheme
        return "s3" if scheme.startswith("s3") else "local" if scheme in ("", "file") else scheme

    @property
    def schema(self) -> str | None:
        """The columns in the form that the UI shows."""
        columns = [{"name": name, "type": kind} for name, kind in self.columns.items()]
        return json.dumps({"mlflow_colspec": columns}) if columns else None


def datasets_of(
    context: Context, fingerprints: Mapping[str, str], counted: Manifest | None = None
) -> list[InputDataset]:
    """The tables with these names and fingerprints (`Recipe.inputs`).

    `counted`: the manifest of the table that was made from them, which has the counts of the input tables.
    """
    read = counted.facts.get("input", {}) if counted else {}
    return [_dataset(context, name, fingerprint, read) for name, fingerprint in fingerprints.items()]


def _dataset(context: Context, name: str, fingerprint: str, read: Mapping[str, Any]) -> InputDataset:
    table, _, other_day = name.partition("@")
    warehouse, ds = context.warehouse, other_day or context.ds
    if table in CONTRACTS:
        inputs = InputTables(warehouse, context.config.inputs)
        uri, newest = inputs.uri(table), max((day for day in inputs.days(table) if day <= ds), default=ds)
        columns = _columns(context, f"{uri}/ds={newest}")
        return InputDataset(name, fingerprint, uri, columns, _input_profile(read.get(table)))
    uri = warehouse.path(table, ds)
    manifest = warehouse.manifest(table, ds)
    return InputDataset(name, fingerprint, uri, _columns(context, uri), _profile(manifest) if manifest else {})


def _profile(manifest: Manifest) -> dict[str, Any]:
    facts = manifest.facts
    profile: dict[str, Any] = {"day": manifest.ds, "rows": manifest.rows}
    if manifest.table == "samples":
        profile["positives"] = positives_in(manifest)
        profile |= {f"{kind}_negatives": number for kind, number in facts["kinds"].items() if number}
        profile |= {f"{split}_rows": part["rows"] for split, part in facts["splits"].items()}
    if "loss" in facts:  # A model has no rows of its own.
        profile = {"day": manifest.ds, "loss": round(facts["loss"], 4), "steps": facts["steps"]}
    return profile | {"written_at": manifest.written_at, "code_version": manifest.code_version}


def _input_profile(counted: Mapping[str, Any] | None) -> dict[str, Any]:
    """The counts of an input table from the checks of the night."""
    if not counted:
        return {}
    days = sorted(counted["by_day"])
    profile: dict[str, Any] = {"days": days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"}
    profile |= {"rows": counted["rows"], "bad_rows": counted["rows"] - counted["good"]}
    if counted["first_event"]:
        profile["events"] = f"{counted['first_event']} to {counted['last_event']} UTC"
    nulls = {name: share for name, share in counted["null_share"].items() if share}
    return profile | {f"nulls_of_{name}": f"{share:.2%}" for name, share in nulls.items()}


def _columns(context: Context, uri: str) -> dict[str, str]:
    """Columns and types in the first Parquet file below a folder; empty without one. A night must not fail because of it."""
    with suppress(Exception):
        files = [file for file in context.warehouse.data_files(uri) if file.endswith(".parquet")]
        filesystem, path = resolve(files[0])
        with filesystem.open_input_file(path) as file:
            schema = pq.ParquetFile(file).schema_arrow
        return {column.name: _short(str(column.type)) for column in schema}
    return {}


def _short(kind: str) -> str:
    """An Arrow type without the name of its items.

    >>> _short("list<element: int32>")
    'list<int32>'
    """
    return kind.replace("list<element: ", "list<").replace("list<item: ", "list<")

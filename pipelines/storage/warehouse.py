"""The only reader and writer of tables: staging, counts, manifests, moves into place.

A written partition is complete when its `_manifest.json` exists. The manifest is written last, so a half-moved partition
never counts as written, with or without atomic renames in the store.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from pipelines.contract.errors import InputError, UsageError
from pipelines.files.broken_files import naming_broken_files
from pipelines.files.filesystem import FileSystem
from pipelines.files.parquet_reader import InputReader, InputRows, Wanted
from pipelines.files.table_files import DAY, list_files
from pipelines.storage.dates import parse_ds, span_of
from pipelines.storage.manifest import MANIFEST, Manifest, Recipe, code_version, digest
from pipelines.storage.table_keys import check_keys
from pipelines.storage.update import Update

TABLE_NAME = re.compile(r"[a-z][a-z0-9_]*(/table=[a-z][a-z0-9_]*)?")  # quarantine has a folder for each table
EXPORTED = re.compile(r"\.parquet$|^[_.]")  # files that an export may have written


class Warehouse(FileSystem):
    """The tables under one root URI, and input tables at any URI."""

    update: Update | None = None  # Set in the warehouse of an update (pipelines/storage/update_warehouse.py).

    def __init__(self, spark: SparkSession, root: str) -> None:
        super().__init__(spark)
        self._reader = InputReader(self)
        self.root = self._qualified(root)

    def resolve(self, path: str) -> str:
        """Resolve a path from the config: absolute paths and URIs stay, relative paths are under the warehouse."""
        return self._qualified(path) if "://" in path or path.startswith("/") else f"{self.root}/{path}"

    def path(self, table: str, ds: str | None = None) -> str:
        """The URI of a table or of one of its partitions."""
        if not TABLE_NAME.fullmatch(table):
            raise UsageError(f"table name {table!r} is not of the form [a-z][a-z0-9_]*")
        return f"{self.root}/{table}" + (f"/ds={parse_ds(ds).isoformat()}" if ds else "")

    # -- input tables: owned by users, without manifests --------------------------------------------------------------

    def input_days(self, uri: str) -> list[str]:
        """The days for which an input table has a partition, in order."""
        names = (entry.name for entry in (self.entries(uri) if self.exists(uri) else []) if entry.is_folder)
        return sorted(name.removeprefix("ds=") for name in names if DAY.fullmatch(name))

    def input_fingerprint(self, uri: str, days: list[str]) -> str:
        """A hash of the data files of these days: names, lengths and modification times."""
        listed = list_files(self, uri, days)
        data = sorted([file.ds, file.uri, file.length, file.modified] for file in listed.data)
        return digest([*data, *sorted(listed.refused)])

    def input_rows(self, uri: str, days: list[str], table: str, wanted: Sequence[Wanted] | None = None) -> InputRows:
        """Read the wanted columns (None: all) of these days of an input table. Raises InputError for an unreadable file."""
        with naming_broken_files(table):
            return self._reader.read(uri, days, table, wanted)

    def read_input(self, uri: str, days: list[str]) -> DataFrame:
        """Read all columns of these days of an input table, with `ds` as a string column."""
        return self.input_rows(uri, days, uri.rsplit("/", 1)[-1]).rows

    def write_input(self, frame: DataFrame, table: str) -> dict[str, int]:
        """Write many days of an input table at once (importers, simulator). Replaces existing days.

        `frame` has a string column `ds`. Returns the number of rows per day.
        """
        target = self.path(table)
        staging = self.new_staging(table, "import")
        with self.deleted_on_error(staging):
            frame.repartition("ds").sortWithinPartitions("ds").write.partitionBy("ds").parquet(staging)
            days = self.spark.read.parquet(staging).groupBy("ds").count().collect()
            counts = {row["ds"]: row["count"] for row in days}
            if not counts:
                raise InputError(f"table {table}: the import produced no rows; nothing was written")
        if self.exists(target):
            for ds in sorted(counts):
                self._replace(f"{staging}/ds={ds}", f"{target}/ds={ds}")
            self.delete(staging)
        else:
            self.rename(staging, target)
        return counts

    # -- written tables ---------------------------------------------------------------------------------------------

    def manifest(self, table: str, ds: str) -> Manifest | None:
        """The manifest of a partition; None if the partition does not exist."""
        uri = f"{self.path(table, ds)}/{MANIFEST}"
        return Manifest(**json.loads(self.read_text(uri))) if self.exists(uri) else None

    def require(self, table: str, ds: str, remedy: str) -> Manifest:
        """The manifest of a partition. Raises InputError with the remedy if the partition does not exist."""
        manifest = self.manifest(table, ds)
        if manifest is None:
            days = [day for day in self.input_days(self.path(table)) if day != ds]
            has = f". It has {span_of(days)}" if days else ""
            raise InputError(f"table {table} has no partition ds={ds} in {self.root}: {remedy}{has}")
        return manifest

    def newest(self, table: str) -> str | None:
        """The newest day for which a written table has a complete partition; None if there is none."""
        days = reversed(self.input_days(self.path(table)))
        return next((ds for ds in days if self.exists(f"{self.path(table, ds)}/{MANIFEST}")), None)

    def retract(self, tables: tuple[str, ...], ds: str) -> None:
        """Delete the manifests of partitions that a step is about to rewrite together.

        If the step dies after it has rewritten only some of them, none of the others looks complete.
        """
        for table in tables:
            self.delete(f"{self.path(table, ds)}/{MANIFEST}")

    def remove(self, table: str, ds: str) -> None:
        """Delete a partition if it exists, manifest first."""
        self.delete(f"{self.path(table, ds)}/{MANIFEST}")
        self.delete(self.path(table, ds))

    def read(self, table: str, ds: str) -> DataFrame:
        """Read a complete partition with the schema that was written."""
        self.require(table, ds, f"run the job that writes {table} for this ds first")
        # Spark turns partition folders inside (split=, group=) into columns: their names have no leading underscore.
        uri = self.path(table, ds)
        return self.spark.read.option("basePath", uri).parquet(uri)

    def write(
        self,
        frame: DataFrame,
        table: str,
        ds: str,
        recipe: Recipe,
        *,
        partition_by: tuple[str, ...] = (),
        facts: dict[str, Any] | Callable[[DataFrame, str], dict[str, Any]] | None = None,
        may_be_empty: bool = False,
    ) -> Manifest:
        """Write a partition: stage, count, check the keys (pipelines/storage/table_keys.py), move into place.

        `facts` goes into the manifest. It may be a function of the staged rows and the staging folder, which returns the facts
        or raises. It runs before the move, so a failed check leaves the table unchanged. Raises InputError for empty output
        unless `may_be_empty`.
        """
        staging = self.new_staging(table, ds)
        with self.deleted_on_error(staging):
            writer = frame.write.partitionBy(*partition_by) if partition_by else frame.write
            writer.parquet(staging)
            staged = self.spark.read.schema(frame.schema).option("basePath", staging).parquet(staging)
            rows = staged.count()
            if rows == 0 and not may_be_empty:
                raise InputError(
                    f"table {table} ds={ds} would be empty: nothing was written. "
                    "The counts above show which filter removed every row"
                )
            check_keys(staged, table, ds)
            described = facts(staged, staging) if callable(facts) else dict(facts or {})
        return self._finish(staging, table, ds, recipe, rows, described)

    def finish_folder(self, staging: str, table: str, ds: str, recipe: Recipe, facts: dict[str, Any]) -> Manifest:
        """Move a folder of files (a model) from `new_staging` into place, with a manifest."""
        return self._finish(staging, table, ds, recipe, 0, facts)

    def export(self, frame: DataFrame, uri: str, *, overwrite: bool) -> int:
        """Write rows to a folder that a user named. Returns the number of rows.

        Raises UsageError if the folder exists and not `overwrite`, or if it holds files that no export wrote.
        """
        uri = self._qualified(uri)
        if self.exists(uri) and not overwrite:
            raise UsageError(f"{uri} exists: name another folder, or replace it with --force")
        foreign = [n for s in self.children(uri) if not EXPORTED.search(n := s.getPath().getName()) or s.isDirectory()]
        if foreign:
            raise UsageError(
                f"{uri} holds {foreign[0]!r}, which no export wrote: name another folder, or empty this one"
            )
        staging = f"{uri}.writing-{uuid.uuid4().hex[:8]}"
        with self.deleted_on_error(staging):
            frame.write.parquet(staging)
            rows = self.spark.read.parquet(staging).count()
        self.delete(uri)
        self.rename(staging, uri)
        return rows

    def new_staging(self, table: str, ds: str) -> str:
        """A new staging folder for a partition. Deletes the staging folders that killed runs of this partition left."""
        parent = f"{self.root}/_staging/{table}/{ds}"
        self.delete(parent)
        staging = f"{parent}/{uuid.uuid4().hex}"
        self._fs(staging).mkdirs(self._path(parent))
        return staging

    def progress_folder(self, table: str, ds: str, inputs: Mapping[str, str]) -> str:
        """The folder in which a long step saves its progress on a partition made from these inputs.

        The folder outlives the step. Progress on other inputs is deleted. `delete_progress` deletes all of it.
        """
        parent = self._progress_parent(table, ds)
        name = digest(dict(inputs))
        for status in self.children(parent):
            if status.getPath().getName() != name:
                self.delete(f"{parent}/{status.getPath().getName()}")
        return f"{parent}/{name}"

    def delete_progress(self, table: str, ds: str) -> None:
        """Delete the progress saved for a partition."""
        self.delete(self._progress_parent(table, ds))

    def _progress_parent(self, table: str, ds: str) -> str:
        return f"{self.root}/_on_the_way/{table}/{parse_ds(ds).isoformat()}"

    def _finish(self, staging: str, table: str, ds: str, recipe: Recipe, rows: int, facts: dict[str, Any]) -> Manifest:
        manifest = Manifest(
            table=table,
            ds=ds,
            config_hash=recipe.config_hash,
            inputs=dict(recipe.inputs),
            rows=rows,
            facts=facts,
            code_version=code_version(),
            written_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            lineage=recipe.lineage,
        )
        final = self.path(table, ds)
        self._replace(staging, final)
        self.write_text(f"{final}/{MANIFEST}", json.dumps(asdict(manifest), indent=1, sort_keys=True))
        return manifest

    def _replace(self, staging: str, final: str) -> None:
        """Replace a partition by a staged one. Deletes the old manifest first: a half-replaced partition does not exist."""
        self.delete(f"{final}/{MANIFEST}")
        self.delete(final)
        self.rename(staging, final)
        self.spark.catalog.refreshByPath(final)  # otherwise this session would still read the old files

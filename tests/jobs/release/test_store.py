"""Lineage of releases: which release may be compared with tonight's, and which tables may be used with a release."""

import argparse
import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.common.config import Config
from jobs.common.runner import Context
from jobs.night.training_inputs import _lineage
from jobs.release.store import Current, comparable_release, find_release, require_same_lineage
from jobs.releases import _warn_of_lineages
from pipelines.contract.errors import InputError
from pipelines.storage.lineage import UNKNOWN
from pipelines.storage.manifest import Manifest, Recipe
from pipelines.storage.warehouse import Warehouse

CURRENT = "2024-03-02"


@pytest.mark.parametrize(
    ("ds", "bootstrap_days", "comparable"),
    [
        ("2024-03-04", {"2024-03-03": 0, "2024-03-04": 0}, True),
        ("2024-03-04", {"2024-03-03": 0, "2024-03-04": 30}, False),  # tonight is a bootstrap
        ("2024-03-04", {"2024-03-03": 30, "2024-03-04": 0}, False),  # the night before was a bootstrap, and was refused
        ("2024-03-04", {"2024-03-04": 0}, False),  # a night is missing in between
        ("2024-03-02", {"2024-03-02": 0}, True),  # the current night again: compared with the release before it
        ("2024-03-02", {"2024-03-02": 30}, False),  # the current night again, as a bootstrap
        ("2024-03-01", {"2024-03-01": 0}, False),  # a back-fill of an earlier night
    ],
)
def test_a_release_is_comparable_while_indices_keep_their_meaning(
    spark: SparkSession, tmp_path: Path, ds: str, bootstrap_days: dict[str, int], comparable: bool
) -> None:
    warehouse = Warehouse(spark, str(tmp_path))
    context = Context(Config(), spark, warehouse, argparse.Namespace(), ds)
    assert comparable_release(context) is None, "nothing is published yet"
    for day, days in bootstrap_days.items():
        staging = warehouse.new_staging("samples", day)
        Path(staging.removeprefix("file://")).mkdir()
        warehouse.finish_folder(staging, "samples", day, Recipe("", {}), {"bootstrap_days": days})
    for release, day in (("r", CURRENT), ("before", "2024-03-01")):
        warehouse.write_text(f"{warehouse.root}/releases/{release}/manifest.json", json.dumps({"ds": day}))
    warehouse.write_text(f"{warehouse.root}/releases/r/gates.json", json.dumps({"against": "before"}))
    warehouse.write_text(f"{warehouse.root}/releases/current.json", json.dumps({"release_id": "r", "ds": CURRENT}))
    release = comparable_release(context)
    assert (release is not None) == comparable
    assert release is None or release.release_id == ("before" if ds == CURRENT else "r")


OLD, NEW = "2024-03-01-aaaaaaaa", "2024-03-04-bbbbbbbb"


def write_manifest(context: Context, table: str, ds: str, lineage: str, bootstrap_days: int = 0) -> Manifest:
    """Write a partition without files, and return its manifest."""
    staging = context.warehouse.new_staging(table, ds)
    Path(staging.removeprefix("file://")).mkdir()
    recipe = Recipe("", {"run": lineage}, lineage)
    return context.warehouse.finish_folder(staging, table, ds, recipe, {"bootstrap_days": bootstrap_days})


def publish(context: Context, lineage: str, made_from: Manifest) -> None:
    manifest = {"release_id": "r", "ds": CURRENT, "inputs": {"item_features": made_from.fingerprint}}
    root = context.warehouse.root
    manifest |= {"lineage": lineage} if lineage else {}
    context.warehouse.write_text(f"{root}/releases/r/manifest.json", json.dumps(manifest))
    context.warehouse.write_text(f"{root}/releases/current.json", json.dumps({"release_id": "r", "ds": CURRENT}))


@pytest.mark.parametrize(
    ("of_release", "of_tables", "bootstrap_days", "fits"),
    [
        (OLD, OLD, 0, True),
        (OLD, OLD, 3, True),  # the same bootstrap again gives the same indices
        (OLD, NEW, 4, False),
        (OLD, NEW, 0, False),  # a night after the new bootstrap
        (UNKNOWN, OLD, 0, True),  # a release of an earlier version; the lineage of its tables is known
        (UNKNOWN, UNKNOWN, 0, True),
        (UNKNOWN, NEW, 4, False),
        (OLD, UNKNOWN, 0, True),
    ],
)
def test_tables_of_one_bootstrap_are_refused_with_a_release_of_another(
    spark: SparkSession, tmp_path: Path, of_release: str, of_tables: str, bootstrap_days: int, fits: bool
) -> None:
    context = Context(Config(), spark, Warehouse(spark, str(tmp_path)), argparse.Namespace(), "2024-03-03")
    publish(context, of_release, write_manifest(context, "item_features", CURRENT, of_release))
    for table in ("positives", "samples", "user_histories"):
        write_manifest(context, table, context.ds, of_tables, bootstrap_days)
    assert (comparable_release(context) is not None) == fits
    if fits:
        require_same_lineage(context, find_release(context))
        return
    message = (
        r"names no lineage"
        if of_release == UNKNOWN
        else r"bootstrap of ds=2024-03-01 .*, and table user_histories ds=2024-03-03"
    )
    with pytest.raises(InputError, match=rf"release r .*{message}.*Remedy: finish the night of ds=2024-03-03"):
        require_same_lineage(context, find_release(context))


def test_a_release_without_lineage_is_refused_after_a_new_bootstrap_of_its_night(
    spark: SparkSession, tmp_path: Path
) -> None:
    context = Context(Config(), spark, Warehouse(spark, str(tmp_path)), argparse.Namespace(), CURRENT)
    publish(context, UNKNOWN, write_manifest(context, "item_features", CURRENT, UNKNOWN))
    write_manifest(context, "user_histories", CURRENT, UNKNOWN)
    require_same_lineage(context, find_release(context))
    write_manifest(context, "item_features", CURRENT, NEW)
    with pytest.raises(InputError, match="names no lineage"):
        require_same_lineage(context, find_release(context))


def test_training_refuses_to_continue_from_a_model_of_another_lineage() -> None:
    def manifest(table: str, ds: str, lineage: str) -> Manifest:
        return Manifest(table, ds, "", {}, 0, lineage=lineage)

    made = {table: manifest(table, "2024-03-05", NEW) for table in ("samples", "item_features", "item_stats")}
    for before in (None, manifest("models", "2024-03-04", NEW), manifest("models", "2024-03-04", UNKNOWN)):
        assert _lineage(made, before) == NEW
    with pytest.raises(
        InputError, match=r"samples ds=2024-03-05 .*ds=2024-03-04.*models ds=2024-03-04 .*ds=2024-03-01 .*again"
    ):
        _lineage(made, manifest("models", "2024-03-04", OLD))
    mixed = made | {"item_stats": manifest("item_stats", "2024-03-05", OLD)}
    with pytest.raises(InputError, match=r"table samples ds=2024-03-05 .*, and table item_stats ds=2024-03-05"):
        _lineage(mixed, None)


@pytest.mark.parametrize(("other", "warned"), [(OLD, False), (NEW, True), (UNKNOWN, False)])
def test_a_rollback_to_another_lineage_warns(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str, warned: bool
) -> None:
    """It is allowed, because a release needs no tables; jobs that read tables refuse the release afterwards."""
    context = Context(Config(), spark, Warehouse(spark, str(tmp_path)), argparse.Namespace(), "")
    for name, lineage in (("before", other), ("target", OLD)):
        manifest = {"release_id": name, "ds": CURRENT, "lineage": lineage}
        context.warehouse.write_text(f"{context.warehouse.root}/releases/{name}/manifest.json", json.dumps(manifest))
    with caplog.at_level("WARNING", "nightjar"):
        _warn_of_lineages(context, Current("before", CURRENT), find_release(context, "target"))
    assert ("target goes back to the bootstrap of ds=2024-03-01" in caplog.text) == warned

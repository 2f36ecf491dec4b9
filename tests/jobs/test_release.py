"""Which release tonight's may be compared with."""

import argparse
import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.support.config import Config
from jobs.support.release import comparable_release
from jobs.support.runner import Context
from pipelines.storage import Recipe, Warehouse

CURRENT = "2024-03-02"


@pytest.mark.parametrize(
    ("ds", "bootstrap_days", "comparable"),
    [
        ("2024-03-04", {"2024-03-03": 0, "2024-03-04": 0}, True),
        ("2024-03-04", {"2024-03-03": 0, "2024-03-04": 30}, False),  # Tonight begins anew.
        ("2024-03-04", {"2024-03-03": 30, "2024-03-04": 0}, False),  # So did the night before, and was refused.
        ("2024-03-04", {"2024-03-04": 0}, False),  # A night is missing in between.
        ("2024-03-02", {"2024-03-02": 0}, True),  # The night in use done again: with what that took the place of.
        ("2024-03-02", {"2024-03-02": 30}, False),  # It began anew.
        ("2024-03-01", {"2024-03-01": 0}, False),  # A back-fill of an earlier night.
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
    found = comparable_release(context)
    assert (found is not None) == comparable
    assert found is None or found.release_id == ("before" if ds == CURRENT else "r")

"""Which release ranks the candidates of a night: the newest of an earlier night that may serve."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.common.config import Config
from jobs.common.runner import Context
from jobs.release.mined_candidates import release_before
from jobs.release.release_id import release_id_at
from jobs.release.store import Current, write_current
from jobs.release.verdict import Gate
from pipelines.storage.warehouse import Warehouse
from tests.jobs.release.test_store import NEW, OLD, write_manifest

NIGHTS = ("2024-03-05", "2024-03-06", "2024-03-07")
PASSED, REFUSED = Gate("coverage", 1.0, 0.5, True, ""), Gate("coverage", 0.1, 0.5, True, "")


def write_night(context: Context, ds: str, lineage: str, gates: list[Gate] | None) -> str:
    """State, model and release of a night. `gates`: None: its gates were never checked."""
    for table in ("user_histories", "models", "item_features"):
        write_manifest(context, table, ds, lineage)
    release_id = release_id_at(context.warehouse, ds)
    assert release_id
    folder = f"{context.warehouse.root}/releases/{release_id}"
    manifest = {"release_id": release_id, "ds": ds, "lineage": lineage}
    context.warehouse.write_text(f"{folder}/manifest.json", json.dumps(manifest))
    if gates is not None:
        content = {"against": None, "gates": [asdict(gate) for gate in gates]}
        context.warehouse.write_text(f"{folder}/gates.json", json.dumps(content))
    return release_id


@pytest.mark.parametrize(
    ("second", "lineages", "chosen"),
    [
        ("passed", (NEW, NEW, NEW), 1),
        ("refused", (NEW, NEW, NEW), 0),
        ("not judged", (NEW, NEW, NEW), 0),
        ("rolled back", (NEW, NEW, NEW), 0),
        ("not published", (NEW, NEW, NEW), 0),
        ("passed", (OLD, OLD, NEW), None),  # tonight is a bootstrap
        ("refused", (OLD, NEW, NEW), None),  # the night before was a bootstrap, and was refused
    ],
)
def test_the_newest_release_of_an_earlier_night_ranks_the_candidates(
    spark: SparkSession, tmp_path: Path, second: str, lineages: tuple[str, ...], chosen: int | None
) -> None:
    """The night itself has published already, so that it runs again."""
    context = Context(Config(), spark, Warehouse(spark, str(tmp_path)), argparse.Namespace(), NIGHTS[2])
    gates = {"refused": [REFUSED], "not judged": None}.get(second, [PASSED])
    releases = [
        write_night(context, ds, lineage, gates if ds == NIGHTS[1] else [PASSED])
        for ds, lineage in zip(NIGHTS, lineages)
    ]
    if second == "not published":
        context.warehouse.delete(f"{context.warehouse.root}/releases/{releases[1]}")
    rolled_back = [releases[1]] if second == "rolled back" else []
    write_current(context.warehouse, Current(releases[2], NIGHTS[2], rolled_back))
    release = release_before(context, lineages[2])
    assert (release.release_id if release else None) == (releases[chosen] if chosen is not None else None)


def test_a_lineage_of_an_earlier_version_has_no_release(spark: SparkSession, tmp_path: Path) -> None:
    context = Context(Config(), spark, Warehouse(spark, str(tmp_path)), argparse.Namespace(), NIGHTS[1])
    write_night(context, NIGHTS[0], "", [PASSED])
    assert release_before(context, "") is None

"""Which earlier nights the night of ds evaluates: those that its log gives a first or a final figure."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from pyspark.sql import SparkSession

from jobs.common.config import Config
from jobs.common.runner import Context
from jobs.night.earlier_nights import nights_to_evaluate
from jobs.night.evaluations import evaluated_night
from pipelines.storage.dates import days_back
from pipelines.storage.local_warehouse import LocalWarehouse
from pipelines.storage.manifest import MANIFEST, Manifest

DS = "2024-03-09"


def context(root: Path, **evaluation: Any) -> Context:
    config = Config.model_validate({"evaluation": evaluation})
    return Context(config, cast(SparkSession, None), LocalWarehouse(str(root)), argparse.Namespace(), DS)


def write(root: Path, table: str, ds: str, inputs: dict[str, str] | None = None, **facts: Any) -> Manifest:
    manifest = Manifest(table, ds, "", inputs or {}, 7, facts)
    folder = root / table / f"ds={ds}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    return manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A warehouse with models of eight nights."""
    for ds in days_back(DS, 8):
        write(tmp_path, "models", ds)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "nights"),
    [
        ({}, ["2024-03-08"]),
        ({"days": 7}, ["2024-03-02", "2024-03-08"]),
        ({"days": 30}, ["2024-03-08"]),
        ({"split": "last_positive"}, []),
    ],
)
def test_the_log_of_a_day_gives_a_first_and_a_final_figure(
    root: Path, settings: dict[str, Any], nights: list[str]
) -> None:
    assert nights_to_evaluate(context(root, **settings)) == nights


def test_a_night_that_was_evaluated_on_the_day_is_left_out_unless_it_has_another_release_since(root: Path) -> None:
    embeddings = write(root, "item_embeddings", "2024-03-08", release_id="first")
    made_from = {"item_embeddings": embeddings.fingerprint}
    write(root, "evaluations", "2024-03-08", made_from, days=["2024-03-08"])
    assert nights_to_evaluate(context(root)) == ["2024-03-08"]
    write(root, "evaluations", "2024-03-08", made_from, days=[DS])
    assert nights_to_evaluate(context(root)) == []
    write(root, "item_embeddings", "2024-03-08", {"models": "trained again"}, release_id="second")
    assert nights_to_evaluate(context(root)) == ["2024-03-08"]


def test_after_a_lost_day_only_a_question_that_reaches_ds_is_answered(root: Path) -> None:
    write(root, "models", "2024-03-08", carried_from="2024-03-07")
    assert nights_to_evaluate(context(root)) == []
    assert nights_to_evaluate(context(root, days=2)) == ["2024-03-07"]


def test_the_newest_night_is_described_by_the_release_of_the_night_before(root: Path) -> None:
    assert evaluated_night(context(root)) is None
    for ds, day in (("2024-03-08", DS), (DS, "2024-03-10")):
        embeddings = write(root, "item_embeddings", ds, release_id="any")
        write(root, "evaluations", ds, {"item_embeddings": embeddings.fingerprint}, days=[day])
        shown = evaluated_night(context(root))
        assert shown is not None
        assert shown.ds == ds

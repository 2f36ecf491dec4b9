"""Bad input is refused with table, count, example and remedy, and every table stays unchanged."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.config import Inputs
from pipelines.contract.errors import InputError, NightjarError, UsageError
from pipelines.feature_config import Features
from pipelines.features import encode
from pipelines.features.side import Side
from pipelines.night import Night
from pipelines.positives.build import build_positives
from pipelines.storage.dates import parse_ds
from pipelines.storage.manifest import MANIFEST, Recipe
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.inputs.bad_case import Case
from tests.pipelines.inputs.bad_files import FILES, SETTINGS, STATE
from tests.pipelines.inputs.bad_tables import COLUMNS, DRIFT, ROWS, SNAPSHOTS
from tests.pipelines.inputs.good_inputs import CONFIG, DS, LAST, TIME, interactions, night, put, put_good, samples

CASES = [*ROWS, *COLUMNS, *FILES, *SNAPSHOTS, *DRIFT, *STATE, *SETTINGS]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "bad-inputs.md"
HEAD = """# Bad inputs

This page lists bad inputs and the message that Nightjar prints for each. In all these cases the job writes nothing and every
table stays unchanged.

Nightjar refuses a table if the share of bad rows is above `checks.bad_rows`. Otherwise it moves the bad rows to `quarantine`,
with the reason, and continues. The tables in these cases have only a few rows, so two bad rows are too many.

This page is generated: `{test}` runs each case. To update the page, run `NIGHTJAR_WRITE_DOCS=1 python -m pytest {test}`.

| bad input | exit code | message |
|---|---|---|
"""


@pytest.fixture(scope="module")
def product(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs of five days and the completed night of the fourth. Tests must not change it."""
    root = tmp_path_factory.mktemp("product")
    put_good(root)
    warehouse = Warehouse(spark, str(root))
    night(warehouse, LAST, 4)
    samples(warehouse)
    return root


@pytest.fixture
def copied(spark: SparkSession, product: Path, tmp_path: Path) -> Warehouse:
    """A copy of the product, which a test may change."""
    return Warehouse(spark, str(shutil.copytree(product, tmp_path / "warehouse")))


def root_of(warehouse: Warehouse) -> Path:
    return Path(warehouse.root.removeprefix("file://"))


def written(warehouse: Warehouse) -> dict[str, str]:
    """All manifests with their content, and files that a failed run left in staging."""
    root = root_of(warehouse)
    paths = [*root.rglob(MANIFEST), *(root / "_staging").rglob("*.parquet")]
    return {str(path.relative_to(root)): path.read_text() if path.name == MANIFEST else "" for path in paths}


def refuse(case: Case, warehouse: Warehouse) -> str:
    """Run a case and check its error. Returns the message, with the folder of this test replaced by <warehouse>."""
    case.change(root_of(warehouse))
    before = written(warehouse)
    with pytest.raises(NightjarError) as caught:
        case.run(warehouse)
    message = str(caught.value).replace(f"{root_of(warehouse)}/night.yaml", "night.yaml")
    message = message.replace(warehouse.root, "<warehouse>")
    assert caught.value.exit_code == case.exit_code, message
    assert [part for part in case.expected if part not in message] == [], message
    assert "\n" not in message
    assert written(warehouse) == before
    return message


MESSAGES: dict[str, str] = {}  # title of a case -> its message, for the page


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title.replace(" ", "_"))
def test_a_bad_input_is_refused(copied: Warehouse, case: Case) -> None:
    MESSAGES[case.title] = refuse(case, copied)


def test_the_page_of_bad_inputs_shows_the_messages(spark: SparkSession, product: Path, tmp_path: Path) -> None:
    lines = []
    for number, case in enumerate(CASES):
        if case.title not in MESSAGES:  # if this test runs without the others
            folder = shutil.copytree(product, tmp_path / str(number) / "warehouse")
            MESSAGES[case.title] = refuse(case, Warehouse(spark, str(folder)))
        message = MESSAGES[case.title].replace("`", "'").replace("|", "\\|")
        lines.append(f"| {case.title} | {case.exit_code} | `{message}` |\n")
    page = HEAD.format(test="tests/pipelines/inputs/test_bad_input.py") + "".join(lines)
    if os.environ.get("NIGHTJAR_WRITE_DOCS"):
        PAGE.write_text(page)
    assert len(CASES) == len(MESSAGES) >= 25
    assert page == PAGE.read_text()


@pytest.mark.slow
def test_columns_may_be_renamed_and_a_few_bad_rows_go_to_quarantine(spark: SparkSession, copied: Warehouse) -> None:
    rows = [{"ts" if name == "event_time" else name: value for name, value in row.items()} for row in interactions()]
    rows[0]["user_id"] = None
    put(root_of(copied), "interactions", DS, rows, {"ts": TIME})
    inputs = Inputs.model_validate({"interactions": {"columns": {"event_time": "ts"}}})
    lenient = replace(CONFIG, checks=CONFIG.checks.model_copy(update={"bad_rows": 0.1}))
    opened = Night.open(copied, inputs, DS, 17, 0, lenient.checks, lenient.features)
    manifest, _ = build_positives(opened, lenient, "config")
    assert manifest.rows == 11
    assert manifest.facts["input"]["interactions"]["bad"] == {"user_id is null": 1}
    bad = spark.read.parquet(f"{copied.root}/quarantine").collect()
    assert [(row["table"], row["ds"], row["reason"]) for row in bad] == [("interactions", DS, "user_id is null")]


def test_without_ranking_logs_the_night_continues_and_logs_it(
    copied: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(root_of(copied) / "ranking_logs")
    with caplog.at_level("INFO", logger="nightjar"):
        samples(copied)
    assert "continuing without hard negatives" in caplog.text
    assert copied.require("samples", LAST, "").facts["kinds"]["fine"] == 0


def test_an_empty_output_is_refused_and_the_old_partition_stays(copied: Warehouse) -> None:
    before = written(copied)
    empty = copied.read("positives", LAST).where(F.lit(False))
    with pytest.raises(InputError, match="would be empty"):
        copied.write(empty, "positives", LAST, Recipe("other", {}))
    assert written(copied) == before


def test_a_partition_without_a_manifest_does_not_exist(copied: Warehouse) -> None:
    copied.delete(f"{copied.path('positives', LAST)}/{MANIFEST}")  # as if killed during the move
    with pytest.raises(InputError, match=f"no partition ds={LAST}"):
        copied.read("positives", LAST)


@pytest.mark.slow
def test_the_next_night_does_not_build_on_a_step_that_died(copied: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"user_id": "aaron", "item_id": 19}  # a new user: indices may change their meaning
    put(root_of(copied), "interactions", LAST, [*interactions(LAST), interactions(LAST)[0] | late])

    def dies(*_: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.histories.user_histories.roll_histories", dies)
        with pytest.raises(OSError, match="killed"):
            night(copied, LAST, 4)
    with pytest.raises(InputError, match="no state of the night before"):
        Night.open(copied, Inputs(), DS, 17).state()
    night(copied, LAST, 4)
    assert copied.read("positives", LAST).where("user_id = 'aaron'").count() == 1


@pytest.mark.parametrize("ds", ["2024-3-7", "yesterday", "2024-02-30", "2024-03-07; drop", ""])
def test_a_ds_that_is_not_a_day_is_a_usage_error(ds: str) -> None:
    with pytest.raises(UsageError, match="write it as YYYY-MM-DD"):
        parse_ds(ds)


def test_nan_and_infinite_numbers_count_as_missing(warehouse: Warehouse) -> None:
    side = Side(
        "item",
        Features.model_validate(
            {
                "item": [
                    {"kind": "numeric", "name": "price"},
                    {"kind": "numeric", "name": "size", "boundaries": [1.0, 2.0]},
                ]
            }
        ).item,
    )
    values = [1.0, 3.0, float("nan"), 1e300, None]
    snapshot = warehouse.spark.createDataFrame(
        [(str(n), value, value) for n, value in enumerate(values)], "item_id string, price double, size double"
    )
    statistics = encode.statistics_of(side, snapshot, {})
    assert statistics == {"item.price": {"mean": 2.0, "std": 1.0}}
    before = {"item.price": {"mean": float("inf"), "std": float("nan")}}  # as an earlier version wrote them
    assert encode.statistics_of(side, snapshot, before) == statistics
    vocabulary = warehouse.spark.createDataFrame([], "feature string, value string, index int")
    rows = encode.encode(side, snapshot, vocabulary, statistics, ["item_id"]).orderBy("item_id").collect()
    assert [row["item_price"] for row in rows] == [1.0, 3.0, 2.0, 2.0, 2.0]
    assert [row["item_size"] for row in rows] == [3, 4, 1, 1, 1]

"""Drift: a night is refused if its inputs differ too much from earlier nights, as recorded in their manifests."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from pipelines.config import Checks, Inputs
from pipelines.contract.errors import InputError
from pipelines.drift import compare_with_before, refuse_repeats
from pipelines.night import Night
from pipelines.storage.dates import days_back
from pipelines.storage.manifest import Manifest
from pipelines.storage.warehouse import Warehouse
from tests.pipelines.inputs.good_inputs import DS, LAST


def write_manifest(warehouse: Warehouse, table: str, ds: str, facts: dict[str, Any]) -> None:
    """Write the manifest of a night with these input facts."""
    manifest = Manifest(table, ds, "config", {}, 1, {"input": facts})
    warehouse.write_text(f"{warehouse.path(table, ds)}/_manifest.json", json.dumps(asdict(manifest)))


def counts(rows: dict[str, int], **null_share: float) -> dict[str, Any]:
    """The facts of a table, as InputTables.facts reports them."""
    return {"by_day": rows, "null_share": null_share}


@pytest.fixture
def night(warehouse: Warehouse) -> Night:
    """A night after four nights with 100, 80, 120 and 100 interactions."""
    for ds, rows in zip(days_back(LAST, 4), (100, 80, 120, 100)):
        write_manifest(warehouse, "positives", ds, {"interactions": counts({ds: rows}, reward=0.1)})
        write_manifest(warehouse, "samples", ds, {"ranking_logs": counts({ds: 1000})})
    return Night.open(warehouse, Inputs(), DS, 17)


@pytest.mark.parametrize(
    ("rows", "share", "checks", "message"),
    [
        (20, 0.1, {}, None),
        (19, 0.1, {}, "19 rows on ds=2024-03-05, less than 0.2 times the median of the last 4 days (100)"),
        (19, 0.1, {"rows_low": None}, None),
        (500, 0.1, {}, None),
        (501, 0.1, {}, "501 rows on ds=2024-03-05, more than 5 times"),
        (501, 0.1, {"rows_high": None}, None),
        (100, 0.4, {}, None),
        (100, 0.41, {}, "column reward: 41.0% of the values of ds=2024-03-05 are null, 10.0% in the night of"),
        (100, 0.41, {"null_rise": None}, None),
        (100, 0.0, {"null_rise": 0.0}, None),
    ],
)
def test_rows_and_nulls_must_be_in_the_range_of_the_last_nights(
    night: Night, rows: int, share: float, checks: dict[str, Any], message: str | None
) -> None:
    facts = {"interactions": counts({DS: rows}, reward=share)}
    if message is None:
        compare_with_before(night, "positives", facts, Checks(**checks))
        return
    with pytest.raises(InputError) as caught:
        compare_with_before(night, "positives", facts, Checks(**checks))
    assert message in str(caught.value)
    assert "checks." in str(caught.value)


def test_a_table_without_rows_is_refused_if_earlier_nights_had_rows(night: Night) -> None:
    with pytest.raises(InputError, match=r"table ranking_logs: 0 rows on ds=2024-03-05, less than 0.2 times"):
        compare_with_before(night, "samples", {}, Checks())


def test_with_too_few_earlier_nights_nothing_is_refused(warehouse: Warehouse) -> None:
    for ds in days_back(LAST, 2):
        write_manifest(warehouse, "positives", ds, {"interactions": counts({ds: 100})})
    opened = Night.open(warehouse, Inputs(), DS, 17)
    compare_with_before(opened, "positives", {"interactions": counts({DS: 1})}, Checks())


def test_the_days_of_a_bootstrap_count_but_only_the_last_seven(warehouse: Warehouse) -> None:
    days = days_back(LAST, 20)
    write_manifest(
        warehouse, "positives", LAST, {"interactions": counts({ds: 10 if ds in days[-7:] else 1000 for ds in days})}
    )
    opened = Night.open(warehouse, Inputs(), DS, 17)
    compare_with_before(opened, "positives", {"interactions": counts({DS: 10})}, Checks())
    with pytest.raises(InputError, match=r"median of the last 7 days \(10\)"):
        compare_with_before(opened, "positives", {"interactions": counts({DS: 100})}, Checks())


def test_a_feed_delivered_twice_is_refused() -> None:
    refuse_repeats(0, 0, Checks())
    refuse_repeats(20, 100, Checks())
    with pytest.raises(InputError, match=r"21 of 100 rows repeat another one exactly .* checks.duplicates = 0.2"):
        refuse_repeats(21, 100, Checks())

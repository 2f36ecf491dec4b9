"""What a night records for its page: no secrets, the time of the run that did the work, and errors as text."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.common.stopping import Stopped
from jobs.morning.record import HIDDEN, NightRecord, changes, failure_of, flat, read_record, record_before, write_record
from pipelines.contract.errors import InputError
from tests.jobs.morning.nights import DS, context


def test_secrets_are_hidden_and_user_names_in_uris_are_left_out() -> None:
    config = flat(
        {
            "tracking": {"uri": "postgresql://me:word@host/mlflow"},
            "spark": {"spark.hadoop.fs.s3a.secret.key": "x", "spark.hadoop.fs.azure.account.key.name": "y"},
            "model": {"hidden": [64, 32], "dim": 16, "name": "größer"},
        }
    )
    assert config == {
        "tracking.uri": "postgresql://host/mlflow",
        "spark.spark.hadoop.fs.s3a.secret.key": HIDDEN,
        "spark.spark.hadoop.fs.azure.account.key.name": HIDDEN,
        "model.hidden": "[64, 32]",
        "model.dim": "16",
        "model.name": "größer",
    }


def test_a_run_that_skips_its_steps_keeps_the_times_and_the_bootstrap(tmp_path: Path) -> None:
    write_record(replace(context(tmp_path), bootstrap_days=4), {"train": 12.34, "evaluate": 3.0}, None)
    write_record(context(tmp_path), {"train": 0.1, "evaluate": 5.0}, None)
    record = read_record(context(tmp_path).warehouse, DS)
    assert record is not None
    assert (record.seconds, record.bootstrap_days) == ({"train": 12.3, "evaluate": 5.0}, 4)
    assert record.config["evaluation.days"] == "1"


def test_the_last_record_within_two_weeks_is_compared(tmp_path: Path) -> None:
    warehouse = context(tmp_path).warehouse
    for ds in ("2024-02-23", "2024-03-05"):
        assert record_before(warehouse, DS) is None
        write_record(context(tmp_path, ds, model={"dim": 8}), {}, None)
    write_record(context(tmp_path), {}, None)
    before, now = record_before(warehouse, DS), read_record(warehouse, DS)
    assert before is not None
    assert now is not None
    assert before.ds == "2024-03-05"
    assert changes(before, now) == [("model.dim", "8", now.config["model.dim"])]


def test_settings_that_only_one_night_has_are_changes() -> None:
    before, now = (NightRecord(DS, version, {name: "1"}) for version, name in (("0.1", "old"), ("0.2", "new")))
    assert changes(before, now) == [("code version", "0.1", "0.2"), ("new", "", "1"), ("old", "1", "")]


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    write_record(context(tmp_path), {}, None)
    (tmp_path / "reports" / f"ds={DS}" / "night.json").write_text("{")
    assert read_record(context(tmp_path).warehouse, DS) is None


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("table items:\n  3 rows are bad"), 3, "table items: 3 rows are bad"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
        (OSError(28, "No space left on device"), 1, "nothing more can be written (No space left on device)"),
        (Stopped(15), 143, "the job was stopped. Tables and releases are whole"),
        (KeyboardInterrupt(), 130, "the job was stopped. Tables and releases are whole"),
    ],
)
def test_an_error_is_recorded_as_one_line(tmp_path: Path, error: BaseException, code: int, text: str) -> None:
    failure = failure_of("train", error, f"file://{tmp_path}")
    assert (failure.step, failure.exit_code) == ("train", code)
    assert failure.error.startswith(text)
    assert "\n" not in failure.error

"""Missing and damaged files: one error that names file and remedy; `current` stays; the same command then succeeds."""

from collections.abc import Iterator

import pytest

from tests.jobs.faults import damaged, fails, first_half, largest_file, succeeds
from tests.jobs.nightly_run import FIRST, SECOND, NightlyRun

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _current_stays(first_night_copy: NightlyRun) -> Iterator[None]:
    before = first_night_copy.current()
    yield
    assert first_night_copy.current() == before


def test_a_missing_input_partition_is_named(first_night_copy: NightlyRun) -> None:
    day = first_night_copy.warehouse / "interactions" / f"ds={SECOND}"
    aside = day.rename(first_night_copy.folder / "aside")
    message = fails("build_positives", first_night_copy, code=3)
    assert f"has no partition for ds={SECOND}" in message
    aside.rename(day)
    assert "build_positives" in succeeds("build_positives", first_night_copy)


def test_a_truncated_input_file_is_named(first_night_copy: NightlyRun) -> None:
    succeeds("build_positives", first_night_copy)
    file = largest_file(first_night_copy, "interactions", SECOND)
    with damaged(file, first_half):
        message = fails("build_positives", first_night_copy, code=3)
        assert f"table interactions: the file file://{file} cannot be read" in message
    assert "already done" in succeeds("build_positives", first_night_copy)


def test_a_truncated_table_of_the_night_before_is_named_with_the_remedy(first_night_copy: NightlyRun) -> None:
    file = largest_file(first_night_copy, "user_histories", FIRST)
    with damaged(file, first_half):
        message = fails("build_positives", first_night_copy, "--force", code=3)
        assert f"table user_histories: the file file://{file} cannot be read" in message
        assert f"delete the folder file://{file.parent} and run the night of ds={FIRST} again" in message
    succeeds("build_positives", first_night_copy, "--force")


@pytest.mark.parametrize("table", ["samples", "item_features"])
def test_a_truncated_table_of_tonight_is_named_with_the_remedy(sampled: NightlyRun, table: str) -> None:
    file = largest_file(sampled, table, SECOND)
    with damaged(file, first_half):
        message = fails("train", sampled, "--force", code=3)
        assert f"table {table}: the file file://{file} cannot be read" in message
        folder = sampled.warehouse / table / f"ds={SECOND}"
        assert f"delete the folder file://{folder} and run the night of ds={SECOND} again" in message
    succeeds("train", sampled, "--force")


@pytest.mark.parametrize("name", ["model.safetensors", "item_item.safetensors"])
def test_a_damaged_checkpoint_of_the_night_before_is_named(sampled: NightlyRun, name: str) -> None:
    file = sampled.warehouse / "models" / f"ds={FIRST}" / name
    with damaged(file, lambda content: content[:-1] + bytes([content[-1] ^ 1])):
        message = fails("train", sampled, "--force", code=3)
        assert f"table models ds={FIRST}: file://{file} is not what was written" in message
    succeeds("train", sampled, "--force")

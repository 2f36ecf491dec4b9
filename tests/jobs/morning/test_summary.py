"""A night ends with a short table, one sentence and the link to its page."""

import re
from pathlib import Path

from jobs.morning.summary import summary
from tests.jobs.morning.nights import (
    DS,
    PASSES,
    REFUSES,
    context,
    release_at,
    write,
    write_nights,
    write_release,
)  # fmt: skip

BEFORE = "2024-03-08"


def written(root: Path, *nights: str) -> list[str]:
    for ds in nights:
        (root / "reports" / f"ds={ds}" / "report.html").touch()
    return summary(context(root), dict(zip(nights, (200.0, 42.4)))).splitlines()


def test_the_table_has_one_line_a_night_and_the_sentence_is_of_the_last(tmp_path: Path) -> None:
    root = tmp_path / "my warehouse"
    write_nights(root)
    lines = written(root, BEFORE, DS)
    assert re.split(r"  +", lines[1]) == [
        "night", "samples", "loss", "Recall@50", "best baseline", "gates", "release", "time",
    ]  # fmt: skip
    assert re.split(r"  +", lines[2]) == [
        BEFORE, "1,020", "5.8000", "0.4200", "item-CF 0.3300", "1 of 1", release_at(root, BEFORE), "3 min",
    ]  # fmt: skip
    assert re.split(r"  +", lines[3]) == [
        DS, "480", "5.7000", "0.4200*", "item-CF 0.3300*", "1 of 1", release_at(root, DS), "42 s",
    ]  # fmt: skip
    assert lines[4] == "* of the release of the night before, on this day"
    assert lines[6].startswith(f"Published. Release {release_at(root, DS)}: Recall@50")
    assert lines[6].endswith("1 of 1 gates passed.")
    assert lines[8] == "Look closer:"
    assert lines[9].startswith("  start the MLflow UI: ")
    assert lines[11] == f"  or, without MLflow: file://{tmp_path}/my%20warehouse/reports/nights.html"
    assert f"ds={DS}/report.html" in (root / "reports" / "nights.html").read_text()


def test_a_night_has_the_link_of_its_page_and_a_refused_one_says_why(tmp_path: Path) -> None:
    write_nights(tmp_path)
    write_release(tmp_path, DS, (PASSES, REFUSES))
    write_release(tmp_path, BEFORE, (PASSES,))
    lines = written(tmp_path, DS)
    assert "1 of 2" in lines[2]
    assert lines[5].startswith(
        f"Refused. Release {release_at(tmp_path, DS)} is not published: gate recall_loss refused"
    )
    assert lines[-1] == f"  or, without MLflow: file://{tmp_path}/reports/ds={DS}/report.html"


def test_a_night_without_data_and_without_a_page(tmp_path: Path) -> None:
    write_nights(tmp_path)
    write(tmp_path, "models", DS, loss=1.0, carried_from=BEFORE)
    lines = summary(context(tmp_path), {DS: 1.0}).splitlines()
    assert lines[2].startswith(f"{DS}  as {BEFORE}")
    assert lines[4].startswith("No data. There was no log of this day")
    assert "without MLflow" not in lines[-1]

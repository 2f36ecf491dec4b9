"""A night with packed rows and order ahead, trained by two processes, and an update within the next day."""

import json

import pytest

from tests.jobs.nightly_run import BOOTSTRAP, FIRST, SECOND, NightlyRun, rows_of

pytestmark = pytest.mark.slow

PACK, LENGTH = 4, 10
SETTINGS = {
    "samples.pack": PACK,
    "features.history": {"length": LENGTH, "order": "ahead", "ages": True, "actions": True},
    "positives.ahead_days": 2,
    "model": {
        "tower": "sequence",
        "dim": 16,
        "hidden": [],
        "embedding_dim": 8,
        "settings": {"width": 8, "time": "gaps", "actions": True},
    },
    "loss.self_supervision": None,
    "training.processes": 2,
    "training.bootstrap_epochs": 2,
}
FLAGS = [flag for key, value in SETTINGS.items() for flag in ("--set", f"{key}={json.dumps(value)}")]


def test_a_night_trains_on_every_positive_and_an_update_continues_from_it_on_plain_rows(
    first_night: NightlyRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packed = first_night.copy(tmp_path_factory.mktemp("packed"))
    packed.run("nightly", "--ds", FIRST, *BOOTSTRAP, *FLAGS)
    facts = packed.manifest("samples", FIRST)["facts"]
    train = facts["splits"]["train"]
    assert facts["pack"] == PACK
    assert train["rows"] < train["positives"]
    assert packed.manifest("models", FIRST)["facts"]["rows"] == 2 * train["positives"]
    assert sum(facts["kinds"].values()) == 5 * sum(split["positives"] for split in facts["splits"].values())

    evaluated = packed.manifest("evaluations", FIRST)["facts"]
    looks = [evaluated[name] for name in ("evaluated_days", "history", "ahead_days")]
    assert looks == [1, "ahead", 2]

    packed.run("incremental", "--ds", SECOND, "--until", f"{SECOND}T12:00", *FLAGS)
    rows = rows_of(packed.warehouse / "updates" / f"ds={SECOND}" / "001" / "samples" / f"ds={SECOND}")
    assert rows
    assert all(isinstance(row["row_key"], int) and len(row["history_ages"]) == LENGTH for row in rows)
    assert all([item > 0 for item in row["history"]] == [act > 0 for act in row["history_actions"]] for row in rows)
    assert {action for row in rows for action in row["history_actions"]} == {0, 2}, "known actions of night and update"

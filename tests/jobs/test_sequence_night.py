"""Two nights of the sequence tower on packed rows with order ahead, ages and actions, trained by two processes, and an update.

Batch jobs and requests get the same answers.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pyarrow.dataset as pads
import pytest

from model.serving.retriever import Retriever
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, SECOND, NightlyRun, rows_of

THIRD = "2024-03-06"
K, PACK, LENGTH = 8, 4, 10
LIKES = ("--set", "positives.actions={click: 1.0, like: 2.0}")  # The second night has one action more.
CHANGES = {
    "tower: senet": "tower: sequence, settings: {width: 16, time: gaps, actions: true}",
    f"history: {{length: {LENGTH}}}": f"history: {{length: {LENGTH}, order: ahead, ages: true, actions: true}}",
    "positives: {": "positives: {ahead_days: 2, ",
    "samples: {": f"samples: {{pack: {PACK}, ",
    "training: {": "training: {processes: 2, ",
}


@pytest.mark.slow
def test_nights_and_updates_of_the_sequence_tower_train_on_every_positive_and_serve(tmp_path: Path) -> None:
    run = _nights(tmp_path)
    _check_training(run)
    _check_answers(run, tmp_path)
    _check_update(run)


def _nights(tmp_path: Path) -> NightlyRun:
    run = NightlyRun.simulate(tmp_path / "night")
    config = Path(run.config)
    text = config.read_text()
    for before, after in CHANGES.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    config.write_text(text)
    run.run("nightly", "--ds", FIRST, *BOOTSTRAP)
    first = run.current()
    run.run("nightly", "--ds", SECOND, *LIKES)
    assert run.current() != first, "the second night continues from the first one and passes the gates"
    return run


def _check_training(run: NightlyRun) -> None:
    """Every positive of a packed row is trained on, and has its negatives."""
    for ds, epochs in ((FIRST, 4), (SECOND, 1)):
        facts = run.manifest("samples", ds)["facts"]
        train = facts["splits"]["train"]
        assert facts["pack"] == PACK
        assert train["rows"] < train["positives"]
        assert run.manifest("models", ds)["facts"]["rows"] == epochs * train["positives"]
        assert sum(facts["kinds"].values()) == 5 * sum(split["positives"] for split in facts["splits"].values())
    evaluated = run.manifest("evaluations", FIRST)["facts"]
    assert [evaluated[name] for name in ("evaluated_days", "history", "ahead_days")] == [1, "ahead", 2]


def _check_answers(run: NightlyRun, tmp_path: Path) -> None:
    actions = {
        ds: {row["value"]: row["index"] for row in run.rows("vocabularies", ds) if row["feature"] == "action"}
        for ds in (FIRST, SECOND)
    }
    assert actions == {FIRST: {"click": 2}, SECOND: {"click": 2, "like": 3}}
    name_of = {index: name for name, index in actions[SECOND].items()}

    item = {r["index"]: int(r["value"]) for r in run.rows("vocabularies", SECOND) if r["feature"] == "item_id"}
    states = sorted(run.rows("user_histories", SECOND), key=lambda row: len(row["history_items"]))
    with_like = next(state for state in reversed(states) if actions[SECOND]["like"] in state["history_actions"])
    chosen = [states[0], states[len(states) // 2], with_like]
    (tmp_path / "users.txt").write_text("\n".join(str(state["user_id"]) for state in chosen))
    flags = ["--ds", SECOND, "--k", str(K), "--output", str(tmp_path / "top"), *LIKES]
    run.run("recommend", *flags, "--users", str(tmp_path / "users.txt"))
    rows = sorted(pads.dataset(str(tmp_path / "top")).to_table().to_pylist(), key=lambda row: row["rank"])
    snapshot = max(path.name[3:] for path in (run.warehouse / "users").iterdir() if path.name[3:] <= SECOND)
    features = {row["user_id"]: row for row in run.rows("users", snapshot)}
    end = datetime.fromisoformat(SECOND).replace(tzinfo=UTC) + timedelta(days=1)
    retriever, requests = Retriever(str(run.release)), []
    for state in chosen:
        user = int(state["user_id"])
        request = {name: features[user][name] for name in ("user_id", "age", "interests")}
        request["history"] = [item[index] for index in state["history_items"]]
        request["history_ages"] = [(end - time).total_seconds() for time in state["history_times"]]
        request["history_actions"] = [name_of[action] for action in state["history_actions"]]
        (answer,) = retriever.retrieve([request], K)
        batch = [row for row in rows if row["user_id"] == user]
        assert answer.item_ids == [row["item_id"] for row in batch]
        assert answer.scores == pytest.approx([row["score"] for row in batch], abs=1e-6)
        for name in ("history_ages", "history_actions"):
            assert retriever.retrieve([request | {name: None}], K)[0].scores != answer.scores
        requests.append(request)
    mlflow.set_tracking_uri(run.tracking_uri)
    served = mlflow.pyfunc.load_model("models:/nightjar@champion").predict(requests, {"k": K})
    for own, other in zip(retriever.retrieve(requests, K), served, strict=True):
        assert other["scores"] == pytest.approx(own.scores, abs=1e-6)


def _check_update(run: NightlyRun) -> None:
    """An update continues from packed nights on plain rows."""
    run.run("incremental", "--ds", THIRD, "--until", f"{THIRD}T12:00", *LIKES)
    rows = rows_of(run.warehouse / "updates" / f"ds={THIRD}" / "001" / "samples" / f"ds={THIRD}")
    assert rows
    assert all(isinstance(row["row_key"], int) and len(row["history_ages"]) == LENGTH for row in rows)
    assert all([item > 0 for item in row["history"]] == [act > 0 for act in row["history_actions"]] for row in rows)
    assert {action for row in rows for action in row["history_actions"]} == {0, 2, 3}

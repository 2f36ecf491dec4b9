"""Two nights of the sequence tower on packed samples with ages and actions: batch jobs and requests get the same answers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pyarrow.dataset as pads
import pytest

from model.serving.retriever import Retriever
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, SECOND, NightlyRun

K = 8
LIKES = ("--set", "positives.actions={click: 1.0, like: 2.0}")  # The second night has one action more.
CHANGES = {
    "tower: senet": "tower: sequence, settings: {width: 16, time: gaps, actions: true}",
    "history: {length: 10}": "history: {length: 10, ages: true, actions: true}",
    "samples: {": "samples: {pack: 4, ",
}


@pytest.mark.slow
def test_two_nights_of_the_sequence_tower_are_published_and_serve(tmp_path: Path) -> None:
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
    assert run.manifest("samples", SECOND)["facts"]["pack"] == 4
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

"""A release behind MLflow's own server: the answers of the batch job, over HTTP."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from model.serving.request_encoder import example_request
from model.serving.retriever import Retriever
from pipelines.contract.request_fields import Fields
from tests.jobs.nightly_run import SECOND, NightlyRun, run_job

K = 20


class Server:
    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, body: dict[str, Any]) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"{self.url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def server(nightly_run: NightlyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", "models:/nightjar@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": nightly_run.tracking_uri}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, cwd=log.parent, start_new_session=True
        )
    try:
        for _ in range(240):
            time.sleep(0.5)
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                continue
        else:
            pytest.fail(log.read_text()[-4000:])
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def requests_of(nightly_run: NightlyRun, users: list[int]) -> list[dict[str, Any]]:
    """What a product would send of these users at the end of the day."""
    item = {r["index"]: int(r["value"]) for r in nightly_run.rows("vocabularies", SECOND) if r["feature"] == "item_id"}
    states = {int(row["user_id"]): row for row in nightly_run.rows("user_histories", SECOND)}
    snapshot = max(path.name[3:] for path in (nightly_run.warehouse / "users").iterdir() if path.name[3:] <= SECOND)
    features = {row["user_id"]: row for row in nightly_run.rows("users", snapshot)}
    asked = []
    for user in users:
        last, known = states[user]["history_items"], states[user]["known_items"]
        before = [index for index in known if index not in last]
        assert len(last) == 10 or not before, "what the model reads is the end of what the user had"
        history = [item[index] for index in (*before, *last)]
        asked.append(
            {
                "user_id": user,
                "age": features[user]["age"],
                "interests": features[user]["interests"],
                "history": history,
            }
        )
    return asked


def test_http_gives_what_the_batch_job_gives(nightly_run: NightlyRun, server: Server, tmp_path: Path) -> None:
    states = sorted(nightly_run.rows("user_histories", SECOND), key=lambda row: len(row["known_items"]))
    users = [int(states[place]["user_id"]) for place in (0, len(states) // 2, -2, -1)]
    (tmp_path / "users.txt").write_text("\n".join(map(str, users)))
    flags = [
        "--config",
        nightly_run.config,
        "--ds",
        SECOND,
        "--k",
        str(K),
        "--exclude-seen",
        "--output",
        str(tmp_path / "top"),
    ]
    run_job("recommend", *flags, "--users", str(tmp_path / "users.txt"))
    rows = sorted(pads.dataset(str(tmp_path / "top")).to_table().to_pylist(), key=lambda row: row["rank"])
    asked = requests_of(nightly_run, users)
    status, answer = server.ask({"inputs": asked, "params": {"k": K, "exclude_seen": True}})
    assert status == 200
    for user, found in zip(users, answer["predictions"], strict=True):
        batch = [row for row in rows if row["user_id"] == user]
        assert len(batch) == K
        assert found["item_ids"] == [row["item_id"] for row in batch]
        assert found["scores"] == pytest.approx([row["score"] for row in batch], abs=1e-6)
    local = Retriever(str(nightly_run.release)).retrieve(asked, K, exclude_seen=True)
    assert [one.item_ids for one in local] == [found["item_ids"] for found in answer["predictions"]]


def test_an_answer_says_its_k_and_its_release(nightly_run: NightlyRun, server: Server) -> None:
    """MLflow drops parameters that the model does not have, with a warning in its own log alone."""
    for params, k in (({"k": 7}, 7), ({"top_k": 7}, 100)):
        status, answer = server.ask({"inputs": [{}], "params": params})
        (found,) = answer["predictions"]
        assert (status, found["k"], found["release_id"]) == (200, k, nightly_run.current())
        assert len(found["item_ids"]) == k


def test_a_request_may_say_less(server: Server) -> None:
    asked = [{"user_id": 1, "age": "18-24", "history": [3, 4]}, {"user_id": None, "history": [5]}, {}]
    status, answer = server.ask({"inputs": asked, "params": {"k": 5}})
    assert status == 200
    assert [len(one["item_ids"]) for one in answer["predictions"]] == [5, 5, 5]
    alone = server.ask({"inputs": [{}], "params": {"k": 5}})[1]["predictions"][0]
    assert alone["item_ids"] == answer["predictions"][2]["item_ids"]
    assert len(server.ask({"inputs": [{}]})[1]["predictions"][0]["item_ids"]) == 100


@pytest.mark.parametrize(
    ("asked", "params", "said"),
    [
        ({"user_id": "x"}, {}, "request 0, field 'user_id' is of type str, expected a whole number"),
        ({"interests": "sport"}, {}, "request 0, field 'interests' is of type str, expected a list"),
        ({"user": 1}, {}, "request 0: there is no field 'user'; did you mean 'user_id'?"),
        ({"user_id": 1}, {"k": 0}, "k is 0, expected a whole number of at least 1"),
    ],
)
def test_a_wrong_request_is_answered_by_what_is_wrong(
    server: Server, asked: dict[str, Any], params: dict[str, Any], said: str
) -> None:
    status, answer = server.ask({"inputs": [asked], "params": params})
    assert status == 400
    assert said in answer["message"]


def test_the_example_of_a_release_is_a_request_that_it_answers(nightly_run: NightlyRun) -> None:
    retriever = Retriever(str(nightly_run.release))
    example = example_request(Fields.validate_python(retriever.release.manifest["request"]))
    assert example.keys() == {"user_id", "age", "interests", "history"}
    known, nobody = retriever.retrieve([example, {}], 5)
    assert known.item_ids != nobody.item_ids

"""A release served by `mlflow models serve` over HTTP gives the answers of the batch job."""

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
from pipelines.contract.request_fields import RequestFields
from tests.jobs.nightly_run import SECOND, NightlyRun, run_job

pytestmark = pytest.mark.slow

K = 20


class Server:
    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, body: dict[str, Any]) -> tuple[int, Any]:
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


def requests_of(nightly_run: NightlyRun, users: list[int], ds: str = SECOND) -> list[dict[str, Any]]:
    """Requests of these users with their features and histories at the end of the day."""
    item = {r["index"]: int(r["value"]) for r in nightly_run.rows("vocabularies", ds) if r["feature"] == "item_id"}
    states = {int(row["user_id"]): row for row in nightly_run.rows("user_histories", ds)}
    snapshot = max(path.name[3:] for path in (nightly_run.warehouse / "users").iterdir() if path.name[3:] <= ds)
    features = {row["user_id"]: row for row in nightly_run.rows("users", snapshot)}
    requests = []
    for user in users:
        last, seen = states[user]["history_items"], states[user]["known_items"]
        before = [index for index in seen if index not in last]
        assert len(last) == 10 or not before, "the history of the model is the end of the known items"
        history = [item[index] for index in (*before, *last)]
        requests.append(
            {
                "user_id": user,
                "age": features[user]["age"],
                "interests": features[user]["interests"],
                "history": history,
            }
        )
    return requests


def test_http_answers_equal_those_of_the_batch_job(nightly_run: NightlyRun, server: Server, tmp_path: Path) -> None:
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
    requests = requests_of(nightly_run, users)
    status, answer = server.post({"inputs": requests, "params": {"k": K, "exclude_seen": True}})
    assert status == 200
    for user, prediction in zip(users, answer["predictions"], strict=True):
        batch = [row for row in rows if row["user_id"] == user]
        assert len(batch) == K
        assert prediction["item_ids"] == [row["item_id"] for row in batch]
        assert prediction["scores"] == pytest.approx([row["score"] for row in batch], abs=1e-6)
    local = Retriever(str(nightly_run.release)).retrieve(requests, K, exclude_seen=True)
    assert [one.item_ids for one in local] == [prediction["item_ids"] for prediction in answer["predictions"]]


def test_an_answer_names_its_k_and_its_release(nightly_run: NightlyRun, server: Server) -> None:
    """MLflow drops parameters that the model does not have; the only trace is a warning in the log of the server."""
    for params, k in (({"k": 7}, 7), ({"top_k": 7}, 100)):
        status, answer = server.post({"inputs": [{}], "params": params})
        (prediction,) = answer["predictions"]
        assert (status, prediction["k"], prediction["release_id"]) == (200, k, nightly_run.current())
        assert len(prediction["item_ids"]) == k


def test_fields_of_a_request_may_be_missing(server: Server) -> None:
    requests = [{"user_id": 1, "age": "18-24", "history": [3, 4]}, {"user_id": None, "history": [5]}, {}]
    status, answer = server.post({"inputs": requests, "params": {"k": 5}})
    assert status == 200
    assert [len(one["item_ids"]) for one in answer["predictions"]] == [5, 5, 5]
    empty = server.post({"inputs": [{}], "params": {"k": 5}})[1]["predictions"][0]
    assert empty["item_ids"] == answer["predictions"][2]["item_ids"]
    assert len(server.post({"inputs": [{}]})[1]["predictions"][0]["item_ids"]) == 100


@pytest.mark.parametrize(
    ("request_body", "params", "message"),
    [
        ({"user_id": "x"}, {}, "request 0, field 'user_id' is of type str, expected a whole number"),
        ({"interests": "sport"}, {}, "request 0, field 'interests' is of type str, expected a list"),
        ({"user": 1}, {}, "request 0: unknown field 'user'; did you mean 'user_id'?"),
        ({"user_id": 1}, {"k": 0}, "k is 0, expected a whole number of at least 1"),
    ],
)
def test_a_wrong_request_is_answered_with_the_error(
    server: Server, request_body: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    status, answer = server.post({"inputs": [request_body], "params": params})
    assert status == 400
    assert message in answer["message"]


def test_the_example_request_of_a_release_is_valid(nightly_run: NightlyRun) -> None:
    retriever = Retriever(str(nightly_run.release))
    example = example_request(RequestFields.validate_python(retriever.release.manifest["request"]))
    assert example.keys() == {"user_id", "age", "interests", "history"}
    of_example, of_unknown = retriever.retrieve([example, {}], 5)
    assert of_example.item_ids != of_unknown.item_ids

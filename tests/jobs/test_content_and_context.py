"""A model with vectors on both sides and features of the request: the same numbers in tables, batch job and servers."""

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.dataset as pads
import pytest
import yaml

from model.serving.embed import embed_users
from model.serving.request_encoder import example_request
from model.serving.retriever import Retriever
from pipelines.storage.warehouse import Warehouse
from tests.jobs.nightly_run import SPARK, run_job
from tests.two_nights import CONFIG, FIRST, SECOND, context_of, item_of_index, logs, rows_of, taste_of

pytestmark = pytest.mark.slow

K = 10
WITHOUT_TIME = {"hour": None, "weekday": None}  # null: the defaults, as in the batch job


class Published:
    """The first of the two small nights, trained and published."""

    def __init__(self, nights: Warehouse, folder: Path) -> None:
        self.nights, self.warehouse = nights, folder / "warehouse"
        shutil.copytree(nights.root.removeprefix("file://"), self.warehouse)
        self.config = folder / "night.yaml"
        sections = {
            "warehouse": str(self.warehouse),
            "features": CONFIG.features.model_dump(mode="json"),
            "model": {"dim": 8, "hidden": [8], "embedding_dim": 8, "small_embedding_dim": 4},
            "training": {"batch_size": 32},
            "spark": SPARK,
        }
        self.config.write_text(yaml.safe_dump(json.loads(json.dumps(sections))))
        for job in ("train", "publish_items"):
            self.run(job)
        release = json.loads((self.warehouse / "releases" / "current.json").read_text())["release_id"]
        self.retriever = Retriever(str(self.warehouse / "releases" / release))

    def run(self, job: str, *flags: str) -> None:
        run_job(job, "--config", str(self.config), "--ds", FIRST, *flags)

    def requests(self) -> dict[str, dict[str, Any]]:
        """A request of each user, with features and history at the end of the day, but without context."""
        items = item_of_index(self.nights, FIRST)
        requests = {}
        for row in rows_of(self.nights, "user_histories", FIRST):
            number = int(row["user_id"][1:])
            known = {"age": "changed", "income": float(number), "taste": taste_of(number)} if number < 20 else {}
            history = [int(items[index]) for index in row["known_items"]]  # the order is leave_one_out
            requests[row["user_id"]] = {"user_id": row["user_id"], "history": history, **known, **WITHOUT_TIME}
        return requests


@pytest.fixture(scope="module")
def published(nights: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(nights, tmp_path_factory.mktemp("content"))


def test_requests_without_context_get_the_answers_of_the_batch_job(published: Published, tmp_path: Path) -> None:
    published.run("recommend", "--k", str(K), "--output", str(tmp_path / "top"))
    rows = sorted(pads.dataset(str(tmp_path / "top")).to_table().to_pylist(), key=lambda row: row["rank"])
    requests = published.requests()
    answers = published.retriever.retrieve(list(requests.values()), K)
    for user, answer in zip(requests, answers, strict=True):
        batch = [row for row in rows if row["user_id"] == user]
        assert len(batch) == K
        assert answer.scores == pytest.approx([row["score"] for row in batch], abs=1e-6)
        assert set(answer.item_ids) == {row["item_id"] for row in batch}
    mlflow.set_tracking_uri(f"sqlite:///{published.warehouse}/mlflow.db")
    pyfunc = mlflow.pyfunc.load_model("models:/nightjar@champion")
    for answer, served in zip(answers, pyfunc.predict(list(requests.values()), {"k": K}), strict=True):
        assert served["scores"] == pytest.approx(answer.scores, abs=1e-6)


def test_the_raw_context_of_an_interaction_gives_the_columns_of_its_sample(published: Published) -> None:
    items = item_of_index(published.nights, FIRST)
    clicks = {
        (user, item, at): (ds, user, item, at, action, request) for ds, user, item, at, action, request in logs()[0]
    }
    requests, rows = [], rows_of(published.nights, "samples", FIRST)
    for row in rows:
        number = int(row["user_id"][1:])
        device, words, weights, load, query = context_of(clicks[row["user_id"], int(row["item_id"]), row["event_time"]])
        known: dict[str, Any] = {}
        if number < 20:  # the snapshot of the day before, of two_nights.write_inputs
            income = float(number) if number % 4 else None
            known = {"age": ["young", "old", None][number % 3], "income": income, "taste": taste_of(number)}
        request = {"user_id": row["user_id"], "history": [int(items[i]) for i in row["history"] if i], **known}
        request |= {"device": device, "words": words, "word_weights": weights, "load": load, "query": query}
        requests.append(request | {"hour": row["context_hour"] - 2, "weekday": row["context_weekday"] - 1})
    columns, _ = published.retriever._encoder.encode(requests)
    for name, values in columns.items():
        np.testing.assert_array_equal(values, np.array([row[name] for row in rows], values.dtype), err_msg=name)
    assert {name for name in columns if name.startswith("context")} == {
        *("context_device", "context_words", "context_words_weights", "context_load", "context_query"),
        *("context_hour", "context_weekday"),
    }
    vectors = embed_users(published.retriever._model, columns)
    without = embed_users(published.retriever._model, columns | {"context_device": np.ones(len(rows), np.int32)})
    assert np.abs(vectors - without).max() > 1e-4, "the context has an effect"


def test_a_missing_hour_is_the_current_one_and_the_example_is_valid(published: Published) -> None:
    example = example_request(published.retriever.fields)
    assert (example["hour"], len(example["query"]), len(example["taste"])) == (1, 2, 2)
    of_example, at_night, now = published.retriever.retrieve([example, {"hour": 3}, {}], 5)
    assert [len(one.item_ids) for one in (of_example, at_night, now)] == [5, 5, 5]


def test_an_update_within_the_day_trains_on_rows_with_their_context(published: Published) -> None:
    run_job("incremental", "--config", str(published.config), "--ds", SECOND, "--until", f"{SECOND}T14:00")
    rows = (
        pads.dataset(str(published.warehouse / "updates" / f"ds={SECOND}" / "001" / "samples")).to_table().to_pylist()
    )
    assert rows
    for row in rows:
        event = (SECOND, row["user_id"], int(row["item_id"]), row["event_time"].replace(tzinfo=None), "click", "")
        _, words, weights, _, query = context_of(event)
        assert row["context_query"] == (query or [0.0, 0.0])
        assert row["context_words_weights"] == (weights if words else [0.0, 0.0])
        assert row["context_hour"] == 2 + (row["event_time"] - timedelta(hours=5)).hour
    release = json.loads((published.warehouse / "releases" / "current.json").read_text())["release_id"]
    assert release.startswith(SECOND)
    (answer,) = Retriever(str(published.warehouse / "releases" / release)).retrieve([{"hour": 4, "device": "tv"}], 5)
    assert len(answer.item_ids) == 5

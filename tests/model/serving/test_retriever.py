"""The retriever: it returns the nearest items and needs neither Spark nor MLflow."""

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from model.data.catalogue import Catalogue
from model.serving.embed import embed_items, embed_users
from model.serving.faiss_index import save_index
from model.serving.release import ReleaseError
from model.serving.request_values import RequestError
from model.serving.retriever import Retriever
from model.training.checkpoint import load_checkpoint
from tests.model import toy_night
from tests.model.serving.toy_release import update_checksums


def test_answers_are_the_nearest_items(release: Path) -> None:
    retriever = Retriever(str(release))
    samples = toy_night.sample_rows(9)
    samples["history_ages"] = (samples["history"] > 0) * np.arange(9 * toy_night.HISTORY, 0, -1).reshape(9, -1)
    samples["history_actions"] = (samples["history"] > 0) * (1 + samples["history"] % 4)
    is_full = "history_ages" in retriever._model.schema.user_columns
    requests = [
        {
            "user_id": int(samples["user_index"][n]),
            "age": f"a{samples['user_age'][n]}",
            "tenure": float(samples["user_tenure"][n]) - 1.5,
            "income": float(samples["user_income"][n]),
            "history": [f"i{item}" for item in samples["history"][n] if item],
        }
        for n in range(9)
    ]
    for n, request in enumerate(requests):
        if is_full:
            request["history_ages"] = [int(age) for age in samples["history_ages"][n] if age]
            request["history_actions"] = [f"did{action}" for action in samples["history_actions"][n] if action]
    samples["user_tenure"] = np.clip(samples["user_tenure"], 2, 4)
    model = retriever._model
    columns = {c: pq.read_table(release / "items")[c] for c in model.schema.item_columns}
    items = {c: np.array(v.to_pylist(), np.float32 if c.endswith("weights") else np.int32) for c, v in columns.items()}
    vectors = embed_users(model, samples, Catalogue(model.schema, items))
    scores = vectors @ embed_items(model, items).T
    for exclude_seen in (False, True):
        for row, answer in enumerate(retriever.retrieve(requests, 5, exclude_seen=exclude_seen)):
            expected = scores[row].copy()
            if exclude_seen:
                expected[np.isin(items["item_index"], samples["history"][row])] = -np.inf
            best = np.argsort(-expected, kind="stable")[:5]
            assert answer.scores == pytest.approx(expected[best].tolist(), abs=1e-5)
            ids = [int(item[1:]) for item in answer.item_ids]
            own_scores = expected[np.searchsorted(items["item_index"], ids)]
            assert own_scores.tolist() == pytest.approx(answer.scores, abs=1e-5)
            assert len(set(ids)) == 5
            assert (answer.k, answer.release_id) == (5, release.name)
            assert not exclude_seen or not set(ids) & set(samples["history"][row].tolist())


def test_k_may_exceed_the_number_of_items(release: Path) -> None:
    retriever = Retriever(f"file://{release}")
    (answer,) = retriever.retrieve([{"history": ["i2", "i3", "gone"]}], 1000, exclude_seen=True)
    assert len(answer.item_ids) == len(answer.scores) == toy_night.ITEMS - 3
    assert retriever.retrieve([], 3) == []
    with pytest.raises(RequestError, match="k is 0, expected"):
        retriever.retrieve([{}], 0)


@pytest.mark.parametrize("release", ["plain"], indirect=True)
def test_a_folder_without_a_release_is_refused(release: Path) -> None:
    with pytest.raises(ReleaseError, match=r"there is no release in .*/items: name a folder under releases/"):
        Retriever(str(release / "items"))


@pytest.mark.parametrize("release", ["plain"], indirect=True)
def test_a_release_without_request_fields_is_refused(release: Path) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    del manifest["request"]
    (release / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match="does not say what a request holds"):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["plain"], indirect=True)
@pytest.mark.processes
def test_a_server_imports_neither_spark_nor_mlflow(release: Path) -> None:
    code = "import sys; from model.serving.retriever import Retriever; r = Retriever(sys.argv[1]); "
    code += "print(r.retrieve([{}], 3)); print(sorted({'pyspark', 'mlflow'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code, str(release)], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("kind", ["IDMap2,Flat", "IDMap,IVF4,Flat", "IDMap,IVF4,SQ8", "IDMap,IVF4,PQ4", "IDMap,HNSW8"])
@pytest.mark.parametrize("release", ["plain"], indirect=True)
@pytest.mark.filterwarnings("ignore")
def test_any_kind_of_index_over_the_vectors_of_the_model_is_accepted(release: Path, kind: str) -> None:
    """Approximate indices miss some vectors and round others. Earlier versions wrote IDMap2."""
    model, items = load_checkpoint(str(release / "model")), toy_night.item_rows()
    vectors = np.repeat(embed_items(model, items), 20, axis=0)  # Enough vectors to train on.
    index = faiss.index_factory(8, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors[::20], items["item_index"].astype(np.int64))
    save_index(index, release / "index.faiss")
    update_checksums(release)
    assert len(Retriever(str(release)).retrieve([{}], 5)[0].item_ids) == 5

"""The retriever: the encoding that Spark has, the nearest items, errors by name, and no release that was tampered with."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import SparkSession

from model.config import ModelConfig
from model.data.catalogue import Catalogue
from model.io.urls import checksum
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from model.serving.faiss_index import build_index, save_index
from model.serving.release import ReleaseError, digest_of, open_release
from model.serving.request_encoder import RequestEncoder, RequestError
from model.serving.retriever import Retriever
from model.serving.vocabulary import Vocabulary, bucket_of, read_vocabularies
from model.training.checkpoint import load_checkpoint, save_checkpoint
from model.training.spec import TrainingResult
from pipelines.config import Features
from pipelines.contract.request_fields import RequestFields
from pipelines.contract.schema import FeatureSchema
from pipelines.features import encode, vocabulary
from tests.model import toy_night

# -- the encoding -------------------------------------------------------------------------------------------------

FEATURES = Features.model_validate(
    {
        "user": [
            {"kind": "categorical", "name": "city"},
            {"kind": "categorical", "name": "plan"},
            {"kind": "categorical", "name": "paying"},
            {"kind": "categorical", "name": "device", "buckets": 7},
            {"kind": "multi_categorical", "name": "tags", "max_values": 3, "weights": "tag_weights"},
            {"kind": "multi_categorical", "name": "shops", "max_values": 2},
            {"kind": "multi_categorical", "name": "words", "max_values": 4, "buckets": 1000},
            {"kind": "numeric", "name": "income"},
            {"kind": "numeric", "name": "member"},
            {"kind": "numeric", "name": "years", "boundaries": [0.3, 0.7, 10.0]},
            {"kind": "numeric", "name": "visits", "boundaries": [1.0, 5.0]},
        ],
        "history": {"length": 3},
        "ids": {"user": {"buckets": 50}},
    }
)
COLUMNS = (
    "user_id string, city string, plan bigint, paying boolean, device string, tags array<string>, "
    "tag_weights array<double>, shops array<int>, words array<string>, income double, member boolean, years float, visits int"
)
NAN = float("nan")
ROWS: list[tuple[Any, ...]] = [
    ("u1", "Köln", 3, True, "phone", ["a", "b"], [1.0, 0.5], [7, 8], ["x", "y"], 3.5, True, 0.3, 1),
    ("u2", "köln", -3, False, "tv", ["a", "zzz", "b", "a"], [1.0], [8], ["", "x"], -1e12, False, 0.7, 5),
    ("u3", None, None, None, None, None, None, None, None, None, None, None, None),
    ("u4", "", 2**60, True, "", [], [], [], [], NAN, True, NAN, 0),
    ("u5", "東京", 4, None, "phöne", [None, "b"], [None, 2.0], [None, 9], [None, "ж"], 1e19, None, -1e19, -9),
    ("u6", "new", 99, False, "tablet", ["b"], None, [1, 2, 3], ["w"] * 6, 0.1, False, 9.999, 4),
    ("17", "a b", 0, True, "x" * 70, ["b", "a"], [0.25, 0.5, 9.0], [8, 7], ["long " * 20], 1.0, True, 10.0, 2**30),
]


@pytest.fixture(scope="module")
def encoded(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], RequestEncoder]:
    """Rows as Spark encodes them, and an encoder of the same vocabularies. Values of u6 came too late for them."""
    snapshot = spark.createDataFrame(ROWS, COLUMNS)
    side = encode.sides(FEATURES)[0]
    values = encode.values_of(side, snapshot.where("user_id != 'u6'"))
    assert values is not None
    items = spark.createDataFrame([("item_id", str(n), 1) for n in range(9)], values.schema)
    grown, sizes = vocabulary.append(None, vocabulary.unseen_values(None, values.unionByName(items)))
    statistics = encode.statistics_of(side, snapshot, {})
    rows = encode.encode(side, snapshot, grown, statistics, ["user_id"])
    bucket = vocabulary.bucket_of("user_id", rows["user_id"], 50)
    found = [row.asDict() for row in rows.withColumn("user_index", bucket).collect()]
    folder = tmp_path_factory.mktemp("words") / "vocabularies"
    grown.write.parquet(str(folder))
    names = ["user_id", "item_id"] + [side.label(f) for f in side.features if f.kind != "numeric"]
    sizes = dict.fromkeys(names, 2) | sizes | encode.hashed_sizes(FEATURES)
    schema = FeatureSchema.model_validate(encode.feature_schema(FEATURES, sizes, statistics, encode.example_age(1, {})))
    fields = RequestFields.validate_python(encode.request_fields(FEATURES, dict(snapshot.dtypes), "bigint"))
    urls = sorted(str(path) for path in folder.glob("*.parquet"))
    words = {f.vocabulary for f in fields if getattr(f, "vocabulary", None)}  # type: ignore[union-attr]
    return found, RequestEncoder(fields, schema, read_vocabularies(urls, words))


def request_of(row: tuple[Any, ...]) -> dict[str, Any]:
    names = [column.strip().split(" ")[0] for column in COLUMNS.split(",")]
    return dict(zip(names, row, strict=True))


def test_a_request_is_encoded_as_spark_encodes_the_users_table(
    encoded: tuple[list[dict[str, Any]], RequestEncoder],
) -> None:
    found, encoder = encoded
    by_user = {row["user_id"]: row for row in found}
    requests = [request_of(row) for row in ROWS]
    columns, _ = encoder.encode(requests)
    assert columns.keys() == {*(found[0].keys() - {"user_id"}), "history"}
    for place, request in enumerate(requests):
        for column, values in columns.items():
            if column != "history":
                wanted = np.array(by_user[request["user_id"]][column], values.dtype)
                np.testing.assert_array_equal(values[place], wanted, err_msg=f"{request['user_id']}, {column}")
    # The table has something of everything, so that equal means more than default everywhere.
    assert len(np.unique(columns["user_city"])) >= 5
    assert set(columns["user_paying"]) == {1, 2, 3}
    assert set(columns["user_years"]) == {1, 2, 3, 4, 5}


def test_what_is_left_out_is_what_is_null(encoded: tuple[list[dict[str, Any]], RequestEncoder]) -> None:
    _, encoder = encoded
    columns, had = encoder.encode([{}, request_of(ROWS[2]) | {"user_id": None, "history": None}])
    for values in columns.values():
        np.testing.assert_array_equal(values[0], values[1])
    assert columns["user_index"][0] == columns["user_city"][0] == columns["user_years"][0] == 1
    assert [len(items) for items in had] == [0, 0]


def test_a_history_is_its_end_with_padding_ahead(encoded: tuple[list[dict[str, Any]], RequestEncoder]) -> None:
    _, encoder = encoded
    index = encoder._vocabularies["item_id"].index
    asked = [{"history": [1]}, {"history": [4, 5, 6, 7]}, {"history": [5, 777, 5]}]
    columns, had = encoder.encode(asked)
    five = index("5")
    wanted = [[0, 0, index("1")], [five, index("6"), index("7")], [five, 1, five]]
    assert columns["history"].tolist() == wanted
    assert had[1].tolist() == [index(str(n)) for n in (4, 5, 6, 7)]
    assert had[2].tolist() == [five, five]


def test_where_order_means_nothing_an_item_counts_once() -> None:
    field = {"name": "history", "kind": "history", "column": "history", "type": "text", "vocabulary": "item_id"}
    fields = RequestFields.validate_python([field | {"length": 3, "order": "leave_one_out"}])
    words = {"item_id": Vocabulary(pa.array(["a", "b", "c"], pa.large_string()), np.array([2, 3, 4], np.int32))}
    columns, _ = RequestEncoder(fields, toy_night.schema(), words).encode([{"history": ["a", "b", "a", "c"]}])
    assert columns["history"].tolist() == [[3, 2, 4]]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"city": 3}, "field 'city' is of type int, expected a text"),
        ({"plan": "3"}, "field 'plan' is of type str, expected a whole number"),
        ({"plan": True}, "field 'plan' is of type bool, expected a whole number"),
        ({"plan": 2.0**60}, "expected a whole number"),
        ({"paying": 1}, "field 'paying' is of type int, expected true or false"),
        ({"income": "3"}, "field 'income' is of type str, expected a number"),
        ({"tags": "a"}, "field 'tags' is of type str, expected a list, each of its elements a text"),
        ({"tags": ["a", 1]}, "field 'tags' is of type int, expected a text"),
        (
            {"tags": ["a"], "tag_weights": [NAN]},
            "field 'tag_weights' holds NaN or a number that is too large at place 0, expected finite numbers",
        ),
        (
            {"tags": ["a", "b"], "tag_weights": [1.0, 1e13]},
            "'tag_weights' holds NaN or a number that is too large at place 1",
        ),
        ({"income": 1e300}, "field 'income' is infinite or beyond 1e+19"),
        ({"income": -math.inf}, "field 'income' is infinite or beyond 1e+19"),
        ({"years": 10**400}, "field 'years' is infinite or beyond 1e+19"),
        ({"history": [1, None]}, "field 'history' holds null at place 1, expected ids of items"),
        ({"citi": "x"}, "there is no field 'citi'; did you mean 'city'?"),
        ("x", "is of type str, expected an object of fields and values"),
    ],
)
def test_a_bad_field_is_named(encoded: tuple[list[dict[str, Any]], RequestEncoder], request_: Any, said: str) -> None:
    with pytest.raises(RequestError) as error:
        encoded[1].encode([{"city": "x"}, request_])
    assert str(error.value).startswith("request 1")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "name", ["user_id", "city", "plan", "paying", "tags", "tag_weights", "income", "years", "history"]
)
def test_no_message_holds_a_value_of_the_request(
    encoded: tuple[list[dict[str, Any]], RequestEncoder], name: str
) -> None:
    """Messages go to logs and to whoever proxies the answer; what a user has is nobody's business there."""
    secret = "anna@example.org"
    bodies = [
        {name: {secret: secret}},
        {name: [[secret]]},
        {name: [{secret: 1}]},
        {name: secret},
        {name: [secret, 4711]},
    ]
    bodies += [{name: 4711}, {name: 4711.5}, secret]
    messages = []
    for body in bodies:
        if isinstance(body, dict) and name == "tag_weights":
            body = body | {"tags": ["a", "b"]}
        try:
            encoded[1].encode([body])
        except RequestError as error:
            messages.append(str(error))
    assert len(messages) > 3
    assert not any(secret in message or "4711" in message for message in messages), messages


def test_whole_numbers_may_come_as_floats(encoded: tuple[list[dict[str, Any]], RequestEncoder]) -> None:
    columns, _ = encoded[1].encode([{"plan": 3}, {"plan": 3.0}])
    assert columns["user_plan"][0] == columns["user_plan"][1] > 1


def test_a_hash_is_that_of_spark(spark: SparkSession) -> None:
    texts = ["", "a", "ü", "x" * 31, "x" * 32, "x" * 33, "0", "long " * 50] + [str(n) for n in range(500)]
    frame = spark.createDataFrame([(text,) for text in texts], "text string")
    rows = frame.select("text", vocabulary.bucket_of("item_id", frame["text"], 999).alias("bucket")).collect()
    assert {row["text"]: row["bucket"] for row in rows} == {text: bucket_of("item_id", text, 999) for text in texts}


# -- a release ------------------------------------------------------------------------------------------------------

REQUEST = [
    {"name": "user_id", "kind": "id", "column": "user_index", "type": "integer", "vocabulary": "user_id"},
    {"name": "age", "kind": "categorical", "column": "user_age", "type": "text", "vocabulary": "user.age"},
    {"name": "tenure", "kind": "numeric", "column": "user_tenure", "type": "double", "boundaries": [1.0, 2.0]},
    {"name": "income", "kind": "numeric", "column": "user_income", "type": "double"},
    {"name": "history", "kind": "history", "column": "history", "type": "text", "vocabulary": "item_id"},
]
REQUEST[-1] |= {"length": toy_night.HISTORY, "order": "strictly_before"}
HASHED = {"column": "item_row", "size": 7, "hashed": True}


@pytest.fixture(params=["plain", "pooled", "hashed"])
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A toy release; index n of users and items is id n, as a number and as a text."""
    torch.manual_seed(3)
    rows = toy_night.item_rows()
    schema = toy_night.schema()
    config = {"dim": 8, "hidden": [16], "history_features": ["category", "tags"] if request.param == "pooled" else []}
    if request.param == "hashed":
        rows = rows | {"item_row": (2 + rows["item_index"] % 5).astype(np.int32)}
        schema = toy_night.schema(item=[{**toy_night.SCHEMA["item"][0], "rows": HASHED}, *toy_night.SCHEMA["item"][1:]])
    model = TwoTower(schema, ModelConfig.model_validate(config)).eval()
    folder = tmp_path / "releases" / "2024-03-01-toy"
    folder.mkdir(parents=True)
    save_checkpoint(str(folder / "model"), model, {}, TrainingResult.model_construct())
    index = build_index(lambda: [(rows["item_index"].astype(np.int64), embed_items(model, rows))], 8)
    save_index(index, folder / "index.faiss")
    (folder / "items").mkdir()
    table = toy_night.table(rows).append_column("item_id", pa.array([f"i{n}" for n in rows["item_index"]]))
    pq.write_table(table, folder / "items" / "part-0.parquet")
    (folder / "vocabularies").mkdir()
    words = [("user_id", str(n), n) for n in range(2, toy_night.USERS + 2)]
    words += [("item_id", f"i{n}", n) for n in range(2, toy_night.ITEMS + 2)] + [
        ("user.age", f"a{n}", n) for n in range(2, 6)
    ]
    names, values, indices = zip(*words)
    pq.write_table(
        pa.table({"feature": names, "value": values, "index": pa.array(indices, pa.int32())}),
        folder / "vocabularies" / "part-0.parquet",
    )
    files = {str(path.relative_to(folder)): checksum(str(path)) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = {"release_id": folder.name, "ds": "2024-03-01", "files": files, "request": REQUEST}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_answers_are_the_nearest_items(release: Path) -> None:
    retriever = Retriever(str(release))
    samples = toy_night.sample_rows(9)
    asked = [
        {
            "user_id": int(samples["user_index"][n]),
            "age": f"a{samples['user_age'][n]}",
            "tenure": float(samples["user_tenure"][n]) - 1.5,
            "income": float(samples["user_income"][n]),
            "history": [f"i{item}" for item in samples["history"][n] if item],
        }
        for n in range(9)
    ]
    samples["user_tenure"] = np.clip(samples["user_tenure"], 2, 4)
    model = retriever._model
    rows = {c: pq.read_table(release / "items")[c] for c in model.schema.item_columns}
    arrays = {c: np.array(v.to_pylist(), np.float32 if c.endswith("weights") else np.int32) for c, v in rows.items()}
    vectors = embed_users(model, samples, Catalogue(model.schema, arrays))
    scores = vectors @ embed_items(model, arrays).T
    for seen in (False, True):
        for place, found in enumerate(retriever.retrieve(asked, 5, exclude_seen=seen)):
            mine = scores[place].copy()
            if seen:
                mine[np.isin(arrays["item_index"], samples["history"][place])] = -np.inf
            best = np.argsort(-mine, kind="stable")[:5]
            assert found.scores == pytest.approx(mine[best].tolist(), abs=1e-5)
            got = [int(item[1:]) for item in found.item_ids]
            assert mine[np.searchsorted(arrays["item_index"], got)].tolist() == pytest.approx(found.scores, abs=1e-5)
            assert len(set(got)) == 5
            assert (found.k, found.release_id) == (5, release.name)
            assert not seen or not set(got) & set(samples["history"][place].tolist())


def test_k_may_be_more_than_there_is(release: Path) -> None:
    retriever = Retriever(f"file://{release}")
    (found,) = retriever.retrieve([{"history": ["i2", "i3", "gone"]}], 1000, exclude_seen=True)
    assert len(found.item_ids) == len(found.scores) == toy_night.ITEMS - 3
    assert retriever.retrieve([], 3) == []
    with pytest.raises(RequestError, match="k is 0, expected"):
        retriever.retrieve([{}], 0)


@pytest.mark.parametrize(
    "name",
    [
        "index.faiss",
        "model/model.safetensors",
        "model/model.json",
        "items/part-0.parquet",
        "vocabularies/part-0.parquet",
    ],
)
@pytest.mark.parametrize("release", ["pooled"], indirect=True)
def test_a_release_that_was_tampered_with_is_not_opened(release: Path, name: str) -> None:
    Retriever(str(release))
    raw = bytearray((release / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (release / name).write_bytes(raw)
    remedy = r"jobs\.publish_items --ds 2024-03-01 --force.*jobs\.releases rollback"
    with pytest.raises(
        ReleaseError, match=rf"release 2024-03-01-toy, file {name}: is not what was published.*{remedy}"
    ):
        Retriever(str(release))
    assert list(open_release(str(release)).faults()) == [name]
    (release / name).unlink()
    with pytest.raises(ReleaseError, match=rf"release 2024-03-01-toy, file {name}: is missing"):
        Retriever(str(release))


def make_checksums_match(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: checksum(str(folder / name)) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_index(folder: Path, **how: Any) -> None:
    """With one of another model, of another metric, of other items or of another size."""
    schema, rows = toy_night.schema(), toy_night.item_rows()
    torch.manual_seed(4)
    vectors = embed_items(TwoTower(schema, ModelConfig(dim=how.get("dim", 8), hidden=[16])).eval(), rows)
    kind = how.get("kind", "IDMap,Flat")
    index = faiss.index_factory(vectors.shape[1], kind, how.get("metric", faiss.METRIC_INNER_PRODUCT))
    items = rows["item_index"].astype(np.int64) + how.get("shift", 0)
    if kind.startswith("IDMap"):
        index.add_with_ids(vectors, items)
    else:
        index.add(vectors)
    save_index(index, folder / "index.faiss")


def change_items(folder: Path, take: list[int]) -> None:
    path = folder / "items" / "part-0.parquet"
    pq.write_table(pq.read_table(path).take(take), path)


ALL = list(range(toy_night.ITEMS - 1))
MIXED: dict[str, tuple[Callable[[Path], None], str]] = {
    "index of another night": (replace_index, "the index does not have the vectors that the model gives to 16 of 16"),
    "index of another metric": (
        lambda f: replace_index(f, metric=faiss.METRIC_L2),
        "does not compare by inner product",
    ),
    "index of another length": (lambda f: replace_index(f, dim=16), "vectors of length 16, the model of 8"),
    "index of other items": (
        lambda f: replace_index(f, shift=1),
        "1 of 39 vectors are of items without a row.* item_index 41",
    ),
    "index without items": (lambda f: replace_index(f, kind="Flat"), "does not say which item a vector is of"),
    "an item row too few": (
        lambda f: change_items(f, ALL[:-1]),
        "1 of 39 vectors are of items without a row.* item_index 40",
    ),
    "an item row twice": (lambda f: change_items(f, [*ALL, 3]), "of 40 rows some have the same item_index"),
}


@pytest.mark.parametrize("release", ["plain"], indirect=True)
@pytest.mark.parametrize("case", MIXED)
def test_parts_that_do_not_belong_together_are_refused_though_checksums_match(release: Path, case: str) -> None:
    change, said = MIXED[case]
    change(release)
    make_checksums_match(release)
    with pytest.raises(
        ReleaseError, match=rf"release 2024-03-01-toy, .*{said}.*jobs\.publish_items --ds 2024-03-01 --force"
    ):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["plain"], indirect=True)
def test_a_vocabulary_of_a_later_night_is_refused(release: Path) -> None:
    path = release / "vocabularies" / "part-0.parquet"
    table = pq.read_table(path)
    later = pa.table({"feature": ["user.age"], "value": ["a6"], "index": pa.array([6], pa.int32())})
    pq.write_table(pa.concat_tables([table, later]), path)
    make_checksums_match(release)
    with pytest.raises(ReleaseError, match=r"vocabularies and model: user.age has indices up to 6, the model has 6"):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["plain"], indirect=True)
def test_a_manifest_that_was_changed_is_refused(release: Path) -> None:
    """A digest over all of it: whoever makes checksums match changes it too."""
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["digest"] = digest_of(manifest)
    (release / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    Retriever(str(release))
    (release / "manifest.json").write_text(json.dumps(manifest | {"ds": "2024-03-02"}))
    with pytest.raises(
        ReleaseError, match=r"release 2024-03-01-toy, manifest.json: was changed after it was published"
    ):
        Retriever(str(release))
    assert list(open_release(str(release)).faults()) == ["manifest.json"]


@pytest.mark.parametrize("release", ["plain"], indirect=True)
def test_what_is_no_release_says_so(release: Path) -> None:
    with pytest.raises(ReleaseError, match=r"there is no release in .*/items: name a folder under releases/"):
        Retriever(str(release / "items"))
    manifest = json.loads((release / "manifest.json").read_text())
    del manifest["request"]
    (release / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match="does not say what a request holds"):
        Retriever(str(release))


@pytest.mark.parametrize("release", ["plain"], indirect=True)
@pytest.mark.processes
def test_a_server_needs_neither_spark_nor_mlflow(release: Path) -> None:
    code = "import sys; from model.serving.retriever import Retriever; r = Retriever(sys.argv[1]); "
    code += "print(r.retrieve([{}], 3)); print(sorted({'pyspark', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, str(release)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("kind", ["IDMap2,Flat", "IDMap,IVF4,Flat", "IDMap,IVF4,SQ8", "IDMap,IVF4,PQ4", "IDMap,HNSW8"])
@pytest.mark.parametrize("release", ["plain"], indirect=True)
@pytest.mark.filterwarnings("ignore")
def test_any_index_of_the_models_own_vectors_is_opened(release: Path, kind: str) -> None:
    """Approximate ones overlook and round vectors; IDMap2 is what earlier versions wrote."""
    model, rows = load_checkpoint(str(release / "model")), toy_night.item_rows()
    vectors = np.repeat(embed_items(model, rows), 20, axis=0)  # Enough to train on.
    index = faiss.index_factory(8, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors[::20], rows["item_index"].astype(np.int64))
    save_index(index, release / "index.faiss")
    make_checksums_match(release)
    assert len(Retriever(str(release)).retrieve([{}], 5)[0].item_ids) == 5

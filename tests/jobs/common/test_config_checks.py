"""Contradictions within a config are refused when it is read, by key, and not after an hour of sampling."""

import itertools
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from jobs.common.config import Config, load_config
from jobs.common.config_checks import expected_schema
from model.index_factory import factory_fault
from model.loss.self_supervision import require_views
from model.network.two_tower import TwoTower
from model.serving.faiss_index import build_index
from pipelines.contract.errors import UsageError

FEATURES = {
    "user": [{"kind": "categorical", "name": "age"}, {"kind": "numeric", "name": "activity"}],
    "item": [
        {"kind": "categorical", "name": "category"},
        {"kind": "multi_categorical", "name": "tags"},
        {"kind": "numeric", "name": "price"},
    ],
}
NO_FEATURES = {"user_id": False, "history": None}  # no user features
EASY = {"coarse": 0, "fine": 0}  # no hard negatives
NO_USER = ["user_id", "age", "activity", "history"]


def model(**settings: Any) -> dict[str, Any]:
    return {"features": FEATURES, "model": settings}


def supervised(mask: str = "random", items: int = 512) -> dict[str, Any]:
    return {"self_supervision": {"mask": mask, "items": items}}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a dim that the channels cannot share": ("model.dim", model(tower="parallel")),
    "an item vector of another length than its embedding": ("model.embedding_dim", model(tower="youtube_dnn", dim=32)),
    "a sequence of no history": (
        "features.history",
        {"features": FEATURES | {"history": None}, "model": {"tower": "sequence"}},
    ),
    "heads that do not divide the width": ("width", model(tower="sequence", settings={"width": 30, "heads": 4})),
    "an unknown setting of the sequence": ("layers", model(tower="sequence", settings={"layers": 4})),
    "times that the samples lack": ("features.history.ages", model(tower="sequence", settings={"time": "gaps"})),
    "actions that the samples lack": ("features.history.actions", model(tower="sequence", settings={"actions": True})),
    "actions of a tower that pools the history": (
        "model.settings of tower senet: actions",
        {
            "features": FEATURES | {"history": {"actions": True}},
            "model": {"tower": "senet", "settings": {"actions": True}},
        },
    ),
    "actions of known items": (
        "actions: true needs actions",
        {"features": {"history": {"actions": True, "order": "leave_one_out"}}},
    ),
    "self-supervision of a tower that reads the id alone": (
        "loss.self_supervision",
        model(tower="youtube_dnn") | {"loss": supervised()},
    ),
    "no feature of users": ("features", {"features": NO_FEATURES}),
    "the age of the example alone": ("features", {"features": NO_FEATURES | {"example_age": True}}),
    "all features of users left out": ("model.leave_out", model(leave_out=NO_USER)),
    "a feature left out that is not there": ("model.leave_out", model(leave_out=["nope"])),
    "the id of the item left out": ("model.leave_out", model(leave_out=["item_id"])),
    "a number pooled over the history": ("model.history_features", model(history_features=["price"])),
    "a feature pooled that is left out": (
        "model.history_features",
        model(history_features=["tags"], leave_out=["tags"]),
    ),
    "a feature pooled over no history": (
        "model.history_features",
        {"features": FEATURES | {"history": None}, "model": {"history_features": ["tags"]}},
    ),
    "items hidden in no history": (
        "model.history_dropout",
        {"features": FEATURES | {"history": None}, "model": {"history_dropout": 0.2}},
    ),
    "items pooled of no history": (
        "model.history_items",
        {"features": FEATURES | {"history": None}, "model": {"history_items": 5}},
    ),
    "items pooled by a tower that does not pool": (
        "model.history_items",
        model(tower="sequence", history_items=5) | {"features": FEATURES | {"history": {"order": "strictly_before"}}},
    ),
    "dropout without a layer to act on": ("model.dropout", model(dropout=0.2)),
    "views of an id": ("loss.self_supervision", {"loss": supervised()}),
    "values to drop where no feature has several": (
        "loss.self_supervision.mask",
        model(leave_out=["tags"]) | {"loss": supervised("dropout")},
    ),
    "two features of one column": (
        "features",
        {
            "features": {
                "item": [
                    {"kind": "multi_categorical", "name": "tags", "weights": "w"},
                    {"kind": "categorical", "name": "tags_weights"},
                ]
            }
        },
    ),
    "parts that do not divide dim": ("index.factory", {"index": {"factory": "IVF4,PQ7"}}),
    "parts that do not divide dim and the prior": (
        "model.dim + 1 (recency prior) = 129",
        {"index": {"factory": "IVF4,PQ8"}, "prior": {}, "model": {"item_item": None}},
    ),
    "parts that do not divide dim and the item-item part": (
        "model.item_item.rank = 127",
        {"index": {"factory": "IVF4,PQ8"}, "prior": {}, "model": {"item_item": {"rank": 128}}},
    ),
    "strengths of a prior without held-out events": (
        "positives.valid_hours",
        {"loss": {"lift": False}, "positives": {"valid_hours": 0}},
    ),
    "lift without a prior": ("loss.lift", {"prior": None}),
    "a strength of the prior twice": ("prior.beta", {"prior": {"beta": [1, 1]}}),
    "a prior of negative strength": ("prior.beta", {"prior": {"beta": [-1]}}),
    "popularity over more days than are counted": (
        "features.item_popularity",
        {"features": {"item_popularity": [7, 60]}},
    ),
    "popularity over the same days twice": (
        "features.item: 'popularity_7d' is listed twice",
        {"features": {"item_popularity": [7, 7]}},
    ),
    "no half-life": ("prior.half_life_days", {"prior": {"half_life_days": []}}),
    "mined ranks from the last to the first": ("negatives: mined_ranks", {"negatives": {"mined_ranks": [500, 101]}}),
    "mined ranks that begin before the best": ("negatives.mined_ranks", {"negatives": {"mined_ranks": [0, 100]}}),
    "one mined rank for two negatives": ("negatives: mined", {"negatives": {"mined": 2, "mined_ranks": [7, 7]}}),
    "no cell": ("index.factory", {"index": {"factory": "IVF0,Flat"}}),
    "one link an item": ("index.factory", {"index": {"factory": "HNSW1"}}),
    "a cut-off of no items": ("evaluation.ks", {"evaluation": {"ks": [0, 10]}}),
    "a cut-off twice": ("evaluation.ks", {"evaluation": {"ks": [10, 10]}}),
    "more processes than trainers": ("samples.trainers", {"training": {"processes": 5}}),
    "a batch of fewer rows than processes": ("training.batch_size", {"training": {"processes": 2, "batch_size": 1}}),
    "views of fewer items than processes": (
        "loss.self_supervision.items",
        model() | {"loss": supervised(items=2), "training": {"processes": 3}},
    ),
    "GPUs that no launcher assigns": (
        "training.launcher",
        {"training": {"device": "cuda", "launcher": "spark", "processes": 2}},
    ),
    "passes chosen on no held-out hours": (
        "positives.valid_hours",
        {"training": {"bootstrap_epochs": "auto"}, "positives": {"valid_hours": 0}},
    ),
    "top_k of a loss that is not listwise": ("loss.top_k", {"loss": {"kind": "pointwise", "top_k": 50}}),
    "top_k without expected counts": ("loss.correction", {"loss": {"correction": "none", "top_k": 50}}),
    "gbce of a loss that is not pointwise": ("loss.gbce_calibration", {"loss": {"gbce_calibration": 0.75}}),
    "a ramp that ends before it starts": ("loss.hard_ramp", {"loss": {"hard_ramp": [0.8, 0.3]}}),
    "a ramp beyond the training": ("loss.hard_ramp", {"loss": {"hard_ramp": [0.5, 2]}}),
    "a ramp of no hard negatives": ("loss.hard_ramp", {"loss": {"hard_ramp": [0.3, 0.8]}, "negatives": EASY}),
    "a temperature of no hard negatives": ("negatives.", {"loss": {"hard_temperature": 0.1}, "negatives": EASY}),
    "a weight in a softmax of a mean": ("loss.hard_share", {"loss": {"kind": "logistic", "hard_weight": 2}}),
    "a fixed temperature beside a learned one": (
        "loss.hard_temperature",
        {"loss": {"learned_temperature": True, "hard_temperature": 0.1}},
    ),
    "an order of stages without one of them": (
        "loss.stage_weight",
        {"negatives": {"coarse": 0}, "loss": {"stage_weight": 0.7}},
    ),
    "an order of stages of hard negatives that belong to no row": (
        "loss.stage_weight",
        {"loss": {"stage_weight": 0.7, "hard_rows": "all"}},
    ),
    "hard negatives of all rows in a mean": ("loss.hard_rows", {"loss": {"kind": "pointwise", "hard_rows": "all"}}),
    "hard negatives of all rows in revisited": (
        "loss.hard_rows",
        {"loss": {"correction": "revisited", "hard_rows": "all"}},
    ),
    "hard negatives of all rows with a temperature": (
        "loss.hard_temperature",
        {"loss": {"hard_temperature": 0.1, "hard_rows": "all"}},
    ),
    "an order that looks ahead by nothing": ("positives.ahead_days", {"features": {"history": {"order": "ahead"}}}),
    "days ahead that no order reads": (
        "positives.ahead_days",
        {"features": {"history": {"order": "strictly_before"}}, "positives": {"ahead_days": 7}},
    ),
    "days ahead without a history": (
        "positives.ahead_days",
        {"features": {"history": None}, "positives": {"ahead_days": 7}},
    ),
    "ages of items without times": (
        "features.history: ages",
        {"features": {"history": {"order": "leave_one_out", "ages": True}}},
    ),
    "packed rows without an order of time": (
        "samples.pack",
        {"features": {"history": {"order": "leave_one_out"}}, "samples": {"pack": 4}},
    ),
    "packed rows without a history": ("samples.pack", {"features": {"history": None}, "samples": {"pack": 4}}),
    "a record in a folder": ("tracking.uri", {"tracking": {"uri": "/data/mlruns"}}),
    "a record in a folder by URI": ("tracking.uri", {"tracking": {"uri": "file:///data/mlruns"}}),
    "a record nowhere": ("tracking.uri", {"tracking": {"uri": "htp://mlflow:5000"}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_refused_by_key(name: str, tmp_path: Path) -> None:
    key, tree = REFUSED[name]
    path = tmp_path / "night.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UsageError) as caught:
        load_config(str(path))
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("uri", ["sqlite:////data/mlflow.db", "postgresql+psycopg2://u@host/db", "https://host:5000"])
def test_databases_and_servers_are_valid_tracking_uris(uri: str) -> None:
    assert Config.model_validate({"tracking": {"uri": uri}}).tracking.uri == uri


def is_accepted(tree: dict[str, Any]) -> bool:
    try:
        Config.model_validate(tree)
    except ValidationError:
        return False
    return True


def is_built(tree: dict[str, Any]) -> bool:
    """Whether training could build the model of these settings. Sections are validated one by one, not together."""
    parts = Config().model_copy(
        update={
            name: type(getattr(Config(), name)).model_validate(tree.get(name, {}))
            for name in ("features", "model", "loss")
        }
    )
    try:
        schema = expected_schema(parts).without(parts.model.leave_out)
        towers = TwoTower(schema, parts.model)
        if parts.loss.self_supervision:
            require_views(towers)
            assert len(schema.item) > 1
        return bool(schema.user or schema.history)
    except (ValueError, AssertionError, RuntimeError):
        return False


@pytest.mark.parametrize("tower", ["dssm", "senet", "parallel", "youtube_dnn", "sequence"])
def test_a_config_is_accepted_if_and_only_if_its_model_can_be_built(tower: str) -> None:
    """The check builds no plain tower, and builds other towers without memory for their parameters."""
    for dim, features, history, leave_out, pooled, loss in itertools.product(
        (32, 33),
        (FEATURES, {}, NO_FEATURES),
        ({}, {"history": None}),
        ([], ["category", "tags", "price"], NO_USER, ["nope"]),
        ([], ["category"], ["price"]),
        ({}, supervised()),
    ):
        tree = {
            "features": features | history,
            "model": {"tower": tower, "dim": dim, "leave_out": leave_out, "history_features": pooled},
            "loss": loss,
        }
        assert is_accepted(tree) == is_built(tree), tree


@pytest.mark.parametrize("dim", [1, 12, 16])
def test_factories_that_are_accepted_can_be_built(dim: int) -> None:
    """Refused factories are not given to Faiss, which may end the process."""
    rows = np.random.default_rng(1).standard_normal((300, dim)).astype(np.float32)
    factories = ["Flat", "IVF1,Flat", "IVF4,SQ8", "HNSW2", *(f"IVF1,PQ{m}" for m in range(1, dim + 1))]
    accepted = [factory for factory in factories if factory_fault(factory, dim) is None]
    assert {f"IVF1,PQ{m}" for m in range(1, dim + 1) if dim % m == 0} < set(accepted)
    assert len(accepted) < len(factories) or dim == 1
    faiss.omp_set_num_threads(1)
    for factory in accepted:
        assert build_index(lambda: [(np.arange(300), rows)], dim, factory).ntotal == 300


def test_checking_a_plain_config_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "device", None)
    Config.model_validate(model())


@pytest.mark.parametrize(
    ("tree", "order"),
    [
        ({}, "leave_one_out"),
        ({"evaluation": {"split": "last_positive"}}, "strictly_before"),
        ({"model": {"tower": "sequence"}}, "strictly_before"),
        ({"model": {"history_pooling": "decay"}}, "strictly_before"),
        ({"samples": {"pack": 4}}, "strictly_before"),
        ({"features": {"history": {"ages": True}}}, "strictly_before"),
        ({"features": {"history": {"actions": True}}}, "strictly_before"),
        ({"positives": {"known_items": 50}}, "strictly_before"),
        ({"positives": {"ahead_days": 7}}, "ahead"),
        ({"features": {"history": {"order": "strictly_before"}}}, "strictly_before"),
        ({"model": {"tower": "sequence"}, "features": {"history": {"order": "leave_one_out"}}}, "leave_one_out"),
    ],
)
def test_the_order_of_the_history_follows_from_question_and_tower(tree: dict[str, Any], order: str) -> None:
    config = Config.model_validate(tree)
    assert config.features.history
    assert config.features.history.order == order
    again = Config.model_validate(config.model_dump())
    assert again == config
    assert again.hash_of("features") == config.hash_of("features")

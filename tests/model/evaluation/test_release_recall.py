"""Releases on held-out events."""

from pathlib import Path

import numpy as np
import pytest

from model.config import ModelConfig
from model.evaluation.release_recall import (
    HeldOutEvents,
    RecallResult,
    measure_ranking_recall,
    measure_recall,
    recall_loss_bound,
    recall_ratio,
    user_columns_of,
)
from model.io.arrow import ColumnError
from model.io.urls import read_columns
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from model.serving.faiss_index import build_index
from model.training.checkpoint import load_checkpoint
from model.training.trainer import train
from tests.model import toy_night


def test_a_loss_is_certain_only_where_the_users_agree() -> None:
    draw = np.random.default_rng(0)
    before = draw.random(400)
    assert recall_loss_bound(before, before, 200, seed=1) == 0
    noise = draw.normal(0, 0.3, 400)
    assert recall_loss_bound(before, before + noise - noise.mean(), 200, seed=1) < 0
    assert 0.08 < recall_loss_bound(before, before - 0.1 + 0.1 * (noise - noise.mean()), 200, seed=1) < 0.1
    assert recall_loss_bound(before, before + 0.1, 200, seed=1) == pytest.approx(-0.1)


def test_events_of_a_user_count_together_and_unknown_users_apart() -> None:
    found = RecallResult(np.array([1.0, 0, 0, 1]), np.array([0, 0, 1, 2]), 0.5)
    assert found.by_user().tolist() == [0.5, 0, 1]
    assert found.recall == 0.5


def test_one_ranking_for_everybody_leaves_out_what_each_user_had() -> None:
    had = [np.array([9, 8]), np.array([], np.int64), np.array([7])]
    events = HeldOutEvents({"item_index": np.array([6, 6, 7])}, np.array([0, 1, 1]), had)
    found = measure_ranking_recall(np.array([9, 8, 7, 6]), events, "item_index", 2)
    assert found.hits_B.tolist() == [1, 0, 0]  # 7, 6 for the first; 9, 8 for the second; 9, 8 for the third
    assert found.by_user().tolist() == [1, 0]
    everything = HeldOutEvents(events.columns, events.owners_B, None)
    assert measure_ranking_recall(np.array([9, 8, 7, 6]), everything, "item_index", 3).hits_B.tolist() == [0, 0, 1]


def test_a_ratio_of_recalls_has_an_interval_unless_the_baseline_may_recall_nothing() -> None:
    rng = np.random.default_rng(1)
    base = (rng.random(500) < 0.2).astype(float)
    now = (rng.random(500) < 0.4).astype(float)
    found = recall_ratio(now, base, 300, seed=1)
    assert found is not None
    value, low, high = found
    assert value == pytest.approx(now.mean() / base.mean())
    assert 1.4 < low < value < high < 3
    assert recall_ratio(now, base * 0, 300, seed=1) is None


def test_a_trained_model_recalls_more_than_a_new_one_and_what_it_does_not_know_is_default(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [400] * 3, training={"embedding_learning_rate": 2e-2}, epochs=4)
    train(spec)
    names = dict.fromkeys([*spec.features.user_columns, "user_index", "item_index"])
    valid = read_columns([file.url for file in spec.valid], list(names))
    events = {name: values[:20] for name, values in valid.items()}
    asked = HeldOutEvents(events, np.unique(events["user_index"], return_inverse=True)[1])
    rows = toy_night.item_rows()
    recalls = []
    for model in (TwoTower(spec.features, ModelConfig(dim=16, embedding_dim=16)).eval(), load_checkpoint(spec.output)):
        vectors = embed_items(model, rows)
        pairs = [(rows["item_index"].astype(np.int64), vectors)]
        index = build_index(lambda pairs=pairs: pairs, model.config.dim)
        found = measure_recall(model, index, asked, 10, None)
        assert 0 < found.coverage <= 1
        recalls.append(found.recall)
        best = np.argsort(-(embed_users(model, events) @ vectors.T), 1)[:, :10]
        hits = (rows["item_index"][best] == events["item_index"][:, None]).any(1)
        np.testing.assert_array_equal(found.hits_B, hits)
    assert recalls[1] > 2 * recalls[0]

    newer = {**events, "user_index": events["user_index"] + 1000, "history": events["history"] + 1000}
    known = user_columns_of(spec.features, newer)
    assert (known["user_index"] == 1).all()
    assert (known["history"] == 1).all()
    assert (known["user_income"] == events["user_income"]).all()
    aged = {name: values for name, values in events.items() if name != "example_age"}
    assert user_columns_of(spec.features, aged).keys() == known.keys(), "age counts as 0: it need not be there"
    with pytest.raises(
        ColumnError, match=r"reads user_age, user_income, which tonight's tables no longer have: set the features"
    ):
        user_columns_of(
            spec.features, {name: values for name, values in aged.items() if name not in ("user_age", "user_income")}
        )

"""Recall of releases on held-out events, and its confidence intervals."""

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


def test_the_loss_bound_is_positive_only_if_most_users_lose() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(400)
    assert recall_loss_bound(before, before, 200, seed=1) == 0
    noise = rng.normal(0, 0.3, 400)
    assert recall_loss_bound(before, before + noise - noise.mean(), 200, seed=1) < 0
    assert 0.08 < recall_loss_bound(before, before - 0.1 + 0.1 * (noise - noise.mean()), 200, seed=1) < 0.1
    assert recall_loss_bound(before, before + 0.1, 200, seed=1) == pytest.approx(-0.1)


def test_recall_is_averaged_per_user() -> None:
    result = RecallResult(np.array([1.0, 0, 0, 1]), np.array([0, 0, 1, 2]), 0.5)
    assert result.by_user().tolist() == [0.5, 0, 1]
    assert result.recall == 0.5


def test_a_ranking_for_all_users_leaves_out_the_items_that_each_event_excludes() -> None:
    excluded = [np.array([9, 8]), np.array([], np.int64), np.array([7])]
    events = HeldOutEvents({"item_index": np.array([6, 6, 7])}, np.array([0, 1, 1]), excluded)
    result = measure_ranking_recall(np.array([9, 8, 7, 6]), events, "item_index", 2)
    assert result.hits_B.tolist() == [1, 0, 0]  # Recommended: 7, 6 for the first event; 9, 8 for the others.
    assert result.by_user().tolist() == [1, 0]
    without_exclusions = HeldOutEvents(events.columns, events.owners_B, None)
    assert measure_ranking_recall(np.array([9, 8, 7, 6]), without_exclusions, "item_index", 3).hits_B.tolist() == [
        0,
        0,
        1,
    ]


def test_a_recall_ratio_has_an_interval_unless_the_baseline_may_be_zero() -> None:
    rng = np.random.default_rng(1)
    base = (rng.random(500) < 0.2).astype(float)
    now = (rng.random(500) < 0.4).astype(float)
    ratio = recall_ratio(now, base, 300, seed=1)
    assert ratio is not None
    value, low, high = ratio
    assert value == pytest.approx(now.mean() / base.mean())
    assert 1.4 < low < value < high < 3
    assert recall_ratio(now, base * 0, 300, seed=1) is None


@pytest.mark.trains
def test_a_trained_model_has_a_higher_recall_than_a_new_one(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [400] * 3, training={"embedding_learning_rate": 2e-2}, epochs=4)
    train(spec)
    names = dict.fromkeys([*spec.features.user_columns, "user_index", "item_index"])
    valid = read_columns([file.url for file in spec.valid], list(names))
    columns = {name: values[:20] for name, values in valid.items()}
    events = HeldOutEvents(columns, np.unique(columns["user_index"], return_inverse=True)[1])
    items = toy_night.item_rows()
    recalls = []
    for model in (TwoTower(spec.features, ModelConfig(dim=16, embedding_dim=16)).eval(), load_checkpoint(spec.output)):
        vectors = embed_items(model, items)
        pairs = [(items["item_index"].astype(np.int64), vectors)]
        index = build_index(lambda pairs=pairs: pairs, model.config.dim)
        result = measure_recall(model, index, events, 10, None)
        assert 0 < result.coverage <= 1
        recalls.append(result.recall)
        best = np.argsort(-(embed_users(model, columns) @ vectors.T), 1)[:, :10]
        hits = (items["item_index"][best] == columns["item_index"][:, None]).any(1)
        np.testing.assert_array_equal(result.hits_B, hits)
    assert recalls[1] > 1.5 * recalls[0]


def test_indices_that_are_newer_than_the_model_become_the_default() -> None:
    rows = toy_night.sample_rows(20)
    newer = {**rows, "user_index": rows["user_index"] + 1000, "history": rows["history"] + 1000}
    newer |= {"history_ages": rows["history"] + 1000, "history_actions": rows["history"] % 5 + 3}
    columns = user_columns_of(toy_night.schema(history=toy_night.FULL_HISTORY), newer)
    assert (columns["user_index"] == 1).all()
    assert (columns["history"] == 1).all()
    assert columns["history_ages"].min() == 1000, "ages are no indices"
    assert set(columns["history_actions"].ravel()) == {1, 3, 4}
    assert (columns["user_income"] == rows["user_income"]).all()


def test_a_column_that_the_events_lack_is_named_except_for_example_age() -> None:
    schema, rows = toy_night.schema(), toy_night.sample_rows(20)
    del rows["example_age"]
    assert user_columns_of(schema, rows).keys() == set(schema.user_columns) - {"example_age"}
    del rows["user_age"], rows["user_income"]
    with pytest.raises(
        ColumnError, match=r"reads user_age, user_income, which tonight's tables no longer have: set the features"
    ):
        user_columns_of(schema, rows)

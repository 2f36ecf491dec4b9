"""Releases on held-out events."""

from pathlib import Path

import numpy as np
import pytest

from model.arrays import ColumnError
from model.checkpoint import load_checkpoint
from model.config import ModelConfig
from model.examination import Examination, certain_loss, examine, held_out, known_to
from model.index import build_index
from model.retrieval import embed_items, embed_users
from model.training import train
from model.two_tower import TwoTower
from tests.model import toy


def test_a_loss_is_certain_only_where_the_users_agree() -> None:
    draw = np.random.default_rng(0)
    before = draw.random(400)
    assert certain_loss(before, before, 200, seed=1) == 0
    noise = draw.normal(0, 0.3, 400)
    assert certain_loss(before, before + noise - noise.mean(), 200, seed=1) < 0
    assert 0.08 < certain_loss(before, before - 0.1 + 0.1 * (noise - noise.mean()), 200, seed=1) < 0.1
    assert certain_loss(before, before + 0.1, 200, seed=1) == pytest.approx(-0.1)


def test_events_of_a_user_count_together_and_unknown_users_apart() -> None:
    found = Examination(np.array([1.0, 0, 0, 1]), np.array([0, 0, 1, 2]), 0.5)
    assert found.by_user().tolist() == [0.5, 0, 1]
    assert found.recall == 0.5


def test_a_trained_model_recalls_more_than_a_new_one_and_what_it_does_not_know_is_default(tmp_path: Path) -> None:
    spec = toy.make_spec(tmp_path, [400] * 3, training={"embedding_learning_rate": 2e-2}, epochs=4)
    train(spec)
    events = held_out([file.url for file in spec.valid], spec.features, most=20)
    assert len(events["user_index"]) == 20
    rows = toy.item_rows()
    recalls = []
    for model in (TwoTower(spec.features, ModelConfig(dim=16, embedding_dim=16)).eval(), load_checkpoint(spec.output)):
        vectors = embed_items(model, rows)
        pairs = [(rows["item_index"].astype(np.int64), vectors)]
        index = build_index(lambda pairs=pairs: pairs, model.config.dim)
        found = examine(model, index, events, 10, None)
        assert 0 < found.covered <= 1
        recalls.append(found.recall)
        best = np.argsort(-(embed_users(model, events) @ vectors.T), 1)[:, :10]
        hits = (rows["item_index"][best] == events["item_index"][:, None]).any(1)
        np.testing.assert_array_equal(found.hits_B, hits)
    assert recalls[1] > 2 * recalls[0]

    newer = {**events, "user_index": events["user_index"] + 1000, "history": events["history"] + 1000}
    known = known_to(spec.features, newer)
    assert (known["user_index"] == 1).all()
    assert (known["history"] == 1).all()
    assert (known["user_income"] == events["user_income"]).all()
    aged = {name: values for name, values in events.items() if name != "example_age"}
    assert known_to(spec.features, aged).keys() == known.keys(), "age counts as 0: it need not be there"
    with pytest.raises(
        ColumnError, match=r"reads user_age, user_income, which samples no longer have: set the features"
    ):
        known_to(
            spec.features, {name: values for name, values in aged.items() if name not in ("user_age", "user_income")}
        )

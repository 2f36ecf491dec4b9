"""Every tower learns the toy night with every loss, and published vectors have the scores of training."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.data.catalogue import Catalogue
from model.loss.objective import logits_of, vectors_of
from model.serving.embed import embed_items, embed_users
from model.training.build import build_step
from model.training.checkpoint import load_checkpoint
from model.training.trainer import train
from tests.model import toy_night

TOWERS: dict[str, dict[str, Any]] = {
    "dssm": {},
    "senet": {"history_pooling": "decay", "history_features": ["category"]},
    "parallel": {"dim": 18, "history_pooling": "attention"},
    "youtube_dnn": {},
    "sequence": {"history_features": ["category"], "settings": {"width": 16, "blocks": 1, "dropout": 0.0}},
}
LOSSES = ("listwise", "pointwise", "hinge", "logistic")
K = 10


def model_of(tower: str) -> dict[str, Any]:
    return {"tower": tower, "id_dropout": 0.02, "new_user_share": 0.0, **TOWERS[tower]}


def pairs() -> list[Any]:
    """All pairs of a tower and a loss. All but the two quickest ones are slow."""
    quick = {("dssm", "listwise"), ("youtube_dnn", "logistic")}
    pairs = itertools.product(TOWERS, LOSSES)
    return [pytest.param(*pair, marks=[] if pair in quick else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("tower", "loss"), pairs())
@pytest.mark.trains
def test_recall_is_twice_that_of_popularity(tmp_path: Path, tower: str, loss: str) -> None:
    rates = {"learning_rate": 5e-3, "embedding_learning_rate": 2e-2}
    spec = toy_night.make_spec(
        tmp_path, [400] * 4, model=model_of(tower), loss={"kind": loss, "temperature": 0.1}, training=rates, epochs=3
    )
    train(spec)
    model, rows = load_checkpoint(spec.output), toy_night.sample_rows(400, seed=9)
    catalogue = Catalogue(spec.features, toy_night.item_rows())
    items = {name: values.numpy() for name, values in catalogue.gather(torch.arange(2, toy_night.ITEMS + 2)).items()}
    scores = embed_users(model, rows, catalogue) @ embed_items(model, items).T
    counts = np.bincount(toy_night.sample_rows(1600)["item_index"] - 2, minlength=toy_night.ITEMS)
    recall, popular = (
        float((np.argsort(-table, axis=1)[:, :K] == rows["item_index"][:, None] - 2).any(1).mean())
        for table in (scores, np.broadcast_to(counts, scores.shape))
    )
    assert recall > 2 * popular, f"recall@{K} {recall:.3f}, popularity {popular:.3f}"


@pytest.mark.parametrize("tower", TOWERS)
def test_training_scores_are_products_of_published_vectors(tmp_path: Path, tower: str) -> None:
    """To 1e-5, for every candidate of a batch: logits of the loss against vectors of the saved and loaded model."""
    spec = toy_night.make_spec(tmp_path, [100], model=model_of(tower))
    train(spec)
    step = build_step(spec.model_copy(update={"warm_start": spec.output})).eval()
    rows = toy_night.sample_rows(50, seed=3)
    rows["example_age"][:] = 0  # As in serving.
    batch = {name: torch.from_numpy(values) for name, values in rows.items()}
    batch |= step.catalogue.history_columns(batch["history"], step.towers.history_features)
    with torch.no_grad():
        output = step({name: torch.from_numpy(values).long() if values.dtype.kind == "i" else torch.from_numpy(values)
                       for name, values in rows.items()}, 50)  # fmt: skip
        candidates = output.candidates
        users_Bd, hard_BKd = step.towers.user_vectors(batch), torch.zeros(50, 4, spec.model.dim)
        logits = logits_of(vectors_of(users_Bd, output.items_Ud, hard_BKd, candidates, 1.0), candidates, None)
    model, catalogue = load_checkpoint(spec.output), step.catalogue
    items = {name: values.numpy() for name, values in catalogue.gather(candidates.items_U).items()}
    published = embed_users(model, rows, catalogue) @ embed_items(model, items).T
    unmasked_BU = logits.shared_BU > -1e29
    assert unmasked_BU.float().mean() > 0.5
    np.testing.assert_allclose(logits.shared_BU[unmasked_BU], published[unmasked_BU.numpy()], atol=1e-5)
    np.testing.assert_allclose(logits.positive_B, published[np.arange(50), candidates.positive_B.numpy()], atol=1e-5)


@pytest.mark.slow
def test_senet_gives_low_weights_to_uninformative_features(tmp_path: Path) -> None:
    """In the toy night only user id, history and item id depend on the blocks; all other features are random."""
    rates = {"learning_rate": 1e-2, "embedding_learning_rate": 2e-2}
    model = {"tower": "senet", "hidden": [], "id_dropout": 0.0, "new_user_share": 0.0}
    result = train(
        toy_night.make_spec(tmp_path, [400] * 4, model=model, loss={"temperature": 0.2}, training=rates, epochs=3)
    )
    weights = result.epochs[-1].weights
    assert set(weights) == {
        *(f"user.{name}" for name in ("user_id", "age", "tenure", "income", "history", "example_age")),
        *(f"item.{name}" for name in ("item_id", "category", "tags")),
    }
    assert max(weights[f"user.{name}"] for name in ("age", "tenure", "income", "example_age")) < weights["user.history"]
    assert weights["item.category"] < weights["item.item_id"]


@pytest.mark.trains
def test_channel_weights_are_not_negative_and_sum_to_one(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [200], model=model_of("parallel"), training={"learning_rate": 0.05}, epochs=3)
    reported = train(spec).epochs[-1].weights
    model = load_checkpoint(spec.output)
    weights = model.user_tower.weights()  # type: ignore[operator, union-attr]
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights >= 0).all()
    assert weights.max() - weights.min() > 0.01, "they are learned"
    assert model.user_tower.weights is model.item_tower.weights
    assert [reported[f"user.{name}"] for name in ("dnn", "fm", "dcn")] == pytest.approx(weights.tolist())
    vectors = embed_users(model, toy_night.sample_rows(9)).reshape(9, 3, 6)
    np.testing.assert_allclose((vectors**2).sum(2), np.tile(weights, (9, 1)), rtol=1e-4)

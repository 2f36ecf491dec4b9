"""A release with a recency prior: every reader returns the vectors that include it."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from model.serving.embed import embed_items, embed_users
from model.serving.export import export_towers, load_exported
from model.serving.faiss_index import build_index, save_index
from model.serving.recency_prior import with_bonus
from model.serving.release import ReleaseError
from model.serving.retriever import Retriever
from model.training.checkpoint import load_checkpoint, with_prior_scale
from tests.model import toy_night
from tests.model.serving.toy_release import update_checksums

SCALE = 1.5
BONUS = np.linspace(0, 1.2, toy_night.ITEMS - 1)  # Of the items in their order; the last ones are the most popular.

pytestmark = pytest.mark.parametrize("release", ["plain"], indirect=True)


def add_prior(folder: Path, scale: float = SCALE, bonus: np.ndarray = BONUS, factory: str = "Flat") -> None:
    """Publish a toy release again with a prior."""
    items = toy_night.item_rows()
    vectors = with_bonus(embed_items(load_checkpoint(str(folder / "model")), items)[:, :8], bonus, scale)
    index = build_index(lambda: [(items["item_index"].astype(np.int64), vectors)], 9, factory)
    save_index(index, folder / "index.faiss")
    description = folder / "model" / "model.json"
    description.write_text(with_prior_scale(description.read_text(), scale))
    set_manifest(folder, prior={"scale": scale, "largest": float(bonus.max())})
    update_checksums(folder)


def set_manifest(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_answers_rank_by_score_and_bonus(release: Path, factory: str) -> None:
    plain, requests = Retriever(str(release)), [{"user_id": n, "history": ["i3", "i9"]} for n in (2, 5)]
    scores = [dict(zip(answer.item_ids, answer.scores)) for answer in plain.retrieve(requests, toy_night.ITEMS)]
    add_prior(release, factory=factory)
    bonus = dict(zip((f"i{n}" for n in toy_night.item_rows()["item_index"]), BONUS))
    for answer, without in zip(Retriever(str(release)).retrieve(requests, 10), scores, strict=True):
        expected = sorted((value + bonus[item] for item, value in without.items()), reverse=True)[:10]
        assert answer.scores == pytest.approx(expected, abs=1e-5)
        own = [without[item] + bonus[item] for item in answer.item_ids]
        assert answer.scores == pytest.approx(own, abs=1e-5)


def test_exported_towers_return_the_component_of_the_prior(release: Path, tmp_path: Path) -> None:
    add_prior(release)
    model = load_checkpoint(str(release / "model"))
    signature = export_towers(model, tmp_path / "towers")
    rows = {"user": toy_night.sample_rows(3), "item": toy_night.item_rows()}
    expected = {"user": embed_users(model, rows["user"]), "item": embed_items(model, rows["item"])}
    assert (expected["user"][:, -1] == SCALE).all()
    assert (expected["item"][:, -1] == 0).all()  # As for items without recent positives.
    for side, wanted in expected.items():
        assert signature[side]["output"]["shape"] == ["rows", 9]
        columns = {n: torch.from_numpy(rows[side][n].astype(s["dtype"])) for n, s in signature[side]["inputs"].items()}
        vectors = load_exported(tmp_path / "towers" / f"{side}.pt2")(columns).detach().numpy()
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_parts_with_different_priors_are_refused(release: Path) -> None:
    add_prior(release)
    add_prior(release, bonus=BONUS / 2)
    Retriever(str(release))
    set_manifest(release, prior={"scale": SCALE, "largest": 1.2})
    with pytest.raises(ReleaseError, match=r"bonus of an item is 0\.6000 in the index, 1\.2000 in the manifest"):
        Retriever(str(release))
    set_manifest(release, prior=None)
    with pytest.raises(ReleaseError, match=r"component 1\.5 for the recency prior, the manifest says None"):
        Retriever(str(release))


def test_an_index_without_the_prior_is_refused(release: Path) -> None:
    without = faiss.deserialize_index(np.frombuffer((release / "index.faiss").read_bytes(), np.uint8))
    add_prior(release)
    save_index(without, release / "index.faiss")
    update_checksums(release)
    with pytest.raises(ReleaseError, match="the index has vectors of length 8, the model of 9"):
        Retriever(str(release))

"""Recall of a model on the judged users, against a plain loop over users and items."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.common.config import Config
from jobs.tuning import scoring
from jobs.tuning.judged_users import JudgedUsers
from jobs.tuning.scoring import Judge, PriorData
from model.evaluation.release_recall import HeldOutEvents
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from model.serving.recency_prior import bonus_of
from model.training.build import build_step
from pipelines.storage.manifest import digest
from tests.model import toy_night

USERS, K, GONE = 30, 4, 999
PLAIN = Config.model_validate({"loss": {"lift": False}, "prior": None})


@pytest.fixture
def towers(tmp_path: Path) -> TwoTower:
    torch.manual_seed(3)
    return build_step(toy_night.make_spec(tmp_path, [100])).towers.eval()


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    files = toy_night.write_items(tmp_path / "items", toy_night.sample_rows(100))[0]
    rng = np.random.default_rng(4)
    columns = {name: v for name, v in toy_night.sample_rows(USERS).items() if name.startswith(("user", "history"))}
    # The last item is not in the catalogue: it can be neither a target nor excluded.
    targets = [rng.choice(np.arange(2, toy_night.ITEMS + 1), 1 + user % 3, replace=False) for user in range(USERS)]
    excluded = [
        np.setdiff1d([*rng.integers(2, toy_night.ITEMS + 1, user % 9), GONE], targets[user]) for user in range(USERS)
    ]
    users = JudgedUsers(columns, targets, excluded, np.arange(USERS) % 2 == 1, "name")
    context: Any = argparse.Namespace(
        ds="2024-03-05", warehouse=argparse.Namespace(path=lambda *_: "", data_files=lambda _: files)
    )
    return Judge(context, users, K)


def plain_recall(judge: Judge, towers: TwoTower, bonus: np.ndarray) -> list[float]:
    items = toy_night.item_rows()
    scores = embed_users(towers, judge.users.columns) @ embed_items(towers, items).T + bonus
    recalls = []
    for user in range(USERS):
        ranked = [
            item
            for _, item in sorted(zip(-scores[user], items["item_index"].tolist()))
            if item not in judge.users.excluded[user]
        ]
        targets = set(judge.users.targets[user].tolist())
        recalls.append(len(targets & set(ranked[:K])) / len(targets))
    return recalls


def test_recall_is_that_of_a_plain_loop(judge: Judge, towers: TwoTower, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain_recall(judge, towers, np.zeros(1))
    assert 0 < np.mean(expected) < 1
    for cells in (scoring.CELLS, 100):  # all users at once, and a few at a time
        monkeypatch.setattr(scoring, "CELLS", cells)
        assert judge.recall(towers, PLAIN, 0.07).tolist() == expected
    assert judge.recall(towers, PLAIN, 0.07, few=True).tolist() == expected[::2], "users of the check are left out"
    monkeypatch.setattr(scoring, "FEW", 5)
    assert judge.recall(towers, PLAIN, 0.07, few=True).tolist() == expected[::6]


def test_a_prior_is_chosen_on_the_held_out_events_and_added(judge: Judge, towers: TwoTower) -> None:
    half_lives, unseen, items = [1.0, 8.0], 0.5, toy_night.item_rows()["item_index"]
    config = Config.model_validate(
        {
            "loss": {"lift": False},
            "prior": {"beta": [0, 1, 20], "half_life_days": half_lives, "unseen_count": unseen},
            "gates": {"least_users": 5, "recall_at": K},
        }
    )
    popular = np.isin(items, [3, 5, 7]).astype(float)
    counts = np.stack([popular, 9 * popular], axis=1)
    rows = toy_night.sample_rows(200, seed=9)
    rows["item_index"] = np.tile([3, 5, 7, 3], 50).astype(np.int32)  # what everybody takes
    events = HeldOutEvents(rows, np.arange(200), None)
    key = digest([half_lives, unseen])
    judge._priors[key] = PriorData(counts, counts, 8.0, events)
    strongest = bonus_of(counts[:, 1], 20, 0.07, unseen)
    assert judge.recall(towers, config, 0.07).tolist() == plain_recall(judge, towers, strongest)
    judge._priors[key] = PriorData(counts, counts, 8.0, None)
    assert judge.recall(towers, config, 0.07).tolist() == plain_recall(judge, towers, np.zeros(1)), "the smallest beta"

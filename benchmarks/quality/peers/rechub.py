"""DSSM (Huang et al., CIKM 2013) and YoutubeDNN (Covington, Adams and Sargin, RecSys 2016) of the package torch-rechub.

Both read the user's last items, mean-pooled with the item embeddings, and the user's features; DSSM also reads item features.
Shapes: E events, B rows of a batch, L history, M items. Index 0 is padding, item n has index n + 1.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.quality.peers.implicit_models import grid
from benchmarks.quality.peers.search import Setting
from benchmarks.quality.question import Question
from benchmarks.quality.ranking import by_popularity, lists_of

HISTORY = 50
EPOCHS = 30  # at most; the number is tuned
BATCH = 1024  # positives


class Batches:
    """The training rows of one epoch after another, in batches, as the package's MatchTrainer reads them.

    Each positive has negatives drawn by count^0.75. `pointwise`: one row per negative, with label 0; otherwise one row per
    positive, with the column neg_items.
    """

    def __init__(self, question: Question, negatives: int, pointwise: bool, seed: int) -> None:
        self._question, self._negatives, self._pointwise = question, negatives, pointwise
        self._rng = np.random.default_rng(seed)
        self._order = np.argsort(question.event_user, kind="stable")  # by user, then time
        self._user, self._item = question.event_user[self._order], question.event_item[self._order]
        self._start = np.searchsorted(self._user, np.arange(len(question.users)))
        self._chance = np.cumsum(question.counts() ** 0.75)

    def __len__(self) -> int:
        return -(-len(self._user) // BATCH)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        import torch

        rows = self._rng.permutation(len(self._user))
        for start in range(0, len(rows), BATCH):
            found, labels = self._batch(rows[start : start + BATCH])
            yield {name: torch.from_numpy(values) for name, values in found.items()}, torch.from_numpy(labels)

    def _batch(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        drawn = np.searchsorted(
            self._chance, self._rng.random((len(rows), self._negatives)) * self._chance[-1], "right"
        )
        users = self.users(self._user[rows], rows)
        if not self._pointwise:
            zeros = np.zeros(len(rows), np.int64)
            return users | {"item_id": self._item[rows] + 1, "neg_items": drawn + 1}, zeros
        copies = 1 + self._negatives
        items = np.concatenate([self._item[rows][:, None], drawn], axis=1).ravel()
        labels = np.zeros((len(rows), copies), np.float32)
        labels[:, 0] = 1.0
        return {name: np.repeat(v, copies, axis=0) for name, v in users.items()} | self.items(items), labels.ravel()

    def users(self, users: np.ndarray, before: np.ndarray) -> dict[str, np.ndarray]:
        """The user side: features, and the last items before the places `before` in the order of the rows."""
        places = before[:, None] - np.arange(HISTORY, 0, -1)
        inside = places >= self._start[users][:, None]
        history = np.where(inside, self._item[np.maximum(places, 0)] + 1, 0) if len(self._item) else places * 0
        features = {f"user_{name}": values[users] for name, values in self._question.user_features.items()}
        return features | {"history": history, "user_id": users}

    def now(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """The user side at the end of the past."""
        return self.users(users, np.searchsorted(self._user, users, side="right"))

    def items(self, items: np.ndarray) -> dict[str, np.ndarray]:
        """The item side."""
        features = {f"item_{name}": values[items] for name, values in self._question.item_features.items()}
        return features | {"item_id": items + 1}


def features_of(sides: dict[str, np.ndarray], width: int) -> list[Any]:
    """Features of the package for encoded columns: one value, or several with mean pooling."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature

    found: list[Any] = []
    for name, values in sides.items():
        size = int(values.max(initial=0)) + 1
        if values.ndim > 1:
            found.append(SequenceFeature(name, size, width, pooling="mean", padding_idx=0))
        else:
            found.append(SparseFeature(name, size, width))
    return found


class RecHub:
    """Common to both models: training by epochs, and lists by inner product."""

    def model_of(self, question: Question, setting: Setting) -> tuple[Any, int, int, bool]:
        """The model, the trainer's mode, negatives per positive, and whether rows are pointwise."""
        raise NotImplementedError

    def user_side(self, question: Question, width: int) -> list[Any]:
        """The id, the features and the history of the user."""
        from torch_rechub.basic.features import SequenceFeature, SparseFeature

        side = {f"user_{name}": values for name, values in question.user_features.items()}
        size = len(question.items) + 1
        history = SequenceFeature("history", size, width, pooling="mean", shared_with="item_id", padding_idx=0)
        return [SparseFeature("user_id", len(question.users), width), *features_of(side, width), history]

    def item_id(self, question: Question, width: int) -> Any:
        """The id of the item."""
        from torch_rechub.basic.features import SparseFeature

        return SparseFeature("item_id", len(question.items) + 1, width)

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """The lists after each epoch."""
        import torch
        from torch_rechub.trainers import MatchTrainer

        torch.manual_seed(seed)
        model, mode, negatives, pointwise = self.model_of(question, setting)
        rate = {"lr": setting["rate"], "weight_decay": 1e-6}
        trainer = MatchTrainer(model, mode=mode, optimizer_params=rate)
        batches = Batches(question, negatives, pointwise, seed)
        for epoch in range(1, setting["epochs"] + 1):
            with open(os.devnull, "w") as devnull, contextlib.redirect_stderr(devnull):  # a progress bar
                trainer.train_one_epoch(batches)
            if not last or epoch == setting["epochs"]:
                yield setting | {"epochs": epoch}, self.lists(question, model, batches)

    def lists(self, question: Question, model: Any, batches: Batches) -> np.ndarray:
        """Lists of the model as it is now. Users without events are ranked like all others, by their features."""
        users = _embed(model, "user", batches.now, question.asked)
        items = _embed(model, "item", batches.items, np.arange(len(question.items)))
        ties = by_popularity(question) * 1e-3
        return lists_of(question, lambda block: users[block] @ items.T + ties)


def _embed(model: Any, side: str, columns: Any, numbers: np.ndarray) -> np.ndarray:
    """[n, d] vectors of one tower."""
    import torch

    model.eval()
    model.mode = side
    with torch.no_grad():
        parts = [
            model({name: torch.from_numpy(values) for name, values in columns(part).items()}).numpy()
            for part in np.array_split(numbers, -(-len(numbers) // 4096))
        ]
    model.mode = None
    model.train()
    return np.concatenate(parts)


def tower_of(width: int) -> dict[str, Any]:
    """The layers of a tower of DSSM, with the activation of the package's example.

    With the default, relu, no cosine is negative, and towers with more negatives than positives learn nothing.
    """
    return {"dims": [2 * width, width], "activation": "prelu"}


class Dssm(RecHub):
    """Pointwise DSSM: width, negatives, learning rate and epochs are tuned."""

    def settings(self, question: Question) -> list[Setting]:
        """A random order of a grid. A score is sigmoid(cosine) > 1/4, so with more negatives all cosines would go to -1."""
        return grid(width=(32, 64), negatives=(3, 1), rate=(5e-3, 1e-3), epochs=(EPOCHS,))

    def model_of(self, question: Question, setting: Setting) -> tuple[Any, int, int, bool]:
        """Two towers."""
        from torch_rechub.models.matching import DSSM

        width = setting["width"]
        side = {f"item_{name}": values for name, values in question.item_features.items()}
        items = [self.item_id(question, width), *features_of(side, width)]
        tower = tower_of(width)
        model = DSSM(self.user_side(question, width), items, user_params=tower, item_params=tower)
        return model, 0, setting["negatives"], True


class YoutubeDnn(RecHub):
    """Sampled softmax over ids: width, temperature, negatives, learning rate and epochs are tuned."""

    def settings(self, question: Question) -> list[Setting]:
        """A random order of a grid."""
        return grid(
            width=(32, 64), temperature=(0.05, 0.1, 0.02), negatives=(50, 200), rate=(5e-3, 1e-3), epochs=(EPOCHS,)
        )

    def model_of(self, question: Question, setting: Setting) -> tuple[Any, int, int, bool]:
        """A tower of the user, and a table of items."""
        from torch_rechub.basic.features import SequenceFeature
        from torch_rechub.models.matching import YoutubeDNN

        width = setting["width"]
        size = len(question.items) + 1
        negatives = SequenceFeature("neg_items", size, width, pooling="concat", shared_with="item_id")
        model = YoutubeDNN(
            self.user_side(question, width),
            [self.item_id(question, width)],
            [negatives],
            user_params={"dims": [2 * width, width]},
            temperature=setting["temperature"],
        )
        return model, 2, setting["negatives"], False

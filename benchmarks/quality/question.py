"""The question of a night, as arrays that every model answers: past events, users, targets, items that may not be listed.

Users and items are numbered from 0; the numbers of items are the positions in a ranking. Imports numpy only, because the
virtual environments of the peers read these files too. Shapes: U users, M items (the corpus), E events, B asked users.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

Pairs = tuple[np.ndarray, np.ndarray]  # rows of asked users, positions of items
DAY = 86_400  # seconds
NO_PAIRS: Pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Question:
    """Past events, and the users whose later items are asked for.

    `days`: targets are the items of that many days after `end`; None: each user's last item. `new_only`: only items that
    are new to the user are targets, and the items that a user had (`excluded`) are in no ranking.
    """

    users: np.ndarray  # [U] ids, text
    items: np.ndarray  # [M] ids, text
    event_user: np.ndarray  # [E]
    event_item: np.ndarray  # [E]
    event_time: np.ndarray  # [E] seconds since 1970, ascending
    event_weight: np.ndarray  # [E]
    asked: np.ndarray  # [B] numbers of the asked users
    targets: Pairs
    excluded: Pairs
    end: int  # seconds since 1970: all events are before it
    days: int | None
    new_only: bool = True
    user_features: Mapping[str, np.ndarray] = field(default_factory=dict)  # [U] or [U, values], 0: no value
    item_features: Mapping[str, np.ndarray] = field(default_factory=dict)  # [M] or [M, values], 0: no value

    def save(self, path: Path) -> None:
        """Write one .npz file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NESTED}
        arrays |= {"days": np.array(-1 if self.days is None else self.days)}
        for name in ("targets", "excluded"):
            arrays[f"{name}_rows"], arrays[f"{name}_items"] = getattr(self, name)
        for side in ("user_features", "item_features"):
            arrays |= {f"{side}.{name}": values for name, values in getattr(self, side).items()}
        staging = path.with_name(f"_half-{path.name}")
        np.savez_compressed(staging, **arrays)
        staging.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Question":
        """Read a file of `save`."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        days = int(arrays["days"])
        sides = {
            side: {name.partition(".")[2]: values for name, values in arrays.items() if name.startswith(f"{side}.")}
            for side in ("user_features", "item_features")
        }
        plain = {f.name: arrays[f.name] for f in fields(cls) if f.name not in (*_NESTED, "days", "end", "new_only")}
        return cls(
            **plain,
            targets=(arrays["targets_rows"], arrays["targets_items"]),
            excluded=(arrays["excluded_rows"], arrays["excluded_items"]),
            end=int(arrays["end"]),
            days=None if days < 0 else days,
            new_only=bool(arrays["new_only"]),
            user_features=sides["user_features"],
            item_features=sides["item_features"],
        )

    @property
    def fingerprint(self) -> str:
        """A digest of what is asked: users, items, events, targets and excluded items."""
        digest = hashlib.blake2b(digest_size=8)
        for text in (self.users, self.items):
            digest.update("\n".join(text.tolist()).encode())
        for values in (self.event_user, self.event_item, self.event_time, self.asked, *self.targets, *self.excluded):
            digest.update(np.ascontiguousarray(values, np.int64).tobytes())
        return digest.hexdigest()

    def without_targets(self) -> "Question":
        """The same question without its answers, for models that are not to see them."""
        return replace(self, targets=NO_PAIRS)

    def counts(self) -> np.ndarray:
        """[M] the number of past events of each item."""
        return np.bincount(self.event_item, minlength=len(self.items))


_NESTED = ("targets", "excluded", "user_features", "item_features")


def validation_tail(question: Question, most_users: int = 2000) -> Question:
    """The same question, asked of the last part of the past events. Targets of the question itself are not read.

    With `days`: the events of the last `days` days become targets, and the earlier ones are the past. Otherwise the last item
    of each user with two items becomes its target. At most `most_users` users are asked, evenly spaced in their order.
    """
    past, later = _split_days(question) if question.days is not None else _split_last(question)
    items = len(question.items)
    wanted = np.unique(question.event_user[later] * items + question.event_item[later])
    known = np.unique(question.event_user[past] * items + question.event_item[past])
    if question.new_only:
        wanted = np.setdiff1d(wanted, known, assume_unique=True)
    asked = np.unique(wanted // items)
    if len(asked) > most_users:
        asked = asked[np.linspace(0, len(asked) - 1, most_users).astype(int)]
    end = question.end - (question.days or 0) * DAY
    return replace(
        question,
        **{name: getattr(question, name)[past] for name in ("event_user", "event_item", "event_time", "event_weight")},
        asked=asked,
        targets=_pairs(wanted, asked, items),
        excluded=_pairs(known, asked, items) if question.new_only else NO_PAIRS,
        end=end,
    )


def _split_days(question: Question) -> tuple[np.ndarray, np.ndarray]:
    assert question.days is not None
    later = question.event_time >= question.end - question.days * DAY
    return ~later, later


def _split_last(question: Question) -> tuple[np.ndarray, np.ndarray]:
    """The past is without all events of the last item, so that a repeated item is not in it."""
    user, item = question.event_user, question.event_item
    order = np.lexsort((item, question.event_time, user))
    is_last = np.ones(len(order), bool)
    is_last[:-1] = user[order][1:] != user[order][:-1]
    last_item = np.full(len(question.users), -1, np.int64)
    last_item[user[order][is_last]] = item[order][is_last]
    later = item == last_item[user]
    others = np.bincount(user[~later], minlength=len(question.users))
    later &= others[user] > 0
    return ~later, later


def _pairs(keys: np.ndarray, asked: np.ndarray, items: int) -> Pairs:
    """Keys (user x items + item) of asked users as (row, item)."""
    users = keys // items
    row = np.minimum(np.searchsorted(asked, users), max(len(asked) - 1, 0))
    chosen = asked[row] == users if len(asked) else np.zeros(len(keys), bool)
    return row[chosen], (keys % items)[chosen]

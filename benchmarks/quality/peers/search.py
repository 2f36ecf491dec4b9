"""Tunes a peer on the validation tail, and lists items with the chosen setting. Runs in the peer's virtual environment.

    python -m benchmarks.quality.peers.search tune PEER PAST.npz OUT.json --seconds 600
    python -m benchmarks.quality.peers.search rank PEER PAST.npz OUT.npz --setting JSON --seed 1

PAST.npz is a question without targets: what a peer is tuned on can only be the past.
"""

import argparse
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.quality.peers import PEERS
from benchmarks.quality.question import Question, validation_tail
from model.evaluation.ranking_metrics import ranking_metrics

Setting = dict[str, Any]
K = 50  # tuned for Recall@K
PATIENCE = 3  # a trial ends after so many results in a row that are no better than its best one


class Peer(Protocol):
    """A model with settings to choose from."""

    def settings(self, question: Question) -> list[Setting]:
        """The settings to try, the usual ones first. A value may be a list or a largest number of epochs, see `rankings`."""

    def rankings(
        self, question: Question, setting: Setting, seed: int, last: bool
    ) -> Iterator[tuple[Setting, np.ndarray]]:
        """Fit, and yield final settings with their lists [B, 100]. One fit may yield many, e.g. one per epoch.

        `last`: yield only the last one. Given a final setting, it is the last one.
        """


def load_peer(name: str) -> Peer:
    """The peer of a name. Imports its libraries."""
    file = PEERS[name]
    peer: Peer = getattr(importlib.import_module(f"benchmarks.quality.peers.{file.module}"), file.name)()
    return peer


def recall(question: Question, lists: np.ndarray) -> float:
    """Mean Recall@K over users with targets."""
    metrics = ranking_metrics(lists, question.targets, len(question.items), [K])
    return float(np.nanmean(metrics["recall"]))


def tune(peer: Peer, past: Question, seconds: float, seed: int = 1, most_items: int | None = None) -> dict[str, Any]:
    """Try settings in turn until the time is over, at least one. Returns the best one, and everything that was tried.

    Epochs and other results of one fit are tried until PATIENCE of them are no better. `most_items`: at most so many items
    for settings that limit them, because a fit cannot be stopped.
    """
    started = time.perf_counter()
    tail = validation_tail(past)
    tried: list[dict[str, Any]] = []

    def over() -> bool:
        return bool(tried) and time.perf_counter() - started > seconds

    for setting in peer.settings(tail):
        if over():
            break
        if most_items and "items" in setting:
            setting = setting | {"items": min(setting["items"], most_items)}
        best, worse = -1.0, 0
        for final, lists in peer.rankings(tail, setting, seed, last=False):
            tried.append({"setting": final, "recall": recall(tail, lists)})
            worse = 0 if tried[-1]["recall"] > best else worse + 1
            best = max(best, tried[-1]["recall"])
            if over() or worse >= PATIENCE:
                break
    chosen = max(tried, key=lambda trial: trial["recall"])
    shown = {"days": past.days} if past.days is not None else {"last": "each user's last remaining item"}
    return {
        "setting": chosen["setting"],
        "recall": chosen["recall"],
        "tried": tried,
        "seconds": time.perf_counter() - started,
        "tail": shown | {"from": tail.end, "to": past.end, "users": len(tail.asked), "targets": len(tail.targets[0])},
    }


def rank(peer: Peer, past: Question, setting: Setting, seed: int) -> np.ndarray:
    """The lists of a peer that was fitted on the whole past with a final setting."""
    *_, (_, lists) = peer.rankings(past, setting, seed, last=True)
    return lists


def main() -> None:
    """Tune or rank."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("step", choices=["tune", "rank"])
    flags.add_argument("peer", choices=list(PEERS))
    flags.add_argument("past", type=Path)
    flags.add_argument("out", type=Path)
    flags.add_argument("--seconds", type=float, default=600)
    flags.add_argument("--most-items", type=int)
    flags.add_argument("--setting", type=json.loads, default={})
    flags.add_argument("--seed", type=int, default=1)
    options = flags.parse_args()
    peer, past = load_peer(options.peer), Question.load(options.past)
    if options.step == "tune":
        found = tune(peer, past, options.seconds, options.seed, options.most_items)
        options.out.write_text(json.dumps(found, indent=1))
    else:
        np.savez_compressed(options.out, lists=rank(peer, past, options.setting, options.seed).astype(np.int32))


if __name__ == "__main__":
    main()

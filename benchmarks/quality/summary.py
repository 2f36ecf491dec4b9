"""The figures of all worlds in a store, and what they say: in which worlds we are ahead of every peer, and by how much."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.quality.figures import (
    KS,
    SLICES,
    Interval,
    Metrics,
    bootstrap,
    coverage_of,
    mean_over_seeds,
    metrics_of,
    pooled,
)
from benchmarks.quality.ours import LEARNABLE, LEARNED, REACHABLE, TRUTHS
from benchmarks.quality.peers import PEERS
from benchmarks.quality.question import Question
from benchmarks.quality.store import Answer, Store
from benchmarks.quality.variants import OURS, TUNED
from benchmarks.quality.worlds import EASY_ONLY, WORLDS
from benchmarks.support import say
from model.evaluation.ranking_metrics import METRICS

HEADLINE = ("recall", "all", 50)
# Differences have an interval for these figures.
COMPARED = [(metric, "all", k) for metric in METRICS for k in KS] + [("recall", part, 50) for part in SLICES[1:]]


class WorldFigures:
    """The figures of one world: per-user metrics of each model and night, averaged over seeds."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self.questions: dict[str, Question] = {}
        self.metrics: dict[str, dict[str, Metrics]] = {}  # model -> night
        self.coverage: dict[str, list[float]] = {}
        self.facts: dict[str, list[dict[str, Any]]] = {}
        self.settings = {model: setting for model in PEERS if (setting := store.setting(name, model))}
        for night in store.nights(name):
            question = store.question(name, night)
            assert question is not None
            self.questions[night] = question
            for model, answers in store.answers(name, night).items():
                self._add(night, model, question, answers)

    def _add(self, night: str, model: str, question: Question, answers: dict[int, Answer]) -> None:
        fingerprint = question.fingerprint
        valid = [answer for answer in answers.values() if answer.facts["question"] == fingerprint]
        if len(valid) < len(answers):
            say(f"{self.name} {night}: {model} has answers to an older question, which are left out")
        if valid:
            runs = [metrics_of(question, answer.lists) for answer in valid]
            self.metrics.setdefault(model, {})[night] = mean_over_seeds(runs)
            shares = [coverage_of(answer.lists, len(question.items)) for answer in valid]
            self.coverage.setdefault(model, []).extend(shares)
            self.facts.setdefault(model, []).extend(answer.facts for answer in valid)

    def mean(self, model: str, key: tuple[str, str, int] = HEADLINE) -> float:
        """The mean of a figure over the users of all nights of a model."""
        if model not in self.metrics:
            return math.nan
        values = pooled(self.metrics[model], key, sorted(self.metrics[model]))
        return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan

    def difference(self, one: str, other: str, key: tuple[str, str, int] = HEADLINE) -> Interval:
        """`one` minus `other` on the nights that both have; the users are resampled with all of their nights."""
        nights = sorted(set(self.metrics[one]) & set(self.metrics[other]))
        if not nights:
            return Interval(math.nan, math.nan, math.nan)
        values = pooled(self.metrics[one], key, nights) - pooled(self.metrics[other], key, nights)
        users = [self.questions[night].users[self.questions[night].asked] for night in nights]
        return bootstrap(values, np.concatenate(users))

    @property
    def peers(self) -> list[str]:
        """The peers that have answers."""
        return [peer for peer in PEERS if peer in self.metrics]

    def figures_of(self, model: str) -> dict[str, Any]:
        """All figures of a model, for JSON."""
        means = {
            metric: {part: {str(k): self.mean(model, (metric, part, k)) for k in KS} for part in SLICES}
            for metric in METRICS
        }
        facts = self.facts[model]
        return means | {
            "coverage": float(np.mean(self.coverage[model])),
            "nights": sorted(self.metrics[model]),
            "seeds": sorted({fact["seed"] for fact in facts}),
            "seconds": float(np.mean([fact.get("seconds", math.nan) for fact in facts])),
            "commits": sorted({fact.get("commit", "") for fact in facts}),
        }

    def compared(self, one: str, other: str) -> dict[str, dict[str, float]]:
        """Differences with intervals, by figure (recall_at_50, recall_at_50.tail)."""
        return {name_of(key): self.difference(one, other, key).as_dict() for key in COMPARED}


def name_of(key: tuple[str, str, int]) -> str:
    """The name of a figure, as in MLflow: recall_at_50, recall_at_50.tail."""
    metric, part, k = key
    return f"{metric}_at_{k}" + ("" if part == "all" else f".{part}")


def figures_of_worlds(store: Store, worlds: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The figures of each world of a store (default: all), by name, as in the JSON."""
    names = [name for name in store.worlds() if not worlds or name in worlds]
    return {name: plain(_world(WorldFigures(store, name))) for name in names}


def summarise(worlds: dict[str, dict[str, Any]], left_out: dict[str, str]) -> dict[str, Any]:
    """The summary over the figures of worlds, and these. `left_out`: worlds without figures, and why."""
    worlds = dict(sorted(worlds.items()))
    with_ours = {name: world for name, world in worlds.items() if OURS in world["models"]}
    simulated = {n: world for n, world in with_ours.items() if n in WORLDS and WORLDS[n].simulated}
    ahead = [name for name, world in with_ours.items() if _is_ahead(world["ours_minus_peer"])]
    behind = [name for name, world in with_ours.items() if _is_behind(world)]
    tail = ("recall", "tail", 50)
    gains = {n: world["variant_minus_ours"].get(EASY_ONLY) for n, world in simulated.items()}
    return {
        "worlds_ahead": len(ahead),
        "worlds_behind": len(behind),
        "tuned_worlds_ahead": sum(_is_ahead(world.get("tuned_minus_peer", {})) for world in worlds.values()),
        "ahead": ahead,
        "behind": behind,
        "peers_missing": {n: [peer for peer in PEERS if peer not in world["models"]] for n, world in with_ours.items()},
        "reachable_share": _ratios(simulated, REACHABLE),
        "learnable_share": _ratios(simulated, LEARNABLE),
        "learned_share": _ratios(simulated, LEARNED),
        "tail_over_item_cf": _ratios(simulated, "item_cf", tail),
        "hard_negatives_gain": {n: _reversed(gain[name_of(HEADLINE)]) for n, gain in gains.items() if gain},
        "left_out": left_out,
        "worlds": worlds,
    }


def _is_ahead(less_peers: dict[str, dict[str, dict[str, float | None]]]) -> bool:
    """Whether Recall@50 is certainly above that of every peer, given the differences to each."""
    lows = [differences[name_of(HEADLINE)]["low"] for differences in less_peers.values()]
    return bool(lows) and all(low is not None and low > 0 for low in lows)


def _is_behind(world: dict[str, Any]) -> bool:
    """Whether our Recall@50 is certainly below that of the best peer."""
    less_peers = world["ours_minus_peer"]
    if not less_peers:
        return False
    best = max(less_peers, key=lambda peer: _mean(world, peer) or 0)
    high = less_peers[best][name_of(HEADLINE)]["high"]
    return high is not None and high < 0


def _mean(world: dict[str, Any], model: str, key: tuple[str, str, int] = HEADLINE) -> float | None:
    metric, part, k = key
    value: float | None = world["models"][model][metric][part][str(k)]
    return value


def _ratios(
    worlds: dict[str, dict[str, Any]], other: str, key: tuple[str, str, int] = HEADLINE
) -> dict[str, float | None]:
    """A figure of ours / that of another model, in the worlds that have it; None if that is 0 or unknown."""
    return {
        name: (_mean(world, OURS, key) or 0) / divisor if (divisor := _mean(world, other, key)) else None
        for name, world in worlds.items()
        if other in world["models"]
    }


def _reversed(interval: dict[str, float]) -> dict[str, float]:
    """The interval of the difference with its sides exchanged."""
    return {"mean": -interval["mean"], "low": -interval["high"], "high": -interval["low"]}


def _world(world: WorldFigures) -> dict[str, Any]:
    """Everything about a world: the questions, all models, and differences of ours to each of them."""
    others = [model for model in world.metrics if model != OURS]
    ours = OURS in world.metrics
    variants = [model for model in others if model not in (*PEERS, *TRUTHS)]
    found: dict[str, Any] = {
        "questions": {night: described(question) for night, question in world.questions.items()},
        "models": {model: world.figures_of(model) for model in world.metrics},
        "ours_minus_peer": {peer: world.compared(OURS, peer) for peer in world.peers} if ours else {},
        "variant_minus_ours": {variant: world.compared(variant, OURS) for variant in variants} if ours else {},
        "tuning": {
            peer: {name: setting[name] for name in ("setting", "recall", "night", "minutes", "seconds", "tail")}
            | {"tried": len(setting["tried"])}
            for peer, setting in world.settings.items()
        },
    }
    if TUNED in world.metrics:
        found["tuned_minus_peer"] = {peer: world.compared(TUNED, peer) for peer in world.peers}
    return found


def described(question: Question) -> dict[str, Any]:
    """The size of a question."""
    return {
        "users": len(question.asked),
        "targets": len(question.targets[0]),
        "items": len(question.items),
        "past_events": len(question.event_user),
        "days": question.days,
    }


def page_of(summary: dict[str, Any]) -> str:
    """The Markdown file beside the JSON."""
    about = f"Written by `{summary['command']}`, commit {summary['commit']}: docs/quality.md says how to read it."
    if kept := summary.get("kept"):
        about += f" The figures of {', '.join(kept)} are of earlier runs, whose commits are in the JSON."
    return f"# Retrieval quality\n\n{about}\n\n{table_of(summary)}\n"


def table_of(summary: dict[str, Any]) -> str:
    """A table in Markdown: one line per world and model with Recall@50, NDCG@50, slices, coverage, and the difference to ours.

    `summary`: with null for NaN, as in the JSON.
    """
    lines = [
        "| world | model | Recall@50 | NDCG@50 | " + " | ".join(SLICES[1:]) + " | coverage | Recall@50 less ours |"
    ]
    lines.append("|---" * (len(SLICES) + 5) + "|")
    for name, world in summary["worlds"].items():
        for model, figures in sorted(world["models"].items(), key=lambda pair: -(pair[1]["recall"]["all"]["50"] or 0)):
            cells = [figures["recall"]["all"]["50"], figures["ndcg"]["all"]["50"]]
            cells += [figures["recall"][part]["50"] for part in SLICES[1:]] + [figures["coverage"]]
            numbers = " | ".join("" if cell is None else f"{cell:.4f}" for cell in cells)
            lines.append(f"| {name} | {model} | {numbers} | {_less_ours(world, model)} |")
    return "\n".join(lines)


def _less_ours(world: dict[str, Any], model: str) -> str:
    if model in world["variant_minus_ours"]:
        found = world["variant_minus_ours"][model]["recall_at_50"]
        return f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
    if model in world["ours_minus_peer"]:
        found = world["ours_minus_peer"][model]["recall_at_50"]
        return f"{-found['mean']:+.4f} ({-found['high']:+.4f} to {-found['low']:+.4f})"
    return ""


def plain(value: Any) -> Any:
    """The value with rounded numbers, and null for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value

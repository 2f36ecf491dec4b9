"""Gates that measure a release on held-out events, against the release in use, popularity, and past nights."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.common.config import Gates
from jobs.common.runner import Context, log
from jobs.night.steps import open_night
from jobs.release.heldout import events_of, examined, held_out_since
from jobs.release.item_embeddings import vector_batches
from jobs.release.recency_prior import index_before_holdout
from jobs.release.release_id import release_id_at
from jobs.release.store import folder_of
from jobs.release.verdict import Gate, verdict_of
from model.evaluation.release_recall import (
    HeldOutEvents,
    RecallResult,
    measure_ranking_recall,
    recall_loss_bound,
    recall_ratio,
)
from model.serving.release import Release
from pipelines.contract.indices import DEFAULT
from pipelines.day_events import popular_items
from pipelines.storage.dates import days_back
from pipelines.storage.manifest import digest


@dataclass(frozen=True)
class Comparison:
    """The gates that were checked, notes on those that were not, and the figures that later nights compare with."""

    gates: list[Gate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None


def compare(context: Context, release: Release, before: Release | None) -> Comparison:
    """Measure a release, and `before` (the one in use), on the events of the last `positives.valid_hours` of ds."""
    config, seed = context.config.gates, context.config.seed
    since = held_out_since(context)
    if since is None:
        return _not_compared(
            context, "training uses every event, so none is left for a comparison: set positives.valid_hours"
        )
    events = events_of(context, since)
    if events is None:
        return _not_compared(context, f"no event after {since} (UTC) to compare on")
    unknown = float((events.columns["user_index"] == DEFAULT).mean())
    compared = Comparison(
        [
            Gate(
                "unknown_users",
                unknown,
                config.unknown_users,
                False,
                f"Share of the {len(events.owners_B):,} held-out events whose user has no index. Above: check the user ids in "
                "interactions.",
            )
        ]
    )
    if events.users < config.least_users:
        _note(
            context, compared,
            f"{events.users} users have events after {since} (UTC), fewer than gates.least_users = {config.least_users}: too "
            "few to compare releases; recall_loss, coverage, beats_popularity and slow_loss pass unchecked",
        )  # fmt: skip
        return compared
    earlier = index_before_holdout(context, release, lambda: vector_batches(context), seed)
    now = examined(release, events, config.recall_at, earlier)
    if before is not None:
        then = examined(before, events, config.recall_at)
        compared.gates.extend(_recall(now, then, before, config, seed))
    days, popular = _popularity(context, events, since)
    compared.gates.append(_beats_popularity(now, popular, days, config, seed))
    return _slow(context, compared, now, popular)


def _not_compared(context: Context, why: str) -> Comparison:
    compared = Comparison()
    _note(
        context, compared, f"{why}; recall_loss, coverage, unknown_users, beats_popularity and slow_loss pass unchecked"
    )
    return compared


def _note(context: Context, compared: Comparison, note: str) -> None:
    log.warning("publish_items %s: %s", context.ds, note)
    compared.notes.append(note)


def _recall(now: RecallResult, then: RecallResult, before: Release, config: Gates, seed: int) -> Iterator[Gate]:
    certain_loss = recall_loss_bound(then.by_user(), now.by_user(), config.bootstrap_samples, seed)
    share = certain_loss / then.recall if then.recall else 0.0
    yield Gate(
        "recall_loss", share, config.recall_loss, False,
        f"Share of Recall@{config.recall_at} certainly lost against {before.release_id}, on held-out events of "
        f"{len(now.by_user()):,} users: {now.recall:.4f} now, {then.recall:.4f} before.",
    )  # fmt: skip
    yield Gate(
        "coverage", now.coverage / then.coverage if then.coverage else 1.0, config.coverage, True,
        f"{now.coverage:.2%} of the items are among the best {config.recall_at} of some user, {then.coverage:.2%} before. "
        "Below: few items displace the others.",
    )  # fmt: skip


def _popularity(context: Context, events: HeldOutEvents, since: str) -> tuple[int, RecallResult]:
    """The window (days) of recent popularity with the highest recall on the events, and that recall; ties: the shortest.

    Popularity is counted up to `since`.
    """
    k, windows = context.config.gates.recall_at, sorted(context.config.evaluation.popularity_days)
    most = k + max(map(len, events.excluded), default=0) if events.excluded is not None else k
    rows = popular_items(open_night(context), windows, most, since=since).sort("window_days", "rank").collect()
    rankings = {
        days: np.array([row["item_index"] for row in rows if row["window_days"] == days], np.int64) for days in windows
    }
    results = {days: measure_ranking_recall(items, events, "item_index", k) for days, items in rankings.items()}
    best = max(windows, key=lambda days: results[days].recall)
    return best, results[best]


def _beats_popularity(now: RecallResult, popular: RecallResult, days: int, config: Gates, seed: int) -> Gate:
    certain_loss = recall_loss_bound(popular.by_user(), now.by_user(), config.bootstrap_samples, seed)
    share = certain_loss / popular.recall if popular.recall else 0.0
    return Gate(
        "beats_popularity", share, config.beats_popularity, False,
        f"Share of popularity's Recall@{config.recall_at} that the model certainly lacks, on held-out events of "
        f"{len(now.by_user()):,} users: model {now.recall:.4f}, recent popularity {popular.recall:.4f} (over {days} days, the "
        "best window of evaluation.popularity_days). Above: popularity is better; check the loss, the features and the "
        "training days.",
    )  # fmt: skip


def _slow(context: Context, compared: Comparison, now: RecallResult, popular: RecallResult) -> Comparison:
    """Gate slow_loss: whether small losses have added up over the last nights.

    Recall of every ranking varies from day to day with what users do. Nights are therefore compared by the ratio of the
    model's recall to popularity's recall on the same events. Only certain losses count: the upper end of tonight's interval
    against the highest lower end of earlier nights.
    """
    config = context.config.gates
    ratio = recall_ratio(now.by_user(), popular.by_user(), config.bootstrap_samples, context.config.seed)
    if ratio is None:
        _note(context, compared, "recent popularity recalls hardly any held-out event: slow_loss passes unchecked")
        return compared
    value, low, high = ratio
    measured = _measured(context)
    record = {"ratio": value, "low": low, "high": high, "measured": measured}
    best = max(_records(context, measured), key=lambda record: record[1], default=None)
    if best is not None:
        compared.gates.append(
            Gate(
                "slow_loss",
                1 - high / best[1],
                config.slow_loss,
                False,
                f"Share certainly lost against {best[0]}, the best of the last {config.slow_nights} nights. The ratio of "
                f"Recall@{config.recall_at} to popularity's is {value:.3g} now (at most {high:.3g}) and was at least "
                f"{best[1]:.3g}. Above: small losses have added up; go back to that night's release, or train anew.",
            )
        )
    return Comparison(compared.gates, compared.notes, record)


def _records(context: Context, measured: str) -> Iterator[tuple[str, float]]:
    """(night, lower end of its ratio) for the last nights of this lineage whose releases passed all gates."""
    warehouse = context.warehouse
    lineage = warehouse.require("models", context.ds, "").lineage
    for ds in days_back(context.ds, context.config.gates.slow_nights + 1)[:-1]:
        model, release_id = warehouse.manifest("models", ds), release_id_at(warehouse, ds)
        if model is None or release_id is None or model.lineage != lineage:
            continue
        verdict = verdict_of(context, folder_of(warehouse, release_id))
        if verdict is None or verdict.record is None or verdict.refusal():
            continue
        if verdict.record["measured"] == measured:
            yield ds, float(verdict.record["low"])


def _measured(context: Context) -> str:
    """A digest of the settings that two records must share to be comparable."""
    config, evaluation = context.config, context.config.evaluation
    settings = [config.gates.recall_at, config.positives.valid_hours]
    return digest([*settings, evaluation.new_items_only, sorted(evaluation.popularity_days)])

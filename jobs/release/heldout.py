"""Measures releases on events of a day: on held-out events for the gates, on all events before training for MLflow."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from jobs.common.runner import Context, log
from jobs.night.steps import open_night
from jobs.release.store import comparable_release, current_release, night_of
from jobs.tracking.tracker import Tracker
from model.evaluation.release_recall import HeldOutEvents, RecallResult, measure_recall, recall_loss_bound
from model.serving.coherence import check_parts, read_ids
from model.serving.embed import history_catalogue
from model.serving.faiss_index import load_index
from model.serving.release import INDEX, ITEMS, MODEL, Release
from model.training.checkpoint import load_checkpoint
from pipelines.day_events import day_events

if TYPE_CHECKING:
    import pandas as pd


def held_out_since(context: Context) -> str | None:
    """The time (UTC) at which the held-out part of ds begins, its last `positives.valid_hours`; None if there is none."""
    hours = context.config.positives.valid_hours
    if not hours:
        return None
    end = datetime.fromisoformat(context.ds) + timedelta(days=1)
    return (end - timedelta(seconds=int(hours * 3600))).isoformat(" ")


def events_of(context: Context, since: str | None = None) -> HeldOutEvents | None:
    """Events of ds (from `since` on, UTC), at most `gates.held_out` of them; None if there are none.

    With evaluation.new_items_only, rankings leave out items that the user already has, and events of such items do not
    count.
    """
    config = context.config
    new_only = config.evaluation.new_items_only
    frame = day_events(
        open_night(context), config.features, config.gates.held_out, since=since, new_items_only=new_only
    ).toPandas()
    if frame.empty:
        return None
    excluded = [np.asarray(items, np.int64) for items in frame["had"]] if new_only else None
    owners = np.unique(frame["user_id"].to_numpy(str), return_inverse=True)[1]
    columns = {name: _array(frame[name]) for name in frame.columns if name not in ("user_id", "had")}
    return HeldOutEvents(columns, owners, excluded)


def _array(column: "pd.Series[Any]") -> np.ndarray:
    """Numbers as an array [rows], lists of equal length as an array [rows, length]."""
    values = column.to_numpy()
    return np.stack([np.asarray(value) for value in values]) if values.dtype == object else values


def examined(release: Release, events: HeldOutEvents, k: int, replaced: faiss.Index | None = None) -> RecallResult:
    """The recall of a release on events, with the index and towers that serve. Raises ReleaseError if it is damaged.

    `replaced`: an index to search instead of that of the release, once the release has been checked.
    """
    release.files(MODEL)
    model = load_checkpoint(f"{release.uri}/{MODEL}")
    catalogue = history_catalogue(model, release.files(ITEMS))
    index = load_index(release.files(INDEX)[0])
    check_parts(release, model, index, read_ids(release))
    return measure_recall(model, replaced or index, events, k, catalogue)


def test_then_train(context: Context, tracker: Tracker) -> float | None:
    """Measure the release in use on the events of ds before any training on them, and log its recall. Returns it.

    So every event serves once as a test (prequential evaluation: Dawid, 1984; Gama et al., 2013), and one chart shows all
    nights. Returns None if no release is comparable (`comparable_release`).
    """
    current = comparable_release(context)
    if current is None:
        return None
    events = events_of(context)
    if events is None:
        return None
    k = context.config.gates.recall_at
    recall = examined(current, events, k).recall
    tracker.record(f"test_then_train.recall_at_{k}", recall)
    log.info("train %s: release %s had Recall@%d %.4f on this day", context.ds, current.release_id, k, recall)
    return recall


def test_update(context: Context, tracker: Tracker) -> dict[str, float]:
    """Measure the release in use on the events of an update within the day, before any training on them, and log it.

    Returns `recall` of the release in use. If that is an update, also `night`, the recall of the night's release that it
    continues from, and `loss`, the recall that it has certainly lost against that release.
    """
    current = current_release(context)
    events = events_of(context)
    if current is None or events is None:
        return {}
    config = context.config.gates
    night, k = night_of(context, current), config.recall_at
    result = examined(current, events, k)
    measured = {"recall": result.recall}
    if night.release_id != current.release_id:
        without = examined(night, events, k)
        certain_loss = recall_loss_bound(
            without.by_user(), result.by_user(), config.bootstrap_samples, context.config.seed
        )
        measured |= {"night": without.recall, "loss": certain_loss}
    tracker.record(f"within_day.recall_at_{k}", measured["recall"])
    tracker.record(f"within_day.night.recall_at_{k}", measured.get("night", measured["recall"]))
    beside = f", that of the night {measured['night']:.4f}" if "night" in measured else ""
    log.info(
        "train %s: release %s had Recall@%d %.4f on these events%s",
        context.ds,
        current.release_id,
        k,
        result.recall,
        beside,
    )
    return measured

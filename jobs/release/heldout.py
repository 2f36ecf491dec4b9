"""Releases on events of a day: those held out of training for the gates, all of them before training for the record."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.common.runner import Context, log
from jobs.night.steps import open_night
from jobs.release.store import comparable_release, current_release, night_of
from jobs.tracking.tracker import Tracker
from model.data.catalogue import Catalogue
from model.evaluation.release_recall import HeldOutEvents, RecallResult, measure_recall, recall_loss_bound
from model.serving.coherence import check_parts, read_ids
from model.serving.faiss_index import load_index
from model.serving.release import INDEX, ITEMS, MODEL, Release
from model.training.checkpoint import load_checkpoint
from pipelines.day_events import day_events

if TYPE_CHECKING:
    import pandas as pd


def events_of(context: Context, since: str | None = None) -> HeldOutEvents | None:
    """Events of ds as they happened (from `since` on, UTC), as many as `gates.held_out` says; None if there are none.

    A ranking leaves out what the user had, and an event of such an item does not count, unless evaluation.new_items_only
    is off.
    """
    config = context.config
    new_only = config.evaluation.new_items_only
    frame = day_events(
        open_night(context), config.features, config.gates.held_out, since=since, new_items_only=new_only
    ).toPandas()
    if frame.empty:
        return None
    had = [np.asarray(items, np.int64) for items in frame["had"]] if new_only else None
    owners = np.unique(frame["user_id"].to_numpy(str), return_inverse=True)[1]
    columns = {name: _array(frame[name]) for name in frame.columns if name not in ("user_id", "had")}
    return HeldOutEvents(columns, owners, had)


def _array(column: "pd.Series[Any]") -> np.ndarray:
    """Numbers as [rows], lists of equal length as [rows, length]."""
    values = column.to_numpy()
    return np.stack([np.asarray(value) for value in values]) if values.dtype == object else values


def examined(release: Release, events: HeldOutEvents, k: int) -> RecallResult:
    """A release on events, as it is served. ReleaseError where it is damaged."""
    release.files(MODEL)
    model = load_checkpoint(f"{release.uri}/{MODEL}")
    catalogue = Catalogue.read(model.schema, release.files(ITEMS)) if model.history_features else None
    index = load_index(release.files(INDEX)[0])
    check_parts(release, model, index, read_ids(release))
    return measure_recall(model, index, events, k, catalogue)


def test_then_train(context: Context, tracker: Tracker) -> float | None:
    """Record how the release in use does on the events of ds, before anything is trained on them. Returns its recall.

    So every event is once a test (prequential evaluation: Dawid, 1984; Gama et al., 2013), and one chart shows the nights.
    None where there is no release that could be asked (`comparable_release`).
    """
    current = comparable_release(context)
    if current is None:
        return None
    events = events_of(context)
    if events is None:
        return None
    k = context.config.gates.recall_at
    found = examined(current, events, k)
    tracker.record(f"test_then_train.recall_at_{k}", found.recall)
    log.info("train %s: release %s had Recall@%d %.4f on this day", context.ds, current.release_id, k, found.recall)
    return found.recall


def test_update(context: Context, tracker: Tracker) -> dict[str, float]:
    """Record how the release in use does on the events of an update within the day, before anything is trained on them.

    Returns `recall` of the release in use; where that is an update itself, also `night`, the recall of the night's release
    that it goes on from, and `loss`, what it has certainly lost against that.
    """
    current = current_release(context)
    events = events_of(context)
    if current is None or events is None:
        return {}
    config = context.config.gates
    night, k = night_of(context, current), config.recall_at
    found = examined(current, events, k)
    told = {"recall": found.recall}
    if night.release_id != current.release_id:
        without = examined(night, events, k)
        surely = recall_loss_bound(without.by_user(), found.by_user(), config.bootstrap_samples, context.config.seed)
        told |= {"night": without.recall, "loss": surely}
    tracker.record(f"within_day.recall_at_{k}", told["recall"])
    tracker.record(f"within_day.night.recall_at_{k}", told.get("night", told["recall"]))
    beside = f", that of the night {told['night']:.4f}" if "night" in told else ""
    log.info(
        "train %s: release %s had Recall@%d %.4f on these events%s",
        context.ds,
        current.release_id,
        k,
        found.recall,
        beside,
    )
    return told

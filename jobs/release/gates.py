"""Gates: conditions that a release must meet before it becomes the current one."""

import json
import statistics
from collections.abc import Iterator

from jobs.common.config import Gates
from jobs.common.runner import Context
from jobs.release.comparison import Comparison, compare
from jobs.release.store import GATES, comparable_release, current_release
from jobs.release.verdict import Gate, Verdict, read_verdict, write_verdict
from model.serving.release import Release
from pipelines.contract.errors import NightjarError
from pipelines.drift import NIGHTS_BEFORE
from pipelines.samples.packing import positives_in
from pipelines.storage.dates import days_back, shift
from pipelines.storage.manifest import Manifest, digest


class GateError(NightjarError):
    """A gate refused the release (exit 4)."""

    exit_code = 4


def judge(context: Context, release: Release) -> Verdict:
    """Check all gates of a release.

    The verdict is stored with the release and reused until the tolerances change, or the release that it is compared with.
    """
    current = current_release(context)
    before = comparable_release(context)
    asked = digest([context.config.gates.model_dump(mode="json"), before.release_id if before else None])
    uri = f"{release.uri}/{GATES}"
    if context.warehouse.exists(uri) and not context.force:
        stored = json.loads(context.warehouse.read_text(uri))
        published = current is not None and current.release_id == release.release_id
        if published or stored["asked"] == asked:
            return read_verdict(stored)
    compared = Comparison()
    if not context.warehouse.update:  # An update trains on all events, so none is held out.
        compared = compare(context, release, before)
    against = before.release_id if before else None
    verdict = Verdict([*_gates(context, release), *compared.gates], against, compared.notes, compared.record)
    write_verdict(context, release.uri, verdict, asked)
    return verdict


def _gates(context: Context, release: Release) -> Iterator[Gate]:
    config, warehouse, ds = context.config.gates, context.warehouse, context.ds
    samples, model = warehouse.require("samples", ds, ""), warehouse.require("models", ds, "")
    # A bootstrap is not comparable with the night before.
    last = None if samples.facts["bootstrap_days"] else warehouse.manifest("models", shift(ds, -1))
    if warehouse.update:
        yield from _before_update(context, model)
    else:
        yield from _rows(context, samples, config)
        yield from _day(context, model, config)
    yield from _health(model, last, config)
    yield from _vocabularies(model, last, config)
    index = release.manifest["index"]
    yield Gate(
        "index_recall", index["recall"], context.config.index.recall_target, True,
        f"Recall against exact search, with the settings that {index['factory']} is published with.",
    )  # fmt: skip


def _rows(context: Context, samples: Manifest, config: Gates) -> Iterator[Gate]:
    nights = [context.warehouse.manifest("samples", ds) for ds in days_back(context.ds, NIGHTS_BEFORE + 1)[:-1]]
    rows = [positives_in(night) for night in nights if night and not night.facts["bootstrap_days"]]
    if rows and not samples.facts["bootstrap_days"]:
        usual = statistics.median(rows)
        yield Gate(
            "rows", positives_in(samples) / usual, config.rows, True,
            f"Training rows against {usual:,.0f}, the median of {len(rows)} nights. Below: check build_positives.",
        )  # fmt: skip


def _day(context: Context, model: Manifest, config: Gates) -> Iterator[Gate]:
    """Whether the day resembles earlier days, judged by the release in use, which was not trained on it."""
    nights = [context.warehouse.manifest("models", ds) for ds in days_back(context.ds, NIGHTS_BEFORE + 1)[:-1]]
    recalls = [night.facts["day_recall"] for night in nights if night and night.facts.get("day_recall")]
    recall = model.facts.get("day_recall")
    if recalls and recall is not None:
        usual = statistics.median(recalls)
        yield Gate(
            "day_recall", recall / usual, config.day_recall, True,
            f"The release in use had Recall@{config.recall_at} {recall:.4f} on this day before training; the median of "
            f"{len(recalls)} nights is {usual:.4f}. Below: check the interactions of the day.",
        )  # fmt: skip


def _before_update(context: Context, model: Manifest) -> Iterator[Gate]:
    """Whether the updates of the day so far helped, measured on the events after them."""
    measured = model.facts["within_day"]
    if "loss" in measured:
        yield Gate(
            "update_loss", measured["loss"] / measured["night"] if measured["night"] else 0.0,
            context.config.gates.recall_loss, False,
            f"Share of Recall@{context.config.gates.recall_at} that the update in use has certainly lost against the night's "
            f"release, on later events: {measured['recall']:.4f} now, {measured['night']:.4f} without updates. Above: go "
            "back to that release (jobs.releases rollback).",
        )  # fmt: skip


def _health(model: Manifest, last: Manifest | None, config: Gates) -> Iterator[Gate]:
    health = model.facts["health"]
    yield Gate(
        "effective_dimensions", health["effective_dimensions"], config.effective_dimensions, True,
        "Number of dimensions that distinguish items. Below: the vectors have collapsed; check the loss, the temperature "
        "and the learning rate.",
    )  # fmt: skip
    yield Gate(
        "mean_cosine", health["mean_cosine"], config.mean_cosine, False,
        "Mean cosine of two items. Above: all items look alike.",
    )  # fmt: skip
    if last and last.facts.get("health"):  # Earlier versions did not store it.
        yield Gate(
            "embedding_growth", health["embedding_norm"] / last.facts["health"]["embedding_norm"], config.embedding_growth,
            False, "Norm of the item embeddings relative to last night's. Above: training diverges.",
        )  # fmt: skip


def _vocabularies(model: Manifest, last: Manifest | None, config: Gates) -> Iterator[Gate]:
    if last is None:
        return
    before, now = _sizes(last), _sizes(model)
    growth = {name: now[name] / before[name] for name in now if name in before}
    if growth:
        name = max(growth, key=lambda name: growth[name])
        yield Gate(
            "vocabulary_growth", growth[name], config.vocabulary_growth, False,
            f"Growth of vocabulary {name}, from {before[name]:,} to {now[name]:,}. Above: check its values.",
        )  # fmt: skip


def _sizes(model: Manifest) -> dict[str, int]:
    schema = model.facts["schema"]
    return {
        feature["vocabulary"]: feature["size"]
        for feature in (*schema["user"], *schema["item"])
        if "vocabulary" in feature
    }

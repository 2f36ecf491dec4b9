"""Gates: what a release must show before readers are led to it."""

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
from pipelines.storage.dates import days_back, shift
from pipelines.storage.manifest import Manifest, digest


class GateError(NightjarError):
    """A release is not good enough to be published (exit 4)."""

    exit_code = 4


def judge(context: Context, release: Release) -> Verdict:
    """Every gate of a release. The answers are kept beside it, until the tolerances or what it would replace change."""
    current = current_release(context)
    before = comparable_release(context)
    asked = digest([context.config.gates.model_dump(mode="json"), before.release_id if before else None])
    uri = f"{release.uri}/{GATES}"
    if context.warehouse.exists(uri) and not context.force:
        known = json.loads(context.warehouse.read_text(uri))
        published = current is not None and current.release_id == release.release_id
        if published or known["asked"] == asked:
            return read_verdict(known)
    compared = Comparison()
    if not context.warehouse.update:  # An update learns from all events that there are.
        compared = compare(context, release, before)
    against = before.release_id if before else None
    verdict = Verdict([*_gates(context, release), *compared.gates], against, compared.notes, compared.record)
    write_verdict(context, release.uri, verdict, asked)
    return verdict


def _gates(context: Context, release: Release) -> Iterator[Gate]:
    config, warehouse, ds = context.config.gates, context.warehouse, context.ds
    samples, model = warehouse.require("samples", ds, ""), warehouse.require("models", ds, "")
    # A night that begins from raw logs has nothing in common with the one before.
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
        f"Of the exact answer, at the setting that {index['factory']} is published with.",
    )  # fmt: skip


def _rows(context: Context, samples: Manifest, config: Gates) -> Iterator[Gate]:
    nights = [context.warehouse.manifest("samples", ds) for ds in days_back(context.ds, NIGHTS_BEFORE + 1)[:-1]]
    rows = [night.rows for night in nights if night and not night.facts["bootstrap_days"]]
    if rows and not samples.facts["bootstrap_days"]:
        usual = statistics.median(rows)
        yield Gate(
            "rows", samples.rows / usual, config.rows, True,
            f"Training rows against {usual:,.0f}, the median of {len(rows)} nights: look at what build_positives counts.",
        )  # fmt: skip


def _day(context: Context, model: Manifest, config: Gates) -> Iterator[Gate]:
    """Whether the day is like those before it, seen by a model that has not been trained on it."""
    nights = [context.warehouse.manifest("models", ds) for ds in days_back(context.ds, NIGHTS_BEFORE + 1)[:-1]]
    recalls = [night.facts["day_recall"] for night in nights if night and night.facts.get("day_recall")]
    recall = model.facts.get("day_recall")
    if recalls and recall is not None:
        usual = statistics.median(recalls)
        yield Gate(
            "day_recall", recall / usual, config.day_recall, True,
            f"The release in use had Recall@{config.recall_at} {recall:.4f} on this day before training, and {usual:.4f} on "
            f"the median of {len(recalls)} nights: below, look at what the day's interactions are.",
        )  # fmt: skip


def _before_update(context: Context, model: Manifest) -> Iterator[Gate]:
    """Whether the updates of the day so far have been worth it: on events that came after them."""
    told = model.facts["within_day"]
    if "loss" in told:
        yield Gate(
            "update_loss", told["loss"] / told["night"] if told["night"] else 0.0, context.config.gates.recall_loss, False,
            f"Share of Recall@{context.config.gates.recall_at} that the update in use has lost for certain on events since, "
            f"against the night's release: {told['recall']:.4f} now, {told['night']:.4f} without updates. Above, go back to "
            "that release (jobs.releases rollback).",
        )  # fmt: skip


def _health(model: Manifest, last: Manifest | None, config: Gates) -> Iterator[Gate]:
    health = model.facts["health"]
    yield Gate(
        "effective_dimensions", health["effective_dimensions"], config.effective_dimensions, True,
        "How many dimensions tell items apart: below, the vectors have collapsed; look at the loss, the temperature and "
        "the learning rate.",
    )  # fmt: skip
    yield Gate(
        "mean_cosine", health["mean_cosine"], config.mean_cosine, False,
        "Cosine of two items on average: above, all items look alike.",
    )  # fmt: skip
    if last and last.facts.get("health"):  # Earlier versions did not keep it.
        yield Gate(
            "embedding_growth", health["embedding_norm"] / last.facts["health"]["embedding_norm"], config.embedding_growth,
            False, "Length of the items' embeddings against last night's: above, training diverges.",
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
            f"Of {name}, from {before[name]:,} to {now[name]:,}: look whether its values are what they were.",
        )  # fmt: skip


def _sizes(model: Manifest) -> dict[str, int]:
    schema = model.facts["schema"]
    return {
        feature["vocabulary"]: feature["size"]
        for feature in (*schema["user"], *schema["item"])
        if "vocabulary" in feature
    }

"""Gates: what a release must show before readers are led to it."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from jobs.support.config import Gates
from jobs.support.examining import events_of, examined
from jobs.support.release import GATES, comparable_release, current_release
from jobs.support.runner import Context, log
from model.examination import Examination, certain_loss
from model.release import Release
from model.schema import DEFAULT, FeatureSchema
from pipelines.checks import NIGHTS_BEFORE
from pipelines.errors import NightjarError
from pipelines.storage import Manifest, days_back, digest, shift


class GateError(NightjarError):
    """A release is not good enough to be published (exit 4)."""

    exit_code = 4


@dataclass(frozen=True)
class Gate:
    """One question and its answer."""

    name: str
    value: float
    limit: float
    at_least: bool  # The limit is the least that passes, else the most.
    says: str

    @property
    def passed(self) -> bool:
        """Whether the release may go on; a value that is no number never passes."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> str:
        """For the log and the report."""
        sign = ">=" if self.at_least else "<="
        verdict = "passed" if self.passed else "REFUSED"
        return f"{self.name} {self.value:.4g} (must be {sign} {self.limit:.4g}): {verdict}. {self.says}"


@dataclass(frozen=True)
class Verdict:
    """All gates of a release."""

    gates: list[Gate]
    against: str | None  # The release that it was compared with.

    def refusal(self) -> str | None:
        """Why it is refused; None where it is not."""
        refused = [gate.line() for gate in self.gates if not gate.passed]
        return " ".join(refused) if refused else None


def verdict_of(context: Context, release_uri: str) -> Verdict | None:
    """The gates of a release as they were asked last; None where they were not."""
    uri = f"{release_uri}/{GATES}"
    if not context.warehouse.exists(uri):
        return None
    known = json.loads(context.warehouse.read_text(uri))
    return Verdict([Gate(**told) for told in known["gates"]], known["against"])


def refused_by(context: Context, release_uri: str) -> list[str]:
    """Names of the gates that a release did not pass when it was asked last."""
    verdict = verdict_of(context, release_uri)
    return [gate.name for gate in verdict.gates if not gate.passed] if verdict else []


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
            return Verdict([Gate(**told) for told in known["gates"]], known["against"])
    verdict = Verdict(list(_gates(context, release, before)), before.release_id if before else None)
    told = {"asked": asked, "against": verdict.against, "gates": [asdict(gate) for gate in verdict.gates]}
    context.warehouse.write_text(uri, json.dumps(told, indent=1))
    return verdict


def _gates(context: Context, release: Release, before: Release | None) -> Iterator[Gate]:
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
    if warehouse.update:  # It learns from all events that there are.
        return
    events = events_of(context, samples, ("valid",), FeatureSchema.model_validate(model.facts["schema"]))
    if events is None:
        log.warning("publish_items %s: no held-out events to compare releases on; set positives.valid_hours", ds)
        return
    users = events["user_index"]
    yield Gate(
        "unknown_users", float((users == DEFAULT).mean()), config.unknown_users, False,
        f"Share of {len(users):,} held-out events whose user has no index: look at the users' ids in interactions.",
    )  # fmt: skip
    if before is None:
        return
    now = examined(release, events, config.recall_at)
    then = examined(before, events, config.recall_at)
    yield from _recall(now, then, before, config, context.config.seed)


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


def _recall(now: Examination, then: Examination, before: Release, config: Gates, seed: int) -> Iterator[Gate]:
    surely = certain_loss(then.by_user(), now.by_user(), config.bootstrap_samples, seed)
    share = surely / then.recall if then.recall else 0.0
    yield Gate(
        "recall_loss", share, config.recall_loss, False,
        f"Share of Recall@{config.recall_at} lost against {before.release_id} for certain, on {len(now.by_user()):,} users' "
        f"held-out events: {now.recall:.4f} now, {then.recall:.4f} before.",
    )  # fmt: skip
    yield Gate(
        "coverage", now.covered / then.covered if then.covered else 1.0, config.coverage, True,
        f"Items that anybody gets among the {config.recall_at} best, {now.covered:.2%} of all, against {then.covered:.2%} "
        "before: below, few items crowd out the others.",
    )  # fmt: skip

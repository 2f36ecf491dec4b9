"""The verdict on a night in one sentence, with cause and remedy if it did not publish."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.morning.night_files import Evaluated, NightFiles, own_evaluation
from jobs.morning.record import Failure
from jobs.release.verdict import Gate, Verdict

BASELINES = {"popularity": "popularity", "item_cf": "item-CF"}
# The table that a step writes last. If it was written after a failure of the step, the failure is overcome.
WRITTEN_BY = {"build_positives": "positives", "build_negatives": "samples", "train": "models"}


@dataclass(frozen=True)
class Headline:
    """The verdict. `state` is also its style: published, refused, failed, unfinished or no-data."""

    state: str
    badge: str
    sentence: str
    causes: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)


def headline_of(night: NightFiles) -> Headline:
    """The verdict on a night."""
    if night.no_data_since:
        return Headline(
            "no-data", "No data",
            f"There was no log of this day. State and model are those of {night.no_data_since}; {_in_use(night)}",
        )  # fmt: skip
    failure = _open_failure(night)
    refused = [gate for gate in night.verdict.gates if not gate.passed] if night.verdict else []
    if refused:
        return _refused(night, refused)
    if night.verdict:
        return _published(night, night.verdict, failure)
    if failure:
        return Headline(
            "failed", "Failed", f"Step {failure.step} failed, so nothing was published; {_in_use(night)}",
            [failure.error], list(_after_failure(night, failure)),
        )  # fmt: skip
    done = [step for step, table in WRITTEN_BY.items() if night.manifest(table)]
    how_far = f"The last finished step is {done[-1]}" if done else "No step has finished"
    return Headline(
        "unfinished", "Not finished", f"{how_far}, and nothing was published; {_in_use(night)}",
        remedies=[f"Run the night (again); finished steps are skipped: {command(night, 'nightly')}"],
    )  # fmt: skip


def change_of(night: NightFiles) -> tuple[float, Evaluated] | None:
    """(change in Recall@k since the evaluation of the night before, that evaluation); None if they are not comparable."""
    now = night.evaluated
    if now is None:
        return None
    before = own_evaluation(night.context.at(NightFiles(night.context.at(now.ds)).before))
    if before is None or before.facts.get("question") != now.facts.get("question"):
        return None
    new, old = now.row("two_tower", night.k), before.row("two_tower", night.k)
    return (new["value"] - old["value"], before) if new and old else None


def interval(row: dict[str, Any]) -> str:
    """A value with its interval, as text."""
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _published(night: NightFiles, verdict: Verdict, failure: Failure | None) -> Headline:
    passed = f"{len(verdict.gates)} of {len(verdict.gates)} gates passed"
    sentence = f"Release {night.release_id}: {', '.join([*_figures(night), passed])}"
    causes, remedies = [], []
    state, badge = "published", "Published"
    if night.current.release_id != night.release_id:
        if night.release_id in night.current.rolled_back:
            state, badge = "unfinished", "Rolled back"
        sentence += f". In use now: {night.current.release_id or 'no release'}"
    if failure:
        causes = [f"A later run of this night failed in step {failure.step}: {failure.error}"]
        remedies = list(_after_failure(night, failure))
    return Headline(state, badge, sentence + ".", causes, remedies)


def _refused(night: NightFiles, refused: list[Gate]) -> Headline:
    names = ", ".join(gate.name for gate in refused)
    gates = "gate" if len(refused) == 1 else "gates"
    figures = "".join(f", {figure}" for figure in _figures(night))
    setting = {"index_recall": "index.recall_target", "update_loss": "gates.recall_loss"}
    flags = " ".join(f"--set {setting.get(gate.name, f'gates.{gate.name}')}=LIMIT" for gate in refused)
    return Headline(
        "refused", "Refused",
        f"Release {night.release_id} is not published: {gates} {names} refused it{figures}; {_in_use(night)}",
        [gate.line() for gate in refused],
        [
            "Check what each gate names, correct it and run the night again: " + command(night, "nightly"),
            f"If the release is right, change the limit and publish it: {command(night, 'publish_items')} {flags}",
        ],
    )  # fmt: skip


def _figures(night: NightFiles) -> Iterator[str]:
    """Recall of the evaluated release, its change on last night, and its margin over the best baseline."""
    evaluated = night.evaluated
    row = evaluated.row("two_tower", night.k) if evaluated else None
    if evaluated is None or row is None:
        return
    whose = "" if evaluated.ds == night.ds else f" of the release of {evaluated.ds} on this day"
    yield f"Recall@{night.k}{whose} {interval(row)}"
    if change := change_of(night):
        yield f"{change[0]:+.3f} on the night before"
    if margin := evaluated.margin:
        certain = "" if margin.certain else " (not certain)"
        yield f"{margin.difference:+.3f} on {BASELINES.get(margin.baseline, margin.baseline)}{certain}"


def _in_use(night: NightFiles) -> str:
    release = night.current.release_id
    return f"release {release} stays in use." if release else "no release is in use yet."


def _open_failure(night: NightFiles) -> Failure | None:
    """The recorded failure, unless its step has succeeded since."""
    failure = night.record.failure if night.record else None
    if failure is None:
        return None
    if failure.step == "publish_items" and night.verdict and not night.verdict.refusal():
        return None
    written = night.manifest(WRITTEN_BY[failure.step]) if failure.step in WRITTEN_BY else None
    return None if written and written.written_at > failure.at else failure


def _after_failure(night: NightFiles, failure: Failure) -> Iterator[str]:
    # Messages of Nightjar name their remedy. A job that was stopped has an exit code above 128.
    first = (
        "Correct it as the message says" if failure.exit_code in (2, 3, 4) else "Find the cause in the log of the job"
    )
    yield f"{first}, then run the same night again; finished steps are skipped: {command(night, 'nightly')}"
    if failure.exit_code == 1:
        yield "docs/faults.md lists what can go wrong in a night, and what to do then."


def command(night: NightFiles, job: str) -> str:
    """The command that runs a job on this night."""
    file = getattr(night.context.args, "config", "FILE")
    days = night.record.bootstrap_days if night.record else night.facts("positives").get("bootstrap_days", 0)
    flags = f" --bootstrap-days {days}" if days and job == "nightly" else ""
    return f"python -m jobs.{job} --config {file} --ds {night.ds}{flags}"

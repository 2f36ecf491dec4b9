"""The run of a night in MLflow: its description, the metrics and tags of the table of nights, and the model version."""

import math
from collections.abc import Iterator

from jobs.common.runner import Context
from jobs.morning.headline import BASELINES, Headline, change_of, headline_of, interval
from jobs.morning.night_files import Evaluated, NightFiles, own_evaluation
from jobs.morning.record import PAGE, Failure, uri_of
from jobs.night.margin import MODEL
from jobs.night.night_metrics import evaluation_metrics, rounded
from jobs.tracking.tracker import DESCRIPTION, TRAIN, StepRun, Tracker

BAD_USAGE = 2  # the exit code of a mistake in the command or the config, which is no night


def describe_night(context: Context, tracker: Tracker, failure: Failure | None = None) -> None:
    """Describe the night of ds on its run, from the small files of the warehouse.

    So a night that runs again, or is resumed, has all figures, also those of steps that it skipped. A night that failed
    before any step logged gets a run here; a night that had nothing to do does not.
    """
    run = tracker.night_run(create=failure is not None and failure.exit_code != BAD_USAGE)
    if run is None:
        return
    night = NightFiles(context)
    headline, tags = headline_of(night), tags_of(night)
    run.metrics(metrics_of(night))
    run.tags(tags | {DESCRIPTION: description(night, headline, tracker.link_of(run.run_id), tracker.steps(run))})
    if night.release_id:
        row = night.evaluated.row(MODEL, night.k) if night.evaluated and night.evaluated.ds == night.ds else None
        of_version: dict[str, str] = {name: tags[name] for name in ("verdict", "gates") if name in tags}
        of_version |= {f"recall_at_{night.k}": f"{row['value']:.4f}"} if row else {}
        tracker.registry.describe(night.release_id, headline.sentence, of_version)


def metrics_of(night: NightFiles) -> dict[str, float]:
    """The metrics of a night, in groups that the UI shows as sections."""
    values: dict[str, float] = {}
    samples, positives, model = night.manifest("samples"), night.facts("positives"), night.manifest("models")
    if samples and night.positives is not None:
        values["samples/rows"] = night.positives
        values["samples/fallback_share"] = samples.facts.get("fallback_share", math.nan)
        values |= {f"samples/{kind}_negatives": n for kind, n in samples.facts["kinds"].items() if n}
        counts = positives.get("counts", {})
        values |= {
            f"samples/{name}": counts[name] for name in ("interactions", "dropped_downsampled") if name in counts
        }
    if model and not night.no_data_since:
        values |= {f"train/{name}": model.facts[name] for name in ("loss", "steps", "epochs") if name in model.facts}
        recall = model.facts.get("day_recall")
        values["eval/recall_before_training"] = math.nan if recall is None else recall
    if night.evaluated:
        values |= _of_evaluation(night, night.evaluated)
    if night.release:
        values |= {"index/items": night.release["items"], "index/recall": night.release["index"]["recall"]}
        if prior := night.release.get("prior"):
            values["index/prior_beta"] = prior["beta"]
    if night.verdict:
        refused = len(night.verdict.refused)
        values |= {"gates/passed": len(night.verdict.gates) - refused, "gates/refused": refused}
    return rounded(values)


def _of_evaluation(night: NightFiles, evaluated: Evaluated) -> dict[str, float]:
    k = night.k
    rows = {
        row["model"]: row for row in evaluated.rows if (row["metric"], row["slice"], row["k"]) == ("recall", "all", k)
    }
    values = evaluation_metrics(rows, k, evaluated.margin)
    if change := change_of(night):
        values["eval/change_on_last_night"] = change[0]
    return values


def tags_of(night: NightFiles) -> dict[str, str]:
    """The tags of a night."""
    headline = headline_of(night)
    tags = {"verdict": verdict_text(night, headline)}
    if night.verdict and not night.no_data_since:
        tags["gates"] = night.verdict.passed
    if night.release_id:
        tags["release_id"] = night.release_id
    if evaluated := night.evaluated:
        tags |= {"question": evaluated.facts.get("question", ""), "evaluated_night": evaluated.ds}
        tags |= evaluated.margin.tags() if evaluated.margin else {}
    return tags


def verdict_text(night: NightFiles, headline: Headline) -> str:
    """The verdict in a few words."""
    if headline.state == "refused" and night.verdict:
        return f"Refused: {', '.join(night.verdict.refused)}"
    failure = night.record.failure if night.record else None
    if failure and headline.state == "failed":
        return f"Failed: {failure.step}"
    if failure and headline.causes:  # It was published, and then ran again.
        return f"{headline.badge}, then failed: {failure.step}"
    return headline.badge


def description(night: NightFiles, headline: Headline, link: str, steps: list[StepRun]) -> str:
    """The description of a night in Markdown: verdict, cause and remedy, key figures beside those of the night before.

    `link`: the page of its run in the UI.
    """
    # The UI folds a description after a few lines, so the way to the charts is in the first one.
    charts = "".join([f" · [training charts]({step.link})" for step in steps if step.job == TRAIN][-1:])
    parts = [f"## {verdict_text(night, headline)}{charts}", headline.sentence]
    if headline.causes:
        parts += ["**Cause**", _listed(headline.causes)]
    if headline.remedies:
        parts += ["**Remedy**", _listed(headline.remedies)]
    parts.append(_table(night))
    if night.evaluated:
        parts.append(_asked(night, night.evaluated))
    if steps:
        parts.append("Steps: " + " · ".join(f"[{step.name}]({step.link})" for step in steps))
    if night.warehouse.exists(uri_of(night.warehouse, night.ds, PAGE)):
        parts.append(f"The whole night on one page: [{PAGE}]({link}/artifacts/{PAGE})")
    return "\n\n".join(part for part in parts if part)


def _table(night: NightFiles) -> str:
    """The key figures beside those of the night before, if there is one."""
    before = NightFiles(night.context.at(night.before))
    rows, earlier = list(figures(night, night.evaluated)), dict(figures(before, _evaluated_before(night)))
    if not rows:
        return ""
    if not earlier:
        return "\n".join([f"| Figure | {night.ds} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    table = [f"| Figure | {night.ds} | {before.ds} |", "|---|---|---|"]
    return "\n".join([*table, *(f"| {name} | {value} | {earlier.get(name, '-')} |" for name, value in rows)])


def figures(night: NightFiles, evaluated: Evaluated | None) -> Iterator[tuple[str, str]]:
    """(name, value) of the key figures. A figure that does not exist yet is left out.

    `evaluated`: the evaluation that describes the night.
    """
    samples, model = night.manifest("samples"), night.manifest("models")
    if samples and night.positives is not None:
        yield "Samples", f"{night.positives:,} rows with {samples.facts.get('negatives', '?')} negatives"
    if model and not night.no_data_since:
        steps, epochs = model.facts.get("steps", 0), model.facts.get("epochs", "?")
        yield "Training", f"loss {model.facts['loss']:.4f} after {steps:,} steps, {epochs} epochs"
    if evaluated and (row := evaluated.row(MODEL, night.k)):
        yield f"Recall@{night.k}", interval(row)
    if evaluated and (margin := evaluated.margin):
        name = BASELINES.get(margin.baseline, margin.baseline)
        certain = "" if margin.certain else ", not certain"
        yield "Best baseline", f"{margin.baseline_recall:.3f} ({name}; the model {margin.difference:+.3f}{certain})"
    if model and (recall := model.facts.get("day_recall")):
        yield f"Recall@{night.context.config.gates.recall_at} on the day, before training on it", f"{recall:.3f}"
    if night.verdict:
        refused = f", refused: {', '.join(night.verdict.refused)}" if night.verdict.refused else ""
        yield "Gates", f"{night.verdict.passed} passed{refused}"


def _evaluated_before(night: NightFiles) -> Evaluated | None:
    """The evaluation before the one that describes a night."""
    if night.evaluated is None:
        return None
    evaluated = NightFiles(night.context.at(night.evaluated.ds))
    return own_evaluation(night.context.at(evaluated.before))


def _asked(night: NightFiles, evaluated: Evaluated) -> str:
    """The question that the recall answers, and the release that it is of."""
    whose = "the release of this night"
    if evaluated.ds != night.ds:
        whose = f"release {evaluated.release}, because that of this night has no figure yet"
    question = evaluated.facts.get("question", "the question is not recorded")
    return f"Recall@{night.k} is of {whose}, after {evaluated.ds}: {question}."


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)

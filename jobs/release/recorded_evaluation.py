"""Sets the evaluation of a night as metrics of its model in MLflow, on the question that it answers."""

from typing import Any

from jobs.common.runner import Context
from jobs.night.evaluations import evaluation_of, recalls
from jobs.night.margin import MODEL, margin_in
from jobs.release.release_id import release_id_at
from jobs.tracking.datasets import InputDataset, datasets_of
from jobs.tracking.job_run import JobRun
from jobs.tracking.tracker import Tracker
from pipelines.storage.manifest import digest

NAMES = {MODEL: "", "two_tower_without_prior": "_without_prior"}  # of the models, in metrics; others keep theirs


def record_evaluation(context: Context, tracker: Tracker, job: JobRun) -> None:
    """Log the recall of the release of ds and of the baselines as metrics of its logged model.

    Does nothing if ds was not evaluated, or if its release is not registered (yet). `job`: the run that logs them.
    """
    release_id = None if context.warehouse.update else release_id_at(context.warehouse, context.ds)
    evaluation = evaluation_of(context, release_id) if release_id else None
    if release_id is None or evaluation is None or "question" not in evaluation.facts:
        return
    k = context.config.evaluation.shown_k
    values = {f"recall_at_{k}{NAMES.get(name, f'_of_{name}')}": v for name, v in recalls(context, k).items()}
    if margin := margin_in(evaluation.facts):
        values["above_best_baseline"] = margin.difference
    # The tab Models has the columns in the order in which they were logged, and a window shows only the first ones.
    first = (f"recall_at_{k}", "above_best_baseline")
    values = dict(sorted(values.items(), key=lambda value: value[0] not in first))
    asked = question_dataset(context, evaluation.facts, evaluation.inputs)
    job.inputs([asked], "evaluation")
    tracker.registry.measured(release_id, job, values, asked)


def question_dataset(context: Context, facts: dict[str, Any], inputs: dict[str, str]) -> InputDataset:
    """The question of an evaluation as a dataset. It is the same on all nights, so that the UI ranks them in one column."""
    question = facts["question"]
    (table, *_) = datasets_of(context, {"interactions": inputs.get("interactions", "")})
    profile = {"question": question, "new_items_only": facts["new_items_only"]}
    return InputDataset(question, digest(question)[:8], table.uri, table.columns, profile)

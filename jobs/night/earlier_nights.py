"""Evaluates earlier nights on the log of ds, which did not exist when they ran."""

from dataclasses import replace

from jobs.common.runner import Context, log
from jobs.night.evaluations import evaluation_of
from jobs.night.sample_schema import schema_of
from jobs.night.steps import Step
from jobs.tracking.tracker import Tracker
from pipelines.contract.errors import NightjarError
from pipelines.lost_day import carried_from
from pipelines.storage.dates import shift
from pipelines.storage.locks import locked


def evaluate_earlier_nights(context: Context, tracker: Tracker, evaluate: Step) -> None:
    """Evaluate the nights that ds gives a first or a final figure. `evaluate`: the step that evaluates one night.

    An earlier night is evaluated with its own model and tables, so nothing of ds but its log enters. The runs and metrics in
    MLflow belong to ds, which is the night that is running. A night that cannot be evaluated (for example because the config
    has other features now) is named in a warning; it does not stop the night of ds.
    """
    for ds in nights_to_evaluate(context):
        night = replace(context.at(ds), force=False)
        try:
            schema_of(night.warehouse.require("samples", ds, f"run build_negatives for ds={ds}"), night.config)
            with locked(night.warehouse, ds, "evaluate"):
                evaluate(night, tracker)
        except NightjarError as error:
            log.warning("evaluate %s: the night of %s was not evaluated on this day: %s", context.ds, ds, error)


def nights_to_evaluate(context: Context) -> list[str]:
    """The nights to evaluate on the log of ds, oldest first: the one whose last day to predict is ds, and the one before ds.

    A night that was already evaluated on ds is not among them.
    """
    config, warehouse = context.config.evaluation, context.warehouse
    if config.split != "next_days" or warehouse.update:
        return []
    nights = []
    for days in sorted({1, config.days}, reverse=True):
        model = warehouse.manifest("models", shift(context.ds, -days))
        if model is not None:
            nights.append(carried_from(model) or model.ds)
    reach = [ds for ds in dict.fromkeys(nights) if shift(ds, config.days) >= context.ds]
    return [ds for ds in reach if not _is_evaluated_on(context.at(ds), context.ds)]


def _is_evaluated_on(context: Context, day: str) -> bool:
    evaluation, embeddings = evaluation_of(context), context.warehouse.manifest("item_embeddings", context.ds)
    if evaluation is None or embeddings is None or day not in evaluation.facts.get("days", []):
        return False
    return bool(evaluation.inputs.get("item_embeddings") == embeddings.fingerprint)

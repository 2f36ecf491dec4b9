"""The validation tail of a study: which days trials train on, and which positives judge them.

Split next_days: trials train on a bootstrap that ends some days before ds, and the positives of those days judge them. Split
last_positive: the last positive of each user is the evaluation's own holdout, so it is removed from the interactions first;
the last positive of what remains judges the trials. Neither reads a day after ds.
"""

from dataclasses import dataclass

from jobs.common.config import Config
from jobs.common.runner import Context, log
from jobs.night.steps import open_night
from pipelines.config import Inputs, InputTable
from pipelines.contract.errors import InputError, UsageError
from pipelines.inputs.contracts import CONTRACTS
from pipelines.inputs.tables import InputTables
from pipelines.positives.last_positives import without_last_positives
from pipelines.storage.dates import days_back, parse_ds, shift
from pipelines.storage.warehouse import Warehouse

COMPLETE = "_complete"  # File beside the interactions of last_positive, written last.


@dataclass(frozen=True)
class Tail:
    """The days of a study. No day after `ds` is read."""

    ds: str
    last: str  # the last day that trials train on
    bootstrap_days: int  # days of logs up to `last`
    days: list[str]  # the days whose positives judge the trials; empty for last_positive

    def as_text(self) -> str:
        """For the log and for comments."""
        if not self.days:
            return f"each user's last positive up to ds={self.ds} that evaluate does not hold out"
        span = self.days[0] if len(self.days) == 1 else f"{self.days[0]} to {self.days[-1]}"
        return f"the positives of {span}"


def plan_tail(
    days: list[str], place: str, config: Config, ds: str, tail_days: int | None = None, window: int | None = None
) -> Tail:
    """Choose the days. `days`: those with interactions. `place`: the table, for messages.

    `tail_days`: default evaluation.days. `window`: number of days of logs up to ds; default: all. Raises UsageError if no day
    is left to train on, InputError if there are no interactions.
    """
    present = [day for day in days if day <= ds and (window is None or day > shift(ds, -window))]
    if not present:
        raise InputError(
            f"{place} has no partition up to ds={ds}: there is nothing to tune on. Write the logs first, or name another ds"
        )
    if config.evaluation.split == "last_positive":
        if tail_days:
            raise UsageError(
                "--tail-days: evaluation.split is last_positive, whose tail is the last positive of each user and not a "
                "number of days: leave it out"
            )
        return Tail(ds, ds, _span(present[0], ds), [])
    length = tail_days or config.evaluation.days
    last = shift(ds, -length)
    tail = [day for day in present if day > last]
    if not tail:
        raise InputError(
            f"{place} has no partition from {shift(last, 1)} to {ds}, the validation tail: name a ds that has interactions"
        )
    if present[0] > last:
        raise UsageError(
            f"--ds {ds}: the first day of interactions is {present[0]}, and the validation tail has the {length} days from "
            f"{shift(last, 1)} on, so no day is left to train on: name a later ds, or fewer days with --tail-days"
        )
    return Tail(ds, last, _span(present[0], last), tail)


def _span(first: str, last: str) -> int:
    return (parse_ds(last) - parse_ds(first)).days + 1


def tuning_inputs(context: Context, tail: Tail, folder: str) -> Inputs:
    """The input tables of the trials, with whole URIs. For last_positive writes the interactions that trials may read."""
    config, warehouse = context.config.inputs, context.warehouse
    tables = {name: getattr(config, name) for name in CONTRACTS}
    inputs = Inputs(
        **{name: InputTable(path=warehouse.resolve(t.path or name), columns=t.columns) for name, t in tables.items()}
    )
    if tail.days:
        return inputs
    remaining = Warehouse(context.spark, f"{folder}/inputs")
    uri = remaining.path("interactions")
    if not remaining.exists(f"{remaining.root}/{COMPLETE}"):
        remaining.delete(uri)
        night = open_night(context.at(tail.ds), tail.bootstrap_days)
        rows = without_last_positives(night, context.config.positives, config.interactions.columns)
        counts = remaining.write_input(rows, "interactions")
        remaining.write_text(f"{remaining.root}/{COMPLETE}", "")
        log.info("tune %s: %s interactions without each user's last positive", tail.ds, f"{sum(counts.values()):,}")
    return inputs.model_copy(update={"interactions": InputTable(path=uri, columns=config.interactions.columns)})


def fingerprints(inputs: InputTables, tail: Tail) -> dict[str, str]:
    """Table -> a hash of its files up to ds."""
    window = set(days_back(tail.ds, tail.bootstrap_days + len(tail.days) + 1))
    events = ("interactions", "ranking_logs")
    return {
        table: inputs.fingerprint(
            table, [d for d in inputs.days(table) if d <= tail.ds and (d in window or table not in events)]
        )
        for table in CONTRACTS
    }

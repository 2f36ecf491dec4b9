"""The small files of a night that its page reads: manifests, evaluations, gates, and what the night wrote for the page."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.common.runner import Context
from jobs.morning.record import EXAMPLES, NightRecord, read_json, read_record, record_before
from jobs.night.evaluations import evaluated_night, evaluation_of, evaluation_rows, headline_k
from jobs.night.margin import Margin, margin_in
from jobs.release.release_id import release_id_at
from jobs.release.store import Current, folder_of, read_current
from jobs.release.verdict import Verdict, verdict_of
from pipelines.lost_day import carried_from
from pipelines.samples.packing import positives_in
from pipelines.storage.dates import days_back, shift
from pipelines.storage.manifest import Manifest

NIGHTS = 14  # that the page shows over time


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: of the release of night `ds`, on the log of `days`."""

    ds: str
    release: str
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def days(self) -> list[str]:
        """The days that the release was measured on; empty for the last positives of users."""
        return list(self.facts.get("days", []))

    @property
    def margin(self) -> Margin | None:
        """The comparison with the best baseline."""
        return margin_in(self.facts)

    def row(self, model: str, k: int, part: str = "all", metric: str = "recall") -> dict[str, Any] | None:
        """One row: value, low, high and users; None if it was not measured."""
        key = (model, k, part, metric)
        rows = (row for row in self.rows if (row["model"], row["k"], row["slice"], row["metric"]) == key)
        return next(rows, None)


class NightFiles:
    """The files of one night. Each is read once, when a section of the page first asks for it."""

    def __init__(self, context: Context) -> None:
        self.context, self.ds, self.warehouse = context, context.ds, context.warehouse
        self.k = headline_k(context.config.evaluation.ks)
        self._manifests: dict[tuple[str, str], Manifest | None] = {}

    def manifest(self, table: str, ds: str | None = None) -> Manifest | None:
        """The manifest of a table of this night, or of night `ds`."""
        key = (table, ds or self.ds)
        if key not in self._manifests:
            self._manifests[key] = self.warehouse.manifest(*key)
        return self._manifests[key]

    def facts(self, table: str, ds: str | None = None) -> dict[str, Any]:
        """The facts in a manifest; empty without one."""
        manifest = self.manifest(table, ds)
        return manifest.facts if manifest else {}

    def earlier(self, table: str, nights: int) -> list[Manifest]:
        """The manifests of a table of the last nights before this one, oldest first."""
        found = (self.manifest(table, ds) for ds in days_back(self.ds, nights + 1)[:-1])
        return [manifest for manifest in found if manifest]

    @cached_property
    def no_data_since(self) -> str | None:
        """The last day with data, if this night carried its tables forward; else None."""
        return carried_from(self.manifest("models")) or carried_from(self.manifest("vocabularies"))

    @cached_property
    def before(self) -> str:
        """The last night with data before this one."""
        yesterday = shift(self.ds, -1)
        return carried_from(self.manifest("models", yesterday)) or yesterday

    @cached_property
    def is_bootstrap(self) -> bool:
        """Whether this night started from raw logs."""
        return bool(self.facts("positives").get("bootstrap_days"))

    @cached_property
    def positives(self) -> int | None:
        """The number of training rows and held-back rows; None if no samples were written."""
        samples = self.manifest("samples")
        return positives_in(samples) if samples else None

    @cached_property
    def release_id(self) -> str | None:
        """The id of the release of this night; None if no release was written."""
        release_id = release_id_at(self.warehouse, self.ds)
        exists = release_id and self.warehouse.exists(f"{folder_of(self.warehouse, release_id)}/manifest.json")
        return release_id if exists else None

    @cached_property
    def release(self) -> dict[str, Any]:
        """The manifest of the release; empty without one."""
        return _release_manifest(self.context, self.release_id) if self.release_id else {}

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict of the gates; None if they were never checked."""
        return verdict_of(self.context, folder_of(self.warehouse, self.release_id)) if self.release_id else None

    @cached_property
    def current(self) -> Current:
        """The release in use."""
        return read_current(self.warehouse)

    @cached_property
    def evaluated(self) -> Evaluated | None:
        """The evaluation that describes this night: of its release, or of the release before it on this day."""
        return evaluation_at(self.context)

    @cached_property
    def trend(self) -> list[Evaluated]:
        """The evaluations of the last NIGHTS nights up to the evaluated one, oldest first."""
        if self.evaluated is None:
            return []
        days = days_back(self.evaluated.ds, NIGHTS)[:-1]
        nights = [self.context.at(ds) for ds in days]
        return [*(e for night in nights if (e := own_evaluation(night))), self.evaluated]

    @cached_property
    def record(self) -> NightRecord | None:
        """What the night wrote about itself."""
        return read_record(self.warehouse, self.ds)

    @cached_property
    def record_before(self) -> NightRecord | None:
        """What the last night before this one wrote about itself."""
        return record_before(self.warehouse, self.ds)

    @cached_property
    def examples(self) -> dict[str, Any]:
        """Popularity, users and items that the night chose for the page (jobs/morning/examples.py)."""
        return read_json(self.warehouse, self.ds, EXAMPLES)


def own_evaluation(context: Context) -> Evaluated | None:
    """The evaluation of the release of ds; None if ds was not evaluated."""
    evaluation = evaluation_of(context)
    if evaluation is None:
        return None
    return Evaluated(
        context.ds, release_id_at(context.warehouse, context.ds) or "", evaluation.facts, evaluation_rows(context)
    )


def evaluation_at(context: Context) -> Evaluated | None:
    """The evaluation that describes the night of ds (`evaluated_night`)."""
    night = evaluated_night(context)
    return own_evaluation(night) if night else None


def _release_manifest(context: Context, release_id: str) -> dict[str, Any]:
    return dict(json.loads(context.warehouse.read_text(f"{folder_of(context.warehouse, release_id)}/manifest.json")))

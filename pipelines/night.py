"""A night (one ds), as all steps see it: its days of logs, its inputs, and the state of the night before."""

import logging
from dataclasses import dataclass, field

from pipelines.config import Checks, Inputs, Negatives, Positives, Samples
from pipelines.contract.errors import InputError
from pipelines.feature_config import Features
from pipelines.files.table_files import shortened
from pipelines.inputs.tables import InputTables
from pipelines.storage.dates import days_back, shift, span_of
from pipelines.storage.manifest import Manifest, Recipe
from pipelines.storage.warehouse import Warehouse

log = logging.getLogger("nightjar")


@dataclass(frozen=True)
class Night:
    """One ds. `bootstrap_days` > 0: a first night, which reads that many days of logs and no earlier state."""

    warehouse: Warehouse
    inputs: InputTables
    ds: str
    seed: int
    bootstrap_days: int = 0

    @classmethod
    def open(
        cls,
        warehouse: Warehouse,
        inputs: Inputs,
        ds: str,
        seed: int,
        bootstrap_days: int = 0,
        checks: Checks | None = None,
        features: Features | None = None,
    ) -> "Night":
        """Open a night. `features`: the checks of users and items cover the columns of these features."""
        return cls(warehouse, InputTables(warehouse, inputs, checks, features), ds, seed, bootstrap_days)

    @property
    def window(self) -> list[str]:
        """The days of logs that this night reads."""
        return days_back(self.ds, max(1, self.bootstrap_days))

    @property
    def end(self) -> str:
        """The end of the period whose events this night uses (UTC)."""
        update = self.warehouse.update
        return update.until if update else f"{self.ds} 23:59:59.999999"

    @property
    def yesterday(self) -> str | None:
        """The night whose state this one rolls forward; None in a bootstrap."""
        return None if self.bootstrap_days else shift(self.ds, -1)

    def log_days(self) -> list[str]:
        """Days of interactions in the window. Raises InputError if there are none, or if ds itself is missing."""
        days = self.inputs.present("interactions", self.window)
        if not days or (not self.bootstrap_days and self.ds not in days):
            present = self.inputs.days("interactions")
            has = f"it has {present[0]} to {present[-1]}" if present else "it has no partition at all"
            if misnamed := self.inputs.report.misnamed_days("interactions", self.window[0], self.window[-1]):
                has += f"; partitions must be named ds=YYYY-MM-DD, so these are not read: {shortened(misnamed)}"
            raise InputError(
                f"table interactions ({self.inputs.uri('interactions')}) has no partition for ds={self.ds}: {has}. "
                f"Check the feed, or the ds; if the day is lost, run jobs.nightly --ds {self.ds} --no-data"
            )
        self.inputs.report.missing_days("interactions", self.window)
        return days

    def state(self) -> dict[str, Manifest]:
        """Manifests of last night's state tables, by table; {} in a bootstrap. Raises InputError if one is missing."""
        if self.yesterday is None:
            return {}
        manifests = {table: self.warehouse.manifest(table, self.yesterday) for table in STATE_TABLES}
        missing = [table for table, manifest in manifests.items() if manifest is None]
        if missing:
            raise InputError(
                f"no state of the night before: table {missing[0]} has no partition ds={self.yesterday}. "
                f"{self._where_to_start(missing[0])}"
            )
        return {table: manifest for table, manifest in manifests.items() if manifest is not None}

    def _where_to_start(self, table: str) -> str:
        """The remedy for a missing night before, with the days that have logs and the newest night. `table`: of the state."""
        logs, newest = self.inputs.days("interactions"), self.warehouse.newest(table)
        known = f"interactions has {span_of(logs)}" if logs else "interactions has no partition at all"
        known += f"; the newest night is ds={newest}" if newest else "; no night is complete"
        if self.ds not in logs:
            return f"There are no logs of ds={self.ds}: check the ds ({known})"
        first = f"Run ds={self.yesterday} first, or start" if self.yesterday in logs else "Start"
        return f"{first} here from the raw logs with --bootstrap-days N (N days up to {self.ds}); {known}"


STATE_TABLES = ("vocabularies", "user_histories", "item_stats")
POSITIVE_TABLES = (*STATE_TABLES, "item_features", "item_versions", "positives")


def is_done(night: Night, tables: tuple[str, ...], recipe: Recipe, force: bool) -> bool:
    """Whether the step can be skipped: all its tables were written by this recipe. False if `force` is set."""
    if force:
        return False
    manifests = [night.warehouse.manifest(table, night.ds) for table in tables]
    return all(manifest is not None and manifest.made_by(recipe) for manifest in manifests)


@dataclass(frozen=True)
class SampleConfig:
    """The sections of the config that determine the rows of tables."""

    features: Features
    positives: Positives
    negatives: Negatives
    samples: Samples
    checks: Checks = field(default_factory=Checks)

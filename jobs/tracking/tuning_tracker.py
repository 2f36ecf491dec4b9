"""The MLflow runs of jobs.tune: one parent run per study, and a child run for each trial and each training of the check."""

from jobs.common.config import Config
from jobs.tracking.job_run import JobRun
from jobs.tracking.tracker import Tracker
from pipelines.storage.warehouse import Warehouse

TUNING = "nightjar.tuning"


class TuningTracker(Tracker):
    """The runs of a study. The same command adds to the parent run of the calls before it."""

    tag, job_name = TUNING, "tune"

    def __init__(self, config: Config, warehouse: Warehouse, ds: str, study: str) -> None:
        super().__init__(config, warehouse, ds, join_finished=True)
        self.name = study

    @property
    def title(self) -> str:
        """The name of the parent run."""
        return f"tune {self.name}"

    def study(self) -> JobRun:
        """The parent run."""
        return JobRun(self._client, self._night())

"""The MLflow runs of one night, and the registered model."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from jobs.common.config import Config
from jobs.tracking.address import tracking_uri
from jobs.tracking.client import TrackingClient
from jobs.tracking.job_run import JobRun, now
from jobs.tracking.registry import Registry
from jobs.tracking.saved_view import NIGHT, TAG, saved_view
from jobs.tracking.sqlite_store import require_store, sqlite_file
from pipelines.storage.manifest import code_version
from pipelines.storage.warehouse import Warehouse

JOB, RECORD = "nightjar.job", "nightjar.record"
DESCRIPTION = "mlflow.note.content"  # the tag with the description that the UI shows
LONGEST_NAME, CHARTS, TRAIN = 200, "/model-metrics", "train"


@dataclass(frozen=True)
class StepRun:
    """The run of one job of a night, and its page in the UI. Of a training: its charts."""

    job: str
    name: str
    link: str


class Tracker:
    """The runs of one night: a parent run, and a child run for each job.

    It opens the client and creates the parent run only when the first job logs something, so a night that finds all steps
    done creates no run.
    """

    tag, job_name = NIGHT, "nightly"  # of the parent run

    def __init__(self, config: Config, warehouse: Warehouse, ds: str, *, join_finished: bool = False) -> None:
        """`join_finished`: also add to the newest run of this ds if it has ended (for jobs that run one by one).

        Raises StoreError if MLflow's sqlite file is locked or cannot be used, and TrackingError if its server does not answer.
        """
        self._config, self._root, self.ds, self._join = config, warehouse.root, ds, join_finished
        self._update = warehouse.update
        self.name = f"{ds} {self._update.name}" if self._update else ds
        self.uri = tracking_uri(config, warehouse.root)
        self._night_run: str | None = None
        # A run is created when its job first logs. Its start time is the end of the job before.
        self._since = now()
        self._opened: TrackingClient | None = None
        self._require_record()

    def _require_record(self) -> None:
        """Find out whether the record can be written: now, and not after the hours of the first step."""
        require_store(self.uri)
        if sqlite_file(self.uri) is None:
            self._client.get_experiment_by_name(self._config.tracking.experiment)

    @property
    def _client(self) -> TrackingClient:
        if self._opened is None:
            self._opened = TrackingClient(self.uri)
        return self._opened

    @cached_property
    def registry(self) -> Registry:
        """The releases in MLflow."""
        return Registry(self._client, self._config.tracking.registered_model)

    @cached_property
    def experiment(self) -> str:
        """The id of the experiment, which is created if it does not exist."""
        name = self._config.tracking.experiment
        view = saved_view(self._config.evaluation.shown_k)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.tags.get(TAG) != view:
                self._client.set_experiment_tag(experiment.experiment_id, TAG, view)
            return str(experiment.experiment_id)
        local = self.uri.startswith("sqlite:")
        location = f"{self._root}/mlartifacts" if local and self._root.startswith("file://") else None
        # With this kind the UI shows columns of metrics and parameters instead of traces.
        tags = {"mlflow.experimentKind": "custom_model_development", TAG: view}
        return str(self._client.create_experiment(name, artifact_location=location, tags=tags))

    def _night(self) -> str:
        """The parent run. Continues the newest run of this name if it has not ended (its night was killed), else a new one."""
        if self._night_run is None:
            experiment = self.experiment
            newest = self._newest(experiment)
            if newest and (self._join or newest.info.status != "FINISHED"):
                self._night_run = newest.info.run_id
                self._client.update_run(self._night_run, status="RUNNING")
                self._end_killed(experiment, newest.info.run_id)
            else:
                self._night_run = self._new_night(experiment)
        return self._night_run

    def _new_night(self, experiment: str) -> str:
        tags = {self.tag: self.name} | self._tags("incremental" if self._update else self.job_name)
        run_id: str = self._client.create_run(experiment, self._since, run_name=self.title, tags=tags).info.run_id
        night, config = JobRun(self._client, run_id), self._config.model_dump(mode="json")
        night.params(config)
        night.json(config, "config.json")
        return run_id

    @property
    def title(self) -> str:
        """The name of the parent run."""
        return self.name if self._update else f"night {self.name}"

    def _newest(self, experiment: str) -> Any:
        """The newest parent run of this name, or None."""
        runs = self._client.search_runs([experiment], f"tags.`{self.tag}` = '{self.name}'", max_results=1)
        return runs[0] if runs else None

    def _end_killed(self, experiment: str, night: str) -> None:
        """Mark child runs that are still RUNNING as KILLED. This process holds the lock of the day, so their jobs are dead."""
        running = f"tags.`mlflow.parentRunId` = '{night}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment], running):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _tags(self, name: str) -> dict[str, str]:
        """Tags of every run. The UI shows mlflow.source.name in its column Source."""
        source = {"mlflow.source.name": f"jobs.{name}", "mlflow.source.type": "JOB"}
        return {"ds": self.ds, "code_version": code_version()} | source

    @contextmanager
    def job(self, name: str) -> Iterator[JobRun]:
        """A child run of the night, named by the job and its outcome.

        It ends FAILED, with the error as its description, if the block raises.
        """
        parent = self._night()
        tags = {"mlflow.parentRunId": parent, JOB: name} | self._tags(name)
        run = self._client.create_run(self.experiment, self._since, run_name=f"{name} {self.name}", tags=tags)
        job = JobRun(self._client, run.info.run_id, parent)
        try:
            yield job
        except BaseException as error:
            with suppress(Exception):  # Report the job's error even if MLflow does not answer.
                job.tags({"error": str(error)[:4000], DESCRIPTION: f"**Failed:** {str(error)[:4000]}"})
                self._end(job, f"{name}: {job.outcome or 'failed'}", "FAILED")
            raise
        self._end(job, f"{name}: {job.outcome}" if job.outcome else f"{name} {self.name}", "FINISHED")
        self._since = now()

    def _end(self, job: JobRun, name: str, status: str) -> None:
        self._client.update_run(job.run_id, name=name[:LONGEST_NAME])
        self._client.set_terminated(job.run_id, status)

    def night_run(self, *, create: bool = False) -> JobRun | None:
        """The parent run: the one that is open, else the newest of this night. None if there is none and none is created."""
        if create or self._night_run is not None:
            return JobRun(self._client, self._night())
        newest = self._newest(self.experiment)
        return JobRun(self._client, newest.info.run_id) if newest else None

    def steps(self, night: JobRun) -> list[StepRun]:
        """The runs of the jobs of a night, oldest first."""
        of_night = f"tags.`mlflow.parentRunId` = '{night.run_id}'"
        runs = self._client.search_runs([self.experiment], of_night, order_by=["attributes.start_time"])
        jobs = [run.data.tags.get(JOB, "") for run in runs]
        return [
            StepRun(job, run.info.run_name, self.link_of(run.info.run_id, CHARTS if job == TRAIN else ""))
            for job, run in zip(jobs, runs, strict=True)
        ]

    def link_of(self, run_id: str, part: str = "") -> str:
        """The page of a run, or a part of it, relative to the address of the UI."""
        return f"#/experiments/{self.experiment}/runs/{run_id}{part}"

    def night_metrics(self, values: dict[str, float]) -> None:
        """Log metrics on the parent run."""
        JobRun(self._client, self._night()).metrics(values)

    def night_tags(self, values: dict[str, str]) -> None:
        """Set tags on the parent run."""
        JobRun(self._client, self._night()).tags(values)

    def night_text(self, text: str, name: str) -> None:
        """Log a text artifact on the parent run, if this process has opened it."""
        if self._night_run is not None:
            JobRun(self._client, self._night_run).text(text, name)

    def record(self, name: str, value: float) -> None:
        """Add a point to a curve over the nights, and to the run of an update within the day.

        One run of the experiment holds these curves. The step is the number of days since 1970; for an update within the day
        it is the number of minutes from 1970 to the end of the update. The time of a point is that day or minute, so that the
        UI can show dates.
        """
        experiment = self.experiment
        runs = self._client.search_runs([experiment], f"tags.`{RECORD}` = 'true'", max_results=1)
        if runs:
            run_id = runs[0].info.run_id
        else:
            tags = {RECORD: "true", "mlflow.source.name": "jobs.nightly", "mlflow.source.type": "JOB"}
            run_id = self._client.create_run(experiment, self._since, run_name="all nights", tags=tags).info.run_id
            self._client.set_terminated(run_id, "FINISHED")
        since = datetime.fromisoformat(self._update.until if self._update else self.ds) - datetime(1970, 1, 1)
        step = since // (timedelta(minutes=1) if self._update else timedelta(days=1))
        JobRun(self._client, run_id).metrics({name: value}, step, since // timedelta(milliseconds=1))
        if self._update:
            self.night_metrics({name: value})

    def close_night(self, status: str) -> None:
        """End the parent run, if there is one, as FINISHED or FAILED. Errors while marking the run FAILED are suppressed."""
        if status != "FINISHED":
            with suppress(Exception):
                self._end_night(status)
            return
        experiment = self._client.get_experiment_by_name(self._config.tracking.experiment)
        if self._night_run is None and experiment is not None:
            newest = self._newest(experiment.experiment_id)
            # An earlier process was killed after its last step. This one had nothing to do and ends that run.
            if newest and newest.info.status == "RUNNING":
                self._end_killed(experiment.experiment_id, newest.info.run_id)
                self._night_run = newest.info.run_id
        self._end_night(status)

    def _end_night(self, status: str) -> None:
        if self._night_run is not None:
            self._client.set_terminated(self._night_run, status)
            self._night_run = None

"""The releases in MLflow: a logged model and a version of the registered model for each."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException

from jobs.tracking.client import TrackingClient
from jobs.tracking.datasets import InputDataset
from jobs.tracking.job_run import JobRun, now
from jobs.tracking.model_version import save_model_version

RELEASE, MODEL_ID = "release_id", "model_id"  # tags of a version


class Registry:
    """The versions of one registered model."""

    def __init__(self, client: TrackingClient, name: str) -> None:
        self._client, self._name = client, name

    def register(self, job: JobRun, experiment: str, manifest: dict[str, Any], uri: str) -> str:
        """Register a release as a logged model, and as a version that `mlflow models serve` can run. Returns the version.

        Both belong to the run of the night, so that its page links to them.
        """
        run_id = job.night or job.run_id
        tags = {RELEASE: manifest["release_id"], "ds": manifest["ds"], "uri": uri}
        params = {name: str(manifest[name]) for name in ("items", "dim", "lineage")}
        params |= {f"index.{name}": str(value) for name, value in manifest["index"].items()}
        model = self._logged_before(experiment, tags[RELEASE], run_id) or self._client.create_logged_model(
            experiment, tags[RELEASE], source_run_id=run_id, tags=tags, params=params, model_type="two_tower"
        )
        with tempfile.TemporaryDirectory(prefix="nightjar-version-") as folder:
            save_model_version(Path(folder, "release"), manifest, uri)
            Path(folder, "release", "release.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
            self._client.log_model_artifacts(model.model_id, str(Path(folder, "release")))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._link(run_id, model.model_id)
        self._create_registered_model()
        version = self._client.create_model_version(
            self._name, source=model.artifact_location, run_id=run_id, tags=tags | {MODEL_ID: model.model_id},
            model_id=model.model_id,
        )  # fmt: skip
        return str(version.version)

    def _logged_before(self, experiment: str, release_id: str, run_id: str) -> Any:
        """The logged model of a release that was published before by the same night, perhaps by a process that was killed."""
        found = self._client.search_logged_models([experiment], filter_string=f"name = '{release_id}'")
        return next((model for model in found if model.source_run_id == run_id), None)

    def _link(self, run_id: str, model_id: str) -> None:
        """Make a model an output of a run. MLflow refuses to do so twice."""
        outputs = self._client.get_run(run_id).outputs
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])

    def _create_registered_model(self) -> None:
        try:
            self._client.create_registered_model(self._name, description="Releases of the nightly two-tower model")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def version_of(self, release_id: str) -> str | None:
        """The newest version of a release, or None if it was never registered."""
        version = self._newest(release_id)
        return str(version.version) if version else None

    def _newest(self, release_id: str) -> Any:
        found = self._client.search_model_versions(f"name = '{self._name}' and tags.{RELEASE} = '{release_id}'")
        return max(found, key=lambda version: int(version.version), default=None)

    def describe(self, release_id: str, description: str, tags: Mapping[str, str]) -> None:
        """Set the description of the newest version of a release, and tags on it and on its logged model."""
        version = self._newest(release_id)
        if version is None:
            return
        self._client.update_model_version(self._name, version.version, description)
        for name, value in tags.items():
            self._client.set_model_version_tag(self._name, version.version, name, value)
        if model_id := version.tags.get(MODEL_ID):
            self._client.set_logged_model_tags(model_id, dict(tags))

    def measured(
        self, release_id: str, job: JobRun, values: Mapping[str, float], dataset: InputDataset | None = None
    ) -> None:
        """Log metrics of the logged model of a release, on a dataset if one is given. `job`: the run that measured them.

        Does nothing if the release is not registered (yet), or was registered by an earlier version of Nightjar.
        """
        version = self._newest(release_id)
        model_id = version.tags.get(MODEL_ID) if version else None
        if not model_id:
            return
        on = {"dataset_name": dataset.name, "dataset_digest": dataset.digest} if dataset else {}
        at = now()
        metrics = [Metric(key, float(v), at, 0, model_id=model_id, **on) for key, v in values.items() if v == v]
        self._client.log_batch(job.run_id, metrics=metrics)

    def make_champion(self, version: str) -> None:
        """Point the alias `champion` at a version: the release in use."""
        self._client.set_registered_model_alias(self._name, "champion", version)

    def make_challenger(self, version: str) -> None:
        """Point the alias `challenger` at a version: the newest release that a gate refused."""
        self._client.set_registered_model_alias(self._name, "challenger", version)

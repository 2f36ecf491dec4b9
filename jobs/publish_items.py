"""Publish a night: write item vectors, Faiss index, towers and vocabularies as one release, and make it the current one.

The release becomes current if all gates pass. The release of an update within the day (jobs/incremental.py) also contains
its changes.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from jobs.common.runner import Context, log, main, parser
from jobs.morning.at_end import refresh_night
from jobs.night.steps import as_job, require_model
from jobs.release.gates import GateError, judge
from jobs.release.index_of_night import description, index_of_night, log_index, sweep_of
from jobs.release.item_embeddings import vector_batches, write_item_embeddings
from jobs.release.lost_current import refuse_lost_current
from jobs.release.published_changes import write_changes
from jobs.release.recency_prior import log_prior
from jobs.release.recorded_evaluation import record_evaluation
from jobs.release.store import Current, folder_of, read_current, write_current
from jobs.release.verdict import Verdict
from jobs.tracking.datasets import datasets_of
from jobs.tracking.job_run import JobRun
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.tracker import Tracker
from model.io.urls import checksum
from model.serving.export import export_towers
from model.serving.faiss_index import save_index
from model.serving.index_choice import ChosenIndex
from model.serving.release import DIGEST, INDEX, ITEMS, MODEL, PRIOR, VOCABULARIES, Release, digest_of
from model.training.checkpoint import DESCRIPTION, STATE, load_checkpoint, with_prior_scale
from pipelines.contract.errors import InputError
from pipelines.contract.indices import FIRST
from pipelines.storage.lineage import one_lineage
from pipelines.storage.locks import locked_briefly
from pipelines.storage.manifest import code_version

# Tables that are copied into a release, and their folders. Readers need no other table.
COPIED = {
    "item_embeddings": "embeddings",
    "item_features": ITEMS,
    "models": MODEL,
    "vocabularies": VOCABULARIES,
}


def run(context: Context, tracker: Tracker) -> None:
    """Write the release of ds, register it, check the gates and make it current. Finished parts are skipped."""
    warehouse, ds = context.warehouse, context.ds
    embeddings = write_item_embeddings(context)
    release_id = str(embeddings.facts["release_id"])
    uri = folder_of(warehouse, release_id)
    exists = warehouse.exists(f"{uri}/manifest.json") and not context.force
    if exists:
        manifest, chosen = json.loads(warehouse.read_text(f"{uri}/manifest.json")), None
    else:
        manifest, chosen = _write_release(context, release_id)
    refuse_lost_current(context, release_id)
    verdict = judge(context, Release(release_id, uri, manifest))
    version = tracker.registry.version_of(release_id) if exists else None
    release = Release(release_id, uri, manifest)
    for gate in verdict.gates:
        log.info("publish_items %s: gate %s", ds, gate.line())
    if version is None or verdict.refused or _replaces_current(context, release_id):
        with tracker.job("publish_items") as job:
            if version is None:
                version = _register(context, tracker, job, release, chosen)
            _log_verdict(tracker, job, release, verdict, version)
            if not _publish(context, tracker, release_id, verdict, version):
                job.outcome = f"{release_id} passed, not in use"
                tracker.night_tags({"verdict": "Passed, not in use"})
    else:
        _publish(context, tracker, release_id, verdict, version)
    done = "already done, " if exists else ""
    log.info("publish_items %s: %srelease %s, %s items", ds, done, release_id, f"{manifest['items']:,}")


def _register(context: Context, tracker: Tracker, job: JobRun, release: Release, chosen: ChosenIndex | None) -> str:
    """Register a release in MLflow, with what is known about it. Returns its version."""
    manifest = release.manifest
    job.inputs(datasets_of(context, manifest["inputs"]), "release")
    job.metrics({"release/items": float(manifest["items"])})
    if prior := manifest.get(PRIOR):
        log_prior(job, prior)
    if chosen:
        log_index(job, chosen, context.config.index)
    version = tracker.registry.register(job, tracker.experiment, manifest, release.uri)
    tracker.registry.measured(release.release_id, job, {"index/recall": manifest["index"]["recall"]})
    record_evaluation(context, tracker, job)
    return version


def _log_verdict(tracker: Tracker, job: JobRun, release: Release, verdict: Verdict, version: str) -> None:
    """Log the gates of a release, and what follows from them for the names of runs and the table of nights."""
    job.params({name: release.manifest[name] for name in ("release_id", "index", "dim")})
    job.metrics({f"gates/{gate.name}": gate.value for gate in verdict.gates})
    job.table(_table(verdict), "gates")
    job.tags({"release_id": release.release_id, "model_version": version})
    refused = ", ".join(verdict.refused)
    job.outcome = f"refused ({refused})" if refused else f"published {release.release_id}"
    outcome = f"Refused: {refused}" if refused else "Published"
    tracker.night_tags({"release_id": release.release_id, "gates": verdict.passed, "verdict": outcome})


def _publish(context: Context, tracker: Tracker, release_id: str, verdict: Verdict, version: str) -> bool:
    """Make a release the current one, and set its alias in MLflow. Returns whether it is current.

    Raises GateError if a gate refuses it.
    """
    if refusal := verdict.refusal():
        tracker.registry.make_challenger(version)
        stays = read_current(context.warehouse).release_id or "unset"
        raise GateError(
            f"release {release_id} is not published; `current` stays {stays}. {refusal} "
            "To publish it anyway, change the limit (--set gates.NAME=VALUE; for index_recall index.recall_target, for "
            "update_loss gates.recall_loss) and run publish_items again"
        )
    if not _make_current(context, release_id):
        return False
    tracker.registry.make_champion(version)
    return True


def _request(context: Context, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of a request that the model reads, each with an example. The history also serves to exclude seen items."""
    facts = context.warehouse.require("vocabularies", context.ds, "").facts
    if "request" not in facts:
        raise InputError(
            f"table vocabularies ds={context.ds} was written by an earlier version, which did not store how values are "
            "encoded. Run build_positives for this ds with --force, then publish_items again"
        )
    features = [*schema["user"], *schema.get("context", [])]
    columns = {feature["column"]: feature for feature in features} | {"history": {}}
    values = context.warehouse.read("vocabularies", context.ds).where(F.col("index") == FIRST).collect()
    first_values = {row["feature"]: row["value"] for row in values}

    def example(field: dict[str, Any]) -> Any:
        if field["kind"] == "numeric":
            return columns[field["column"]].get("mean", 1.0)
        if field["kind"] == "vector":
            return [round(field["length"] ** -0.5, 6)] * field["length"]
        if field["kind"] in ("hour", "weekday"):
            return 1
        value = first_values.get(field["vocabulary"], "1")
        if field["type"] == "boolean":
            return value == "true"
        return int(value) if field["type"] == "integer" else value

    fields = [field | {"example": example(field)} for field in facts["request"] if field["column"] in columns]
    for field in fields:
        if "actions" in field:
            field["actions"] = field["actions"] | {"example": first_values.get(field["actions"]["vocabulary"])}
    return fields


def _table(verdict: Verdict) -> dict[str, list[Any]]:
    gates = verdict.gates
    return {
        "gate": [gate.name for gate in gates],
        "value": [gate.value for gate in gates],
        "limit": [gate.limit for gate in gates],
        "passed": [gate.passed for gate in gates],
        "says": [gate.says for gate in gates],
    }


def _write_release(context: Context, release_id: str) -> tuple[dict[str, Any], ChosenIndex]:
    """Write the folder of a release: stage it, describe it, move it into place. Returns its manifest and its index choice."""
    warehouse, ds = context.warehouse, context.ds
    schema = require_model(context, ds, "").facts["schema"]
    copied = {f"table {table} ds={ds}": warehouse.require(table, ds, "") for table in COPIED}
    embeddings = copied[f"table item_embeddings ds={ds}"]
    prior = embeddings.facts.get(PRIOR)
    lineage = one_lineage(copied, f"run build_negatives and train for ds={ds} again")
    staging = warehouse.new_staging("releases", ds)
    with warehouse.deleted_on_error(staging):
        with tempfile.TemporaryDirectory(prefix="nightjar-index-") as local:
            chosen = index_of_night(context, lambda: vector_batches(context), _dim(context), prior)
            save_index(chosen.index, Path(local, INDEX))
            towers = load_checkpoint(warehouse.path("models", ds))
            towers.prior_scale = prior["scale"] if prior else None
            export_towers(towers, Path(local, "towers"))
            warehouse.upload(Path(local), staging)
        for table, name in COPIED.items():
            _copy_files(context, warehouse.path(table, ds), f"{staging}/{name}")
        if prior:  # The model of the release returns the vectors that are served.
            uri = f"{staging}/{MODEL}/{DESCRIPTION}"
            warehouse.write_text(uri, with_prior_scale(warehouse.read_text(uri), prior["scale"]))
        update = warehouse.update
        of_update = {"update": asdict(update), "changes": write_changes(context, update, staging)} if update else {}
        manifest = {
            "release_id": release_id,
            "ds": ds,
            "lineage": lineage,
            "items": int(chosen.index.ntotal),
            "dim": int(chosen.index.d),
            "components": towers.components,
            "index": description(chosen, context.config.index),
            "index_sweep": sweep_of(chosen),
            "schema": schema,
            "request": _request(context, schema),
            "inputs": embeddings.inputs,
            **({PRIOR: prior} if prior else {}),
            **of_update,
            "files": {file.removeprefix(staging).lstrip("/"): checksum(file) for file in warehouse.data_files(staging)},
            "code_version": code_version(),
        }
        manifest[DIGEST] = digest_of(manifest)
        # The manifest is moved last, so a folder with a manifest is complete.
        warehouse.write_text(f"{staging}/manifest.json", json.dumps(manifest, indent=1, sort_keys=True))
        warehouse.replace_folder(staging, folder_of(warehouse, release_id), last="manifest.json")
    return manifest, chosen


def _make_current(context: Context, release_id: str) -> bool:
    """Make the release current, unless there is a reason not to (`_kept`). Returns whether it is current now."""
    warehouse = context.warehouse
    with locked_briefly(warehouse, "current", "publish_items"):
        now = read_current(warehouse)
        if now.release_id == release_id:
            return True
        if why := _kept(context, now, release_id):
            log.info("publish_items %s: current stays %s%s", context.ds, now.release_id, why)
            return False
        others = [name for name in now.rolled_back if name != release_id]
        write_current(warehouse, Current(release_id, context.ds, others))
        return True


def _replaces_current(context: Context, release_id: str) -> bool:
    """Whether a release that passes its gates becomes the current one and is not yet."""
    now = read_current(context.warehouse)
    return now.release_id != release_id and not _kept(context, now, release_id)


def _kept(context: Context, now: Current, release_id: str) -> str | None:
    """Why the current release stays in use: it is of a later night (this is a back-fill), or this one was rolled back."""
    if now.ds > context.ds:
        return ", which is of a later day"
    if release_id in now.rolled_back and not context.force:
        return f": {release_id} was rolled back; --force publishes it again"
    return None


def _dim(context: Context) -> int:
    return int(next(vector_batches(context))[1].shape[1])


def _copy_files(context: Context, source: str, target: str) -> None:
    for uri in context.warehouse.data_files(source):
        if uri.endswith(f"/{STATE}"):  # the state of the optimiser, which serving does not need
            continue
        context.warehouse.copy(uri, f"{target}/{uri.rsplit('/', 1)[-1]}")


if __name__ == "__main__":
    job = as_job("publish_items", run, refresh_night)
    sys.exit(main(parser("publish_items", __doc__), job, before_spark=require_record))

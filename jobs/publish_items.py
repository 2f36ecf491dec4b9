"""Publish a night: item vectors, Faiss index, towers and vocabularies as one release; past the gates, `current` moves."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet as pq

from jobs.support.embeddings import write_item_embeddings
from jobs.support.gates import GateError, Verdict, judge
from jobs.support.index import description, index_of_night, log_index
from jobs.support.nights import alone, require_model
from jobs.support.release import Release, current_release, current_uri, folder_of
from jobs.support.runner import Context, log, main, parser
from jobs.support.tracking import Tracker
from model.arrays import to_arrays
from model.checkpoint import STATE, load_checkpoint
from model.export import export_towers
from model.files import checksum, resolve
from model.index import ChosenIndex, save_index
from pipelines.storage import code_version


def run(context: Context, tracker: Tracker) -> None:
    """Write the release of ds, register it and make it the current one; whatever of this is done is not done again."""
    warehouse, ds = context.warehouse, context.ds
    embeddings = write_item_embeddings(context)
    release_id = str(embeddings.facts["release_id"])
    uri = folder_of(warehouse, release_id)
    there = warehouse.exists(f"{uri}/manifest.json") and not context.force
    if there:
        manifest, chosen = json.loads(warehouse.read_text(f"{uri}/manifest.json")), None
    else:
        manifest, chosen = _write_release(context, release_id)
    verdict = judge(context, Release(release_id, uri, manifest))
    version = tracker.version_of(release_id)
    if not there or version is None:
        with tracker.job("publish_items") as job:
            job.inputs(warehouse.root, embeddings.inputs)
            job.params({name: manifest[name] for name in ("release_id", "index", "dim")})
            job.metrics({"release.items": float(manifest["items"])})
            job.metrics({f"gate.{gate.name}": gate.value for gate in verdict.gates})
            job.table(_table(verdict), "gates")
            if chosen:
                log_index(job, chosen, context.config.index)
            version = version or tracker.register(job, manifest, uri)
            job.tags({"release_id": release_id, "model_version": version})
        tracker.night_tags({"release_id": release_id})
    for gate in verdict.gates:
        log.info("publish_items %s: gate %s", ds, gate.line())
    if refusal := verdict.refusal():
        tracker.make_challenger(version)
        tracker.night_tags({"gates": "refused"})
        raise GateError(
            f"release {release_id} is not published; `current` stays {verdict.against or 'as it is'}. {refusal} "
            "If it is what you want, raise the tolerance (--set gates.NAME=VALUE) and publish again"
        )
    before = current_release(context)
    if _make_current(context, release_id):
        tracker.make_champion(version)
        if before is None or before.release_id != release_id:  # It may have been refused before.
            tracker.night_tags({"gates": "passed"})
    done = "already done, " if there else ""
    log.info("publish_items %s: %srelease %s, %s items", ds, done, release_id, f"{manifest['items']:,}")


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
    """The folder of a release, staged, described and moved into place. Returns its manifest, and how its index was found."""
    warehouse, ds = context.warehouse, context.ds
    model = require_model(context, ds, "")
    staging = warehouse.new_staging("releases", ds)
    with tempfile.TemporaryDirectory(prefix="nightjar-index-") as local:
        chosen = index_of_night(context, lambda: _vectors(context), _dim(context))
        save_index(chosen.index, Path(local, "index.faiss"))
        export_towers(load_checkpoint(warehouse.path("models", ds)), Path(local, "towers"))
        warehouse.upload(Path(local), staging)
    for table, name in (("item_embeddings", "embeddings"), ("models", "model"), ("vocabularies", "vocabularies")):
        _copy_files(context, warehouse.path(table, ds), f"{staging}/{name}")
    manifest = {
        "release_id": release_id,
        "ds": ds,
        "items": int(chosen.index.ntotal),
        "dim": int(chosen.index.d),
        "index": description(chosen, context.config.index),
        "schema": model.facts["schema"],
        "inputs": warehouse.require("item_embeddings", ds, "").inputs,
        "files": {file.removeprefix(staging).lstrip("/"): checksum(file) for file in warehouse.data_files(staging)},
        "code_version": code_version(),
    }
    # The manifest is part of what is moved; `current` names the folder only once it is whole.
    warehouse.write_text(f"{staging}/manifest.json", json.dumps(manifest, indent=1, sort_keys=True))
    warehouse.replace_folder(staging, folder_of(warehouse, release_id))
    return manifest, chosen


def _make_current(context: Context, release_id: str) -> bool:
    """Point readers at the release, unless a later night is published already (a back-fill must not turn time back).

    Returns whether it is the current one now.
    """
    warehouse = context.warehouse
    uri = current_uri(warehouse)
    now = json.loads(warehouse.read_text(uri)) if warehouse.exists(uri) else {"release_id": "", "ds": ""}
    if now["release_id"] == release_id:
        return True
    if now["ds"] > context.ds:
        log.info("publish_items %s: current stays %s, which is of a later day", context.ds, now["release_id"])
        return False
    warehouse.write_text(uri, json.dumps({"release_id": release_id, "ds": context.ds}))
    return True


def _files(context: Context) -> list[str]:
    return context.warehouse.data_files(context.warehouse.path("item_embeddings", context.ds))


def _vectors(context: Context) -> Iterator[tuple[Any, Any]]:
    """Item vectors a batch at a time: the driver never holds the table, only the index that grows from it."""
    for url in _files(context):
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(65_536, columns=["item_index", "embedding"]):
                arrays = to_arrays(batch, url)
                yield arrays["item_index"].astype(np.int64), arrays["embedding"]


def _dim(context: Context) -> int:
    return int(next(_vectors(context))[1].shape[1])


def _copy_files(context: Context, source: str, target: str) -> None:
    for uri in context.warehouse.data_files(source):
        if uri.endswith(f"/{STATE}"):  # Of training; serving has no use for it.
            continue
        context.warehouse.copy(uri, f"{target}/{uri.rsplit('/', 1)[-1]}")


if __name__ == "__main__":
    sys.exit(main(parser("publish_items", __doc__), alone(run)))

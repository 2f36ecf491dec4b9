"""Checkpoints on the way: all that a run killed in the middle needs to end as if nothing had happened.

A folder a checkpoint, named by the steps done; the newest that is whole counts, and the one before goes once it is there.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping

import pyarrow.fs as pafs
from pydantic import ValidationError
from torch import Tensor

from model.distributed.collectives import broadcast_int, rank
from model.io.tensor_file import StreamedTensor, drain, encode
from model.io.urls import checksum, read_bytes, resolve, write_folder
from model.training.spec import EpochMetrics, RecorderState, TrainingSpec
from pipelines.contract.strict import StrictModel

log = logging.getLogger(__name__)

TENSORS, DESCRIPTION = "tensors.safetensors", "progress.json"
# What may be another when a run goes on: where and how it runs, not what it does.
_CIRCUMSTANCES = {"output", "resume", "progress"}
_OF_TRAINING = {
    "processes", "threads", "launcher", "timeout_seconds", "reader_threads", "catalogue_memory_mb", "checkpoint_steps"
}  # fmt: skip


class Progress(StrictModel):
    """How far a run had come. Its tensors lie beside."""

    run: str
    epoch: int
    steps_of_epoch: int  # done of this epoch
    shards: int  # of this epoch: how many processes it began with
    loss_before: float  # sum over the epochs before
    epochs: list[EpochMetrics]
    recorder: RecorderState


class _Description(StrictModel):
    progress: Progress
    sha256: str


def identity(spec: TrainingSpec) -> str:
    """Which run a spec describes, on whatever processes: a checkpoint of another run is not gone on from."""
    said = spec.model_dump(mode="json", exclude=_CIRCUMSTANCES)
    said["training"] = {name: value for name, value in said["training"].items() if name not in _OF_TRAINING}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def save_progress(folder: str, progress: Progress, tensors: Mapping[str, Tensor | StreamedTensor]) -> None:
    """Write one checkpoint, then let the older ones go. Every rank calls it, rank 0 writes."""
    if rank() > 0:
        drain(tensors)
        return
    digest = hashlib.sha256()

    def content() -> Iterator[bytes | memoryview]:
        for piece in encode(tensors):
            digest.update(piece)
            yield piece

    def description() -> Iterator[bytes]:  # Asked for when the tensors are written.
        yield _Description(progress=progress, sha256=digest.hexdigest()).model_dump_json().encode()

    step = progress.recorder.step
    write_folder(f"{folder}/step={step}", {TENSORS: content(), DESCRIPTION: description()})
    filesystem, path = resolve(folder)
    for old in saved_steps(folder):
        if old < step:
            filesystem.delete_dir(f"{path}/step={old}")


def find_progress(folder: str, run: str) -> tuple[Progress, str] | None:
    """The newest whole checkpoint of this run and the URL of its tensors; None without one. All get what rank 0 found."""
    step = -1
    if rank() == 0:
        step = next((step for step in reversed(saved_steps(folder)) if _is_whole(f"{folder}/step={step}", run)), -1)
    step = broadcast_int(step)
    if step < 0:
        return None
    place = f"{folder}/step={step}"
    return _described(place).progress, f"{place}/{TENSORS}"


def _described(place: str) -> _Description:
    return _Description.model_validate_json(read_bytes(f"{place}/{DESCRIPTION}"))


def _is_whole(place: str, run: str) -> bool:
    try:
        described = _described(place)
        whole = checksum(f"{place}/{TENSORS}") == described.sha256
    except (OSError, ValidationError):
        whole = False
    if not whole:
        log.warning("the checkpoint on the way %s is damaged or of another version: it is left out", place)
        return False
    if described.progress.run != run:
        log.info("%s is of a run with another config or other inputs: it is left out", place)
        return False
    return True


def saved_steps(folder: str) -> list[int]:
    """Steps of the checkpoints that are there, oldest first."""
    filesystem, path = resolve(folder)
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))]
    steps = (name.removeprefix("step=") for name in names)
    return sorted(int(step) for step in steps if step.isdecimal())

"""Intermediate checkpoints: a killed run resumes from them and ends with the same result as an uninterrupted run.

Each checkpoint is a folder named by the number of steps done. A run resumes from the newest complete one. Older ones are
deleted after a new one has been written.
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
# Settings that may change between the parts of a run: they decide where and how it runs, not what it computes.
_RUN_SETTINGS = {"output", "resume", "progress", "log_level"}
_RUN_SETTINGS_OF_TRAINING = {
    "processes", "threads", "launcher", "timeout_seconds", "reader_threads", "catalogue_memory_mb", "checkpoint_steps",
    "device",
}  # fmt: skip


class Progress(StrictModel):
    """State of an interrupted run, besides its tensors."""

    run: str
    epoch: int
    steps_of_epoch: int  # Steps done in this epoch.
    shards: int  # Number of processes that this epoch began with.
    loss_before: float  # Sum of the loss over the steps of earlier epochs.
    epochs: list[EpochMetrics]
    recorder: RecorderState


class _Description(StrictModel):
    progress: Progress
    sha256: str


def identity(spec: TrainingSpec) -> str:
    """Hash of the settings that decide the result, not the number of processes. A run resumes only its own checkpoints."""
    settings = spec.model_dump(mode="json", exclude=_RUN_SETTINGS)
    del settings["model"]["item_item"]  # It is fitted beside the training, which does not see it.
    settings["training"] = {
        name: value for name, value in settings["training"].items() if name not in _RUN_SETTINGS_OF_TRAINING
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def save_progress(folder: str, progress: Progress, tensors: Mapping[str, Tensor | StreamedTensor]) -> None:
    """Write an intermediate checkpoint, then delete older ones. Every rank calls this, and rank 0 writes."""
    if rank() > 0:
        drain(tensors)
        return
    digest = hashlib.sha256()

    def content() -> Iterator[bytes | memoryview]:
        for piece in encode(tensors):
            digest.update(piece)
            yield piece

    def description() -> Iterator[bytes]:  # Runs after the tensors have been written.
        yield _Description(progress=progress, sha256=digest.hexdigest()).model_dump_json().encode()

    step = progress.recorder.step
    write_folder(f"{folder}/step={step}", {TENSORS: content(), DESCRIPTION: description()})
    filesystem, path = resolve(folder)
    for old in saved_steps(folder):
        if old < step:
            filesystem.delete_dir(f"{path}/step={old}")


def find_progress(folder: str, run: str) -> tuple[Progress, str] | None:
    """The newest complete checkpoint of this run and the URL of its tensors, or None. Rank 0 searches for all ranks."""
    step = -1
    if rank() == 0:
        step = next((step for step in reversed(saved_steps(folder)) if _is_usable(f"{folder}/step={step}", run)), -1)
    step = broadcast_int(step)
    if step < 0:
        return None
    checkpoint = f"{folder}/step={step}"
    return _read_description(checkpoint).progress, f"{checkpoint}/{TENSORS}"


def _read_description(checkpoint: str) -> _Description:
    return _Description.model_validate_json(read_bytes(f"{checkpoint}/{DESCRIPTION}"))


def _is_usable(checkpoint: str, run: str) -> bool:
    """Whether a checkpoint is complete and of this run."""
    try:
        description = _read_description(checkpoint)
        complete = checksum(f"{checkpoint}/{TENSORS}") == description.sha256
    except (OSError, ValidationError):
        complete = False
    if not complete:
        log.warning("the intermediate checkpoint %s is damaged or of another version: it is ignored", checkpoint)
        return False
    if description.progress.run != run:
        log.info("%s is of a run with another config or other inputs: it is ignored", checkpoint)
        return False
    return True


def saved_steps(folder: str) -> list[int]:
    """Steps of the intermediate checkpoints in a folder, ascending."""
    filesystem, path = resolve(folder)
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))]
    steps = (name.removeprefix("step=") for name in names)
    return sorted(int(step) for step in steps if step.isdecimal())

"""Chooses the number of epochs of a first night: keeps the state of the best epoch, and stops when later ones are no better.

The measure is the loss on the valid split. Recall is a worse guide: it counts hits, so with a few hundred positives it
differs between epochs by chance as much as by quality. Weights that grow with the quality of the model (top_k) are left out
of this loss.

The decision depends only on the recorded figures of the epochs, which are equal on all ranks and saved in every intermediate
checkpoint. A resumed run therefore decides like an uninterrupted one.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import pyarrow.fs as pafs
from torch import Tensor

from model.distributed.collectives import rank
from model.io.tensor_file import StreamedTensor, drain, encode
from model.io.urls import resolve, write_folder
from model.training.spec import EarlyStopping, EpochMetrics

log = logging.getLogger("nightjar.training")  # Jobs show the messages of this logger.

TENSORS = "tensors.safetensors"


def best_epoch(epochs: Sequence[EpochMetrics]) -> int:
    """Position of the epoch with the lowest validation loss; of equal ones the first."""
    losses = [math.inf if epoch.valid_loss is None else epoch.valid_loss for epoch in epochs]
    return losses.index(min(losses))


def is_over(epochs: Sequence[EpochMetrics], patience: int) -> bool:
    """Whether the last `patience` epochs are no better than an earlier one."""
    return bool(epochs) and len(epochs) - 1 - best_epoch(epochs) >= patience


class BestEpoch:
    """The state after the best epoch of a run, in the folder of its intermediate checkpoints."""

    def __init__(self, settings: EarlyStopping, folder: str, run: str, epochs: int) -> None:
        """`run`: see resume.identity; a run with another config may leave states in the same folder. `epochs`: at most."""
        self._settings, self._folder, self._most = settings, folder, epochs
        self._prefix = f"best-{run[:12]}-epoch="

    def after_epoch(self, epochs: Sequence[EpochMetrics], state: Mapping[str, Tensor | StreamedTensor]) -> bool:
        """Write the state if the last of `epochs` is the best one so far. Returns whether training should stop.

        Every rank calls this, and rank 0 writes.
        """
        last, is_best = epochs[-1], best_epoch(epochs) == len(epochs) - 1
        if is_best and rank():
            drain(state)
        elif is_best:
            write_folder(f"{self._folder}/{self._prefix}{last.epoch}", {TENSORS: encode(state)})
        if not rank():
            log.info(
                "training: epoch %d of at most %d: loss %.4f on the held-out hours%s",
                last.epoch + 1, self._most, last.valid_loss, ", the best so far" if is_best else "",
            )  # fmt: skip
        return is_over(epochs, self._settings.patience)

    def to_load(self, epochs: Sequence[EpochMetrics]) -> str | None:
        """URL of the tensors of the best epoch, at the end of training. None: the last epoch is the best one."""
        best = epochs[best_epoch(epochs)]
        if not rank():
            log.info("training: keeps epoch %d of %d", best.epoch + 1, len(epochs))
        return None if best is epochs[-1] else f"{self._folder}/{self._prefix}{best.epoch}/{TENSORS}"

    def delete_others(self, epochs: Sequence[EpochMetrics]) -> None:
        """Delete the states of other epochs than the best one, on rank 0.

        Call it after an intermediate checkpoint that contains `epochs` has been written. Until then the newest checkpoint
        may be older, and a run that resumes from it may need the state of an earlier epoch.
        """
        if rank() or not epochs:
            return
        best = f"{self._prefix}{epochs[best_epoch(epochs)].epoch}"
        filesystem, path = resolve(self._folder)
        for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            if info.base_name.startswith(self._prefix) and info.base_name != best:
                filesystem.delete_dir(info.path)

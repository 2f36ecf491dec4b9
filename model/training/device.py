"""The device that a training process computes on."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import TrainingConfig

CPU = torch.device("cpu")


class DeviceError(RuntimeError):
    """The config asks for a GPU that this machine does not offer (exit 2)."""

    exit_code = 2


def training_device(config: TrainingConfig) -> torch.device:
    """The device of this process: the CPU, or the GPU with the process's number on this machine (LOCAL_RANK).

    Raises DeviceError if there is no GPU or fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cpu" or (config.device == "auto" and (not gpus or not _assigns_gpus(config))):
        return CPU
    if not gpus:
        raise DeviceError(
            "training.device is cuda, but torch finds no GPU here: install a torch with CUDA and check nvidia-smi, or set "
            "training.device: cpu"
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", config.processes))
    if processes > gpus:
        raise DeviceError(
            f"training.processes: {processes} processes on this machine need a GPU each, and torch finds {gpus}: lower "
            "training.processes, or set training.device: cpu"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def backend_of(device: torch.device) -> str:
    """The backends of a process group. Small tensors, such as counts and figures, stay on the CPU in either case."""
    return "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on a device. Copies from pinned memory, so that the copy runs beside the computation."""
    if device.type == "cpu":
        return dict(batch)
    return {name: values.pin_memory().to(device, non_blocking=True) for name, values in batch.items()}


def _assigns_gpus(config: TrainingConfig) -> bool:
    """Whether processes know which GPU is theirs. On Spark executors all have the number 0."""
    return config.processes == 1 or config.launcher == "torchrun"

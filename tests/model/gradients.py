"""One backward pass over a spec, gradients written by rank 0: `python -m tests.model.gradients SPEC.json OUT.pt`."""

import os
import sys
from pathlib import Path

import pyarrow  # noqa: F401
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model.collectives import rank, sum_over_ranks, world_size
from model.data import Samples, sample_columns
from model.spec import TrainingSpec
from model.training import build_step


def main(spec_file: str, out: str) -> None:
    spec = TrainingSpec.model_validate_json(Path(spec_file).read_text())
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    step = build_step(spec)
    module = DistributedDataParallel(step) if world_size() > 1 else step
    samples = Samples(spec.train, sample_columns(spec.features), spec.training, spec.seed, rank(), world_size())
    with samples.epoch(0) as batches:
        output = module(next(batches), samples.plan.capacity)
    output.loss.backward()
    figures = sum_over_ranks(output.figures)
    if rank() == 0:
        gradients = {
            name: parameter.grad.to_dense() for name, parameter in step.named_parameters() if parameter.grad is not None
        }
        torch.save({"loss": figures[0], "rows": figures[1], "gradients": gradients}, out)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # As model.launch does, and for its reason.

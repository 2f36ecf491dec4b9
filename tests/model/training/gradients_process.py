"""Runs one backward pass for each spec. Rank 0 writes the gradients.

python -m tests.model.training.gradients_process OUT.pt SPEC.json ...
"""

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow  # noqa: F401
import torch
import torch.distributed as dist

from model.data.petastorm_reader import SampleReader, sample_columns
from model.distributed.collectives import rank, sum_over_ranks, world_size
from model.distributed.replicated_embedding import distribute, exchange_gradients, replicated_tables
from model.training.build import build_step
from model.training.spec import TrainingSpec


def main(out: str, *spec_files: str) -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    results = [one_pass(TrainingSpec.model_validate_json(Path(file).read_text())) for file in spec_files]
    if rank() == 0:
        torch.save(results, out)
    if dist.is_initialized():
        dist.destroy_process_group()


def one_pass(spec: TrainingSpec) -> dict[str, Any]:
    """Two forward passes, so that a streaming estimator has learned from the first, then one backward pass."""
    step = build_step(spec)
    module = distribute(step) if world_size() > 1 else step
    columns = sample_columns(spec.features, versions=bool(spec.item_versions), packing=spec.packing)
    samples = SampleReader(spec.train, columns, spec.training, spec.seed, rank(), world_size(), spec.packing)
    capacity = None if spec.pack else samples.plan.capacity
    with samples.epoch(0) as batches:
        batch = next(batches)
    with torch.no_grad():
        module(batch, capacity)
    output = module(batch, capacity)
    output.loss.backward()
    exchange_gradients(list(replicated_tables(step).values()))
    figures = sum_over_ranks(output.figures)
    gradients = {
        name: parameter.grad.to_dense() for name, parameter in step.named_parameters() if parameter.grad is not None
    }
    state = step.frequency.state_dict() if step.frequency else {}
    if world_size() > 1:
        for name, values in state.items():
            assert torch.equal(sum_over_ranks(values), world_size() * values), f"{name} differs between ranks"
    return {"figures": figures, "gradients": gradients, "frequency": state}


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # See model.training.launch._exit_at_once.

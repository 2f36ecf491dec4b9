"""Loss on the valid split, after each epoch."""

import math
from typing import NamedTuple

import torch

from model.data.packed_rows import share_of
from model.data.petastorm_reader import SampleReader, sample_columns
from model.distributed.collectives import rank, sum_over_ranks, world_size
from model.training.device import on_device
from model.training.spec import TrainingSpec
from model.training.step import FIGURES, RetrievalStep


class Validation(NamedTuple):
    """Mean loss, and recall@10 among the shared candidates."""

    loss: float | None
    recall_in_batch: float | None


def validate(step: RetrievalStep, spec: TrainingSpec) -> Validation:
    """Measure the model on the valid split. Both figures are None if the split is empty.

    Every rank reads the whole split and takes its part of each batch. The split is small and may have fewer row groups
    than there are ranks; the results are the same for any number of ranks. `step` must be in eval mode.
    """
    if not sum(file.rows for file in spec.valid):
        return Validation(None, None)
    columns = sample_columns(spec.features, versions=bool(spec.item_versions), packing=spec.packing)
    samples = SampleReader(spec.valid, columns, spec.training, spec.seed, rank=0, world_size=1, packing=spec.packing)
    capacity = None if spec.pack else math.ceil(samples.plan.capacity / world_size())
    loss = rows = hits = 0.0
    with torch.no_grad(), samples.epoch(0, shuffle=False) as batches:
        for batch in batches:
            local = share_of(on_device(batch, step.device), rank(), world_size())
            figures = dict(zip(FIGURES, sum_over_ranks(step(local, capacity).figures).tolist(), strict=True))
            loss += figures["loss"] * figures["rows"]
            rows += figures["rows"]
            hits += figures["hits"]
    return Validation(loss / rows, hits / rows)

"""Loss and recall on the valid split, after each epoch."""

import math
from typing import NamedTuple

import torch

from model.data.packed_rows import share_of
from model.data.petastorm_reader import SampleReader, sample_columns
from model.distributed.collectives import rank, sum_over_ranks, world_size
from model.training.corpus_recall import CorpusRecall
from model.training.device import on_device
from model.training.spec import TrainingSpec
from model.training.step import FIGURES, RetrievalStep

_NUMBER = "row_number"  # Column: position of a row in the valid split.


class Validation(NamedTuple):
    """Mean loss, recall@10 among the shared candidates and, with early stopping, recall over the whole catalogue."""

    loss: float | None
    recall_in_batch: float | None
    recall: float | None


def validate(step: RetrievalStep, spec: TrainingSpec) -> Validation:
    """Measure the model on the valid split. All figures are None if the split is empty.

    Every rank reads the whole split and takes its part of each batch. The split is small and may have fewer row groups
    than there are ranks; the results are the same for any number of ranks. `step` must be in eval mode.
    """
    if not sum(file.rows for file in spec.valid):
        return Validation(None, None, None)
    columns = sample_columns(spec.features, versions=bool(spec.item_versions), packing=spec.packing)
    samples = SampleReader(spec.valid, columns, spec.training, spec.seed, rank=0, world_size=1, packing=spec.packing)
    capacity = None if spec.pack else math.ceil(samples.plan.capacity / world_size())
    stopping, split = spec.early_stopping, samples.plan.positives
    corpus = CorpusRecall(step, stopping.recall_at, split) if stopping else None
    loss = rows = hits = 0.0
    with torch.no_grad(), samples.epoch(0, shuffle=False) as batches:
        for batch in batches:
            batch = on_device(batch, step.device)
            batch[_NUMBER] = round(rows) + torch.arange(len(batch["weight"]), device=step.device)
            local = share_of(batch, rank(), world_size())
            figures = dict(zip(FIGURES, sum_over_ranks(step(local, capacity).figures).tolist(), strict=True))
            loss += figures["loss"] * figures["rows"]
            rows += figures["rows"]
            hits += figures["hits"]
            if corpus:
                corpus.add(local, local[_NUMBER])
    return Validation(loss / rows, hits / rows, corpus.result() if corpus else None)

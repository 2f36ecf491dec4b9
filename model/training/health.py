"""Signs of a degenerating model during training: length of embeddings, spread of vectors, memory.

Shapes: U distinct candidates of a step, d vector length.
"""

import resource
import sys

import torch
from torch import Tensor

from model.network.embeddings import lookup_column, table_name
from model.training.step import RetrievalStep, StepOutput
from pipelines.contract.strict import StrictModel


class Health(StrictModel):
    """Measurements after one step. Vectors have unit length, so a collapse shows only in their directions."""

    embedding_norm: float  # Mean norm of the rows of the item id table, over the candidates of the step.
    mean_cosine: float  # Of two different candidates: 1 if all vectors are equal, about 0 if directions are uniform.
    effective_dimensions: float  # How many of the d dimensions separate candidates (`effective_dimensions`).
    memory_mb: float  # Peak memory of this process.


@torch.no_grad()
def measure_health(step: RetrievalStep, output: StepOutput) -> Health:
    """Measure the model after a step."""
    ids = step.towers.schema.item_id
    rows_U = step.catalogue.gather(output.candidates.rows_U)[lookup_column(ids)]
    return Health(
        embedding_norm=float(step.towers.tables[table_name(ids)](rows_U).norm(dim=1).mean()),
        mean_cosine=mean_cosine(output.items_Ud),
        effective_dimensions=effective_dimensions(output.items_Ud),
        memory_mb=peak_memory_mb(),
    )


def mean_cosine(vectors_Ud: Tensor) -> float:
    """Mean cosine over pairs of different rows of unit length: (|sum v|^2 - U) / (U (U - 1)). 1 for a single row."""
    count = len(vectors_Ud)
    if count < 2:
        return 1.0
    return float((vectors_Ud.double().sum(0).square().sum() - count) / (count * (count - 1)))


def effective_dimensions(vectors_Ud: Tensor) -> float:
    """Participation ratio of the covariance C: (tr C)^2 / tr C^2. 0: one point; 1: a line; d: the same variance everywhere.

    The mean is removed first: a component that all vectors share does not change any ranking.
    """
    centred_Ud = vectors_Ud.double() - vectors_Ud.double().mean(0)
    covariance_dd = centred_Ud.T @ centred_Ud
    return float(covariance_dd.trace().square() / covariance_dd.square().sum().clamp(min=1e-300))


def peak_memory_mb() -> float:
    """Peak resident memory of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # Bytes on macOS, KiB elsewhere.

"""Optimisers for three sorts of parameters: MLPs, embedding tables, and tables too large to touch whole a step."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR

from model.config import TrainingConfig
from model.step import RetrievalStep


def build_optimizers(step: RetrievalStep, config: TrainingConfig) -> list[Optimizer]:
    """One optimiser for everything dense and, where there are sparse tables, one for those.

    Both are of one family, so that a learning rate keeps its meaning on the night a table outgrows the threshold.
    """
    tables = [table for table in step.towers.tables.values() if isinstance(table, nn.Embedding)]
    sparse = [table.weight for table in tables if table.sparse]
    embeddings = [table.weight for table in tables if not table.sparse]
    mlps = list(step.towers.dense_parameters())
    groups = [
        {"params": mlps, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": embeddings, "lr": config.embedding_learning_rate, "weight_decay": 0.0},
        {"params": [step.log_temperature], "lr": config.learning_rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"] and group["params"][0].requires_grad]  # type: ignore[index]
    torch.sparse.check_sparse_tensor_invariants.disable()  # The default, said aloud: torch warns where nobody chose.
    optimizers: list[Optimizer] = [Adagrad(groups) if config.optimizer == "adagrad" else AdamW(groups, fused=True)]
    if sparse:
        of_tables = Adagrad if config.optimizer == "adagrad" else SparseAdam
        optimizers.append(of_tables(sparse, lr=config.embedding_learning_rate))
    return optimizers


def build_schedulers(optimizers: Sequence[Optimizer], config: TrainingConfig, steps: int) -> list[LambdaLR]:
    """One scheduler an optimiser, to be stepped after it; `steps`: of the whole run."""
    return [LambdaLR(optimizer, lambda step: rate_share(step, steps, config)) for optimizer in optimizers]


def rate_share(step: int, steps: int, config: TrainingConfig) -> float:
    """What share of its learning rate step number `step` (from 0) of `steps` has: warm-up, then the schedule, which
    would be at its end after the last step: no step is taken for nothing.
    """
    if step < config.warm_up_steps:
        return (step + 1) / (config.warm_up_steps + 1)
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warm_up_steps) / max(1, steps - config.warm_up_steps))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.final_rate_share + (1 - config.final_rate_share) * left


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale all gradients, sparse ones too, down to a joint norm of `limit` if larger; returns the norm before."""
    values: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # A row hit twice must count with its sum.
            values.append(parameter.grad.values())
        else:
            values.append(parameter.grad)
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in values])))
    if norm > limit:
        for value in values:
            value.mul_(limit / norm)
    return norm

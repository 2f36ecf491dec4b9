"""Optimisers for three sorts of parameters: MLPs, embedding tables, and tables too large to touch whole a step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, AdamW, Optimizer, SparseAdam

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

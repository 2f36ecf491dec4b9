"""Optimisers for three sorts of parameters: MLPs, embedding tables, and tables too large to touch whole a step."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, AdamW, Optimizer, SparseAdam

from model.config import TrainingConfig
from model.features import DEFAULT
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


def set_learning_rates(optimizers: Sequence[Optimizer], step: int, steps: int, config: TrainingConfig) -> None:
    """Give every group of parameters the rate of step number `step` (from 0) of `steps`."""
    share = rate_share(step, steps, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("highest_lr", group["lr"]) * share


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


def optimizer_state(step: RetrievalStep, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """What the optimisers have gathered, as PARAMETER/KEY; a table's has the shape of the table."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in step.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        for optimizer in optimizers
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def resume_optimizers(step: RetrievalStep, optimizers: Sequence[Optimizer], state: Mapping[str, Tensor]) -> None:
    """Go on from what `optimizer_state` told of the same parameters, by optimisers of the same family.

    Tables may have grown: new rows begin with what the default row has gathered, as their values do.
    Raises ValueError where the state is another family's.
    """
    parameters = dict(step.named_parameters())
    for optimizer in optimizers:
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        keys = {"step", "sum"} if isinstance(optimizer, Adagrad) else {"step", "exp_avg", "exp_avg_sq"}
        for name, value in state.items():
            path, _, key = name.rpartition("/")
            if path not in parameters or parameters[path] not in own:
                continue
            if key not in keys:
                raise ValueError(f"{type(optimizer).__name__} cannot go on from a {key!r}")
            # SparseAdam counts its steps in Python, the others in tensors.
            as_number = key == "step" and isinstance(optimizer, SparseAdam)
            optimizer.state[parameters[path]][key] = (
                int(value) if as_number else _grown(value, parameters[path]) if value.dim() else value.clone().float()
            )


def _grown(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy with as many rows as the parameter has."""
    more = len(parameter) - len(value)
    return torch.cat([value, value[DEFAULT].expand(more, *value.shape[1:])]) if more else value.clone()


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

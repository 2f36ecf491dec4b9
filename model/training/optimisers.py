"""Optimisers for three sorts of parameters: MLPs, embedding tables, and tables too large to touch whole a step."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, AdamW, Optimizer, SparseAdam

from model.config import TrainingConfig
from model.distributed.collectives import sum_over_ranks
from model.distributed.sharded_embedding import ShardedEmbedding, read_into, sharded_tables, shares_of, whole_tensor
from model.io.tensor_file import StreamedTensor, TensorFile
from model.training.step import RetrievalStep


def build_optimizers(step: RetrievalStep, config: TrainingConfig) -> list[Optimizer]:
    """One optimiser for everything dense and, where there are sparse tables, one for those.

    Both are of one family, so that a learning rate keeps its meaning on the night a table outgrows the threshold.
    """
    tables = [table for table in step.towers.tables.values() if isinstance(table, nn.Embedding)]
    sparse = [*(table.weight for table in tables if table.sparse), *shares_of(step)]
    sparse = [values for values in sparse if values.requires_grad]
    embeddings = [table.weight for table in tables if not table.sparse]
    mlps = list(step.towers.dense_parameters())
    groups = [
        {"params": mlps, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": embeddings, "lr": config.embedding_learning_rate, "weight_decay": 0.0},
        {"params": [step.log_temperature], "lr": config.learning_rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"] and group["params"][0].requires_grad]  # type: ignore[index]
    torch.sparse.check_sparse_tensor_invariants.disable()  # The default, said aloud: torch warns where nobody chose.
    optimizers: list[Optimizer] = []
    if groups:
        optimizers.append(Adagrad(groups) if config.optimizer == "adagrad" else AdamW(groups, fused=True))
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


def optimizer_state(step: RetrievalStep, optimizers: Sequence[Optimizer]) -> dict[str, Tensor | StreamedTensor]:
    """What the optimisers have gathered, as PARAMETER/KEY; a table's has the shape of the table."""
    names = {parameter: (name, table) for name, (parameter, table) in _trained(step).items()}
    state: dict[str, Tensor | StreamedTensor] = {}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            name, table = names[parameter]
            state |= {f"{name}/{key}": whole_tensor(torch.as_tensor(value), table) for key, value in values.items()}
    return state


def resume_optimizers(step: RetrievalStep, optimizers: Sequence[Optimizer], file: TensorFile, prefix: str) -> None:
    """Go on from what `optimizer_state` told of the same parameters, by optimisers of the same family.

    Tables may have grown. A new row has the value of the default row but none of its moments: the default row meets a
    gradient in every step, and its second moment would slow down the first steps of a row that is met a few times a night.
    Raises ValueError where the state is another family's.
    """
    trained = _trained(step)
    for optimizer in optimizers:
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        keys = {"step", "sum"} if isinstance(optimizer, Adagrad) else {"step", "exp_avg", "exp_avg_sq"}
        found = [name.removeprefix(prefix).rpartition("/") for name in file.names if name.startswith(prefix)]
        found = [(path, _, key) for path, _, key in found if path in trained and trained[path][0] in own]
        if unknown := sorted({key for _, _, key in found} - keys):
            raise ValueError(f"{type(optimizer).__name__} cannot go on from a {unknown[0]!r}")
        for path, _, key in found:
            (parameter, table), name = trained[path], f"{prefix}{path}/{key}"
            if key == "step":  # SparseAdam counts in Python, the others in tensors.
                steps = file.read(name)
                optimizer.state[parameter][key] = int(steps) if isinstance(optimizer, SparseAdam) else steps.float()
            else:
                optimizer.state[parameter][key] = torch.empty_like(parameter, requires_grad=False)
                read_into(optimizer.state[parameter][key], file, name, table, "zero")


def _trained(step: RetrievalStep) -> dict[str, tuple[Tensor, ShardedEmbedding | None]]:
    """All that an optimiser may train, by the name that it has in files; with a share the table that it is of."""
    plain: dict[str, tuple[Tensor, ShardedEmbedding | None]] = {
        name: (parameter, None) for name, parameter in step.named_parameters()
    }
    return plain | {name: (table.share, table) for name, table in sharded_tables(step).items()}


def clip_gradients(parameters: Iterable[Tensor], shares: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients, sparse ones too, down to a joint norm of `limit` if larger; returns the norm before.

    `parameters` have the same gradients on every rank; `shares` are this rank's part of something whose norm is that of
    all parts, so every rank scales alike.
    """
    values, parts = _gradient_values(parameters), _gradient_values(shares)
    norm = _norm(values)
    if parts:
        norm = math.hypot(norm, math.sqrt(float(sum_over_ranks(torch.tensor(_norm(parts), dtype=torch.float64) ** 2))))
    if norm > limit:
        for value in values + parts:
            value.mul_(limit / norm)
    return norm


def _norm(values: Sequence[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(value) for value in values]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def _gradient_values(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The numbers of every gradient that there is, to be changed in place; of a sparse one those of its rows."""
    values: list[Tensor] = []
    for parameter in tensors:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # A row hit twice must count with its sum.
            values.append(parameter.grad.values())
        else:
            values.append(parameter.grad)
    return values

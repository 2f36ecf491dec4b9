"""Optimisers for MLPs, for embedding tables with dense gradients, and for large tables with sparse gradients."""

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
    """One optimiser for all parameters with dense gradients and, if there are sparse tables, one for those.

    Both are of one family (Adam or Adagrad), so that a learning rate keeps its meaning when a table grows beyond
    `embedding_rows_sparse` and becomes sparse.
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
    torch.sparse.check_sparse_tensor_invariants.disable()  # The default, but torch warns unless it is set.
    optimizers: list[Optimizer] = []
    if groups:
        optimizers.append(Adagrad(groups) if config.optimizer == "adagrad" else AdamW(groups, fused=True))
    if sparse:
        sparse_optimizer = Adagrad if config.optimizer == "adagrad" else SparseAdam
        optimizers.append(sparse_optimizer(sparse, lr=config.embedding_learning_rate))
    return optimizers


def set_learning_rates(optimizers: Sequence[Optimizer], step: int, steps: int, config: TrainingConfig) -> None:
    """Set the learning rate of every parameter group for step `step` (from 0) of `steps`."""
    share = rate_share(step, steps, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("highest_lr", group["lr"]) * share


def rate_share(step: int, steps: int, config: TrainingConfig) -> float:
    """Factor on the learning rate in step `step` (from 0) of `steps`: linear warm-up, then the schedule.

    The schedule would reach its final value one step after the last, so that no step has a rate of 0.
    """
    if step < config.warm_up_steps:
        return (step + 1) / (config.warm_up_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warm_up_steps) / max(1, steps - config.warm_up_steps))
    decay = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final_rate_share + (1 - config.final_rate_share) * decay


def optimizer_state(step: RetrievalStep, optimizers: Sequence[Optimizer]) -> dict[str, Tensor | StreamedTensor]:
    """State of the optimisers, named PARAMETER/KEY. The state of a table has the shape of the table, also if it is sharded."""
    names = {parameter: (name, table) for name, (parameter, table) in _trained(step).items()}
    state: dict[str, Tensor | StreamedTensor] = {}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            name, table = names[parameter]
            state |= {f"{name}/{key}": whole_tensor(torch.as_tensor(value), table) for key, value in values.items()}
    return state


def resume_optimizers(step: RetrievalStep, optimizers: Sequence[Optimizer], file: TensorFile, prefix: str) -> None:
    """Load the output of `optimizer_state` for the same parameters into optimisers of the same family.

    Tables may have grown. A new row copies the value of the default row but not its moments, which start at 0: the default
    row has a gradient in every step, and its second moment would slow down a row that occurs a few times per night.
    Raises ValueError if the state is of another family.
    """
    trained = _trained(step)
    for optimizer in optimizers:
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        keys = {"step", "sum"} if isinstance(optimizer, Adagrad) else {"step", "exp_avg", "exp_avg_sq"}
        saved = [name.removeprefix(prefix).rpartition("/") for name in file.names if name.startswith(prefix)]
        saved = [(path, _, key) for path, _, key in saved if path in trained and trained[path][0] in own]
        if unknown := sorted({key for _, _, key in saved} - keys):
            raise ValueError(f"{type(optimizer).__name__} cannot continue from a state {unknown[0]!r}")
        for path, _, key in saved:
            (parameter, table), name = trained[path], f"{prefix}{path}/{key}"
            if key == "step":  # A Python int in SparseAdam, a tensor in the others.
                steps = file.read(name)
                if isinstance(optimizer, AdamW):  # Fused: counts its steps on the device of the parameter.
                    steps = steps.to(parameter.device)
                optimizer.state[parameter][key] = int(steps) if isinstance(optimizer, SparseAdam) else steps.float()
            else:
                optimizer.state[parameter][key] = torch.empty_like(parameter, requires_grad=False)
                read_into(optimizer.state[parameter][key], file, name, table, "zero")


def _trained(step: RetrievalStep) -> dict[str, tuple[Tensor, ShardedEmbedding | None]]:
    """All trainable tensors by their name in files, each with its table if it is the shard of a table."""
    plain: dict[str, tuple[Tensor, ShardedEmbedding | None]] = {
        name: (parameter, None) for name, parameter in step.named_parameters()
    }
    return plain | {name: (table.share, table) for name, table in sharded_tables(step).items()}


def clip_gradients(parameters: Iterable[Tensor], shares: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients, also sparse ones, to a joint norm of at most `limit`. Returns the norm before.

    `parameters` have the same gradients on every rank. `shares` are this rank's shards of tables: their norm is taken over
    all ranks, so that every rank scales by the same factor.
    """
    replicated, sharded = _gradient_values(parameters), _gradient_values(shares)
    norm = _norm(replicated)
    if sharded:
        norm = math.hypot(
            norm, math.sqrt(float(sum_over_ranks(torch.tensor(_norm(sharded), dtype=torch.float64) ** 2)))
        )
    if norm > limit:
        for value in replicated + sharded:
            value.mul_(limit / norm)
    return norm


def _norm(values: Sequence[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(value) for value in values]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def _gradient_values(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The gradients, to be scaled in place; of a sparse gradient the values of its rows."""
    values: list[Tensor] = []
    for parameter in tensors:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # Sums the gradients of a row that occurs twice.
            values.append(parameter.grad.values())
        else:
            values.append(parameter.grad)
    return values

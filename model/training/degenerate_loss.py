"""The error that ends a training run whose loss or gradient is NaN or infinite. Its message names items or rows."""

from torch import Tensor

from model.data.petastorm_reader import USER
from model.network.embeddings import Batch
from model.training.step import StepOutput
from pipelines.contract.schema import FeatureSchema


class DegenerateLossError(RuntimeError):
    """The loss or the norm of the gradient is NaN or infinite; no later step could repair the model (exit 1)."""

    exit_code = 1


def degenerate_loss(
    output: StepOutput, batch: Batch, features: FeatureSchema, step: int, gradient_norm: float | None = None
) -> DegenerateLossError:
    """The error to raise for a step. Names the candidates whose vectors are not finite, else the rows.

    `step`: number of the step, from 1. `gradient_norm`: set if the loss is finite and the norm of the gradient is not.
    """
    prefix = f"Degenerate loss in step {step}: "
    not_finite = output.candidates.items_U[~output.items_Ud.isfinite().all(1)]
    if len(not_finite):
        return DegenerateLossError(
            f"{prefix}the vectors of {len(not_finite)} of {len(output.items_Ud)} candidates are not finite, for instance of "
            f"items {not_finite[:5].tolist()}: check their item_features, then the learning rate"
        )
    users_B, items_B = batch[USER], batch[features.item_id.column]
    rows_B = ~(output.losses_B * batch["weight"]).isfinite()
    if not bool(rows_B.any()) and gradient_norm is not None:
        return DegenerateLossError(
            f"{prefix}every loss is finite, but the norm of the gradient is {gradient_norm}. The batch has (user_index, "
            f"item_index) {_pairs(users_B, items_B)}: check the learning rate, then training.precision"
        )
    if not bool(rows_B.any()):
        return DegenerateLossError(
            f"{prefix}rows of another process have a loss that is not finite; the message of that process names them"
        )
    return DegenerateLossError(
        f"{prefix}{int(rows_B.sum())} of {len(rows_B)} rows have a loss that is not finite, for instance those with "
        f"(user_index, item_index) {_pairs(users_B[rows_B], items_B[rows_B])}: check their user features and weights in "
        "samples, then the learning rate"
    )


def _pairs(users_B: Tensor, items_B: Tensor) -> str:
    """The first five (user_index, item_index)."""
    return ", ".join(f"({user}, {item})" for user, item in zip(users_B[:5].tolist(), items_B[:5].tolist(), strict=True))

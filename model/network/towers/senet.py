"""SENet: weights the fields of a side, given all of them, before the MLP (Huang et al., RecSys 2019: FiBiNET)."""

from collections.abc import Sequence

import torch
from pydantic import Field as Setting
from pydantic import PositiveInt
from torch import Tensor, nn

from model.network.towers import Field, mlp, total_length, unit
from pipelines.contract.strict import StrictModel


class Settings(StrictModel):
    """Settings of the excitation."""

    reduction: PositiveInt = Setting(
        2, description="Number of fields divided by the width of the excitation's hidden layer."
    )


class Senet(nn.Module):
    """[B, e] of each field -> [B, dim]: squeeze, excitation, re-weight, MLP."""

    def __init__(self, fields: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings) -> None:
        super().__init__()
        count = len(fields)
        self.names = [field.name for field in fields]
        narrow = max(1, count // settings.reduction)
        self.excitation = nn.Sequential(nn.Linear(count, narrow), nn.ReLU(), nn.Linear(narrow, count), nn.ReLU())
        # Weights start at 1. Behind a ReLU, a weight that starts at 0 would get no gradient.
        nn.init.ones_(self.excitation[2].bias)  # type: ignore[arg-type]
        self.mlp = mlp(total_length(fields), hidden, dim)

    def weights(self, fields: list[Tensor]) -> Tensor:
        """[B, fields], at least 0: relu(W2 relu(W1 z)), where z are the means of the fields."""
        squeezed_BF = torch.stack([field.mean(1) for field in fields], dim=1)
        return self.excitation(squeezed_BF)

    def mean_weights(self, fields: list[Tensor]) -> dict[str, Tensor]:
        """Weight of each field by name, averaged over the rows."""
        return dict(zip(self.names, self.weights(fields).mean(0), strict=True))

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        weights_BF = self.weights(fields)
        return unit(self.mlp(torch.cat([field * weights_BF[:, [n]] for n, field in enumerate(fields)], dim=1)))


def build(
    user: Sequence[Field], item: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build the same kind of tower for both sides."""
    return Senet(user, dim, hidden, settings), Senet(item, dim, hidden, settings)

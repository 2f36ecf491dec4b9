"""DSSM: concatenates all fields and applies an MLP (Huang et al., CIKM 2013)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.network.towers import Field, mlp, total_length, unit
from pipelines.contract.strict import StrictModel


class Settings(StrictModel):
    """No settings besides dim and hidden."""


class Dssm(nn.Module):
    """[B, e] of each field -> [B, dim]."""

    def __init__(self, fields: Sequence[Field], dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.mlp = mlp(total_length(fields), hidden, dim)

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        return unit(self.mlp(torch.cat(fields, dim=1)))


def build(
    user: Sequence[Field], item: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build the same kind of tower for both sides."""
    return Dssm(user, dim, hidden), Dssm(item, dim, hidden)

"""Parallel channels: DNN, FM and DCN side by side in both towers. The score is a weighted sum of the channels' cosines.

A tower's vector is the concatenation of the channels' unit vectors, each multiplied by the square root of its weight. The
dot product is then the weighted sum of cosines, so one index serves all channels. Weights are at least 0 and add up to 1,
so the vector has unit length.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field as Setting
from pydantic import PositiveInt, field_validator
from torch import Tensor, nn

from model.network.towers import Field, mlp, total_length, unit
from pipelines.contract.strict import StrictModel

Channel = Literal["dnn", "fm", "dcn"]


class Settings(StrictModel):
    """The channels, and the depth of the cross network."""

    channels: list[Channel] = Setting(
        ["dnn", "fm", "dcn"], min_length=1, description="Channels. Each gets an equal part of dim."
    )
    cross_layers: PositiveInt = Setting(
        2, description="For dcn: number of layers. Layer n contains products of up to n + 1 fields."
    )

    @field_validator("channels")
    @classmethod
    def _once(cls, channels: list[Channel]) -> list[Channel]:
        if len(set(channels)) < len(channels):
            raise ValueError("a channel is listed twice")
        return channels


class Fm(nn.Module):
    """Factorisation machine with vector output: the sum of the fields, and the sum of their pairwise products.

    Rendle (ICDM 2010); the sum over pairs stays a vector, as in He and Chua (SIGIR 2017). Fields are first projected to one
    length.
    """

    def __init__(self, fields: Sequence[Field], dim: int) -> None:
        super().__init__()
        length = max(field.length for field in fields)
        self.project = nn.ModuleList(nn.Linear(field.length, length, bias=False) for field in fields)
        self.out = nn.Linear(2 * length, dim)

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        values_FBe = torch.stack([project(field) for project, field in zip(self.project, fields, strict=True)])
        sum_Be = values_FBe.sum(0)
        pairs_Be = (sum_Be.square() - values_FBe.square().sum(0)) / 2
        return self.out(torch.cat([sum_Be, pairs_Be], dim=1))


class Dcn(nn.Module):
    """Cross network: x <- x0 * (W x + b) + x (Wang et al., WWW 2021: DCN-V2), then a linear layer."""

    def __init__(self, fields: Sequence[Field], dim: int, layers: int) -> None:
        super().__init__()
        width = total_length(fields)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.out = nn.Linear(width, dim)

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        first_BI = crossed_BI = torch.cat(fields, dim=1)
        for layer in self.layers:
            crossed_BI = first_BI * layer(crossed_BI) + crossed_BI
        return self.out(crossed_BI)


class Dnn(nn.Module):
    """The MLP of DSSM."""

    def __init__(self, fields: Sequence[Field], dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.mlp = mlp(total_length(fields), hidden, dim)

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        return self.mlp(torch.cat(fields, dim=1))


class ChannelWeights(nn.Module):
    """Weights of the channels: softmax of a parameter, initially equal. Both towers share one instance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits_C = nn.Parameter(torch.zeros(channels))

    def forward(self) -> Tensor:
        """[C], at least 0, sum 1."""
        return self.logits_C.softmax(0)


class Parallel(nn.Module):
    """[B, e] of each field -> [B, dim]: unit vectors of the channels, each times the square root of its weight."""

    def __init__(
        self, fields: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings, weights: ChannelWeights
    ) -> None:
        super().__init__()
        self.weights = weights
        builders = {
            "dnn": lambda: Dnn(fields, dim, hidden),
            "fm": lambda: Fm(fields, dim),
            "dcn": lambda: Dcn(fields, dim, settings.cross_layers),
        }
        self.channels = nn.ModuleDict({name: builders[name]() for name in settings.channels})

    def mean_weights(self, fields: list[Tensor]) -> dict[str, Tensor]:
        """Weight of each channel by name. The same for all rows."""
        return dict(zip(self.channels, self.weights(), strict=True))

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        roots_C = self.weights().sqrt()
        return torch.cat(
            [root * unit(channel(fields)) for root, channel in zip(roots_C, self.channels.values())], dim=1
        )


def build(
    user: Sequence[Field], item: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build both sides with shared channel weights. Raises ValueError if dim is not a multiple of the channels."""
    count = len(settings.channels)
    if dim % count:
        raise ValueError(f"model.dim is {dim}, which {count} channels cannot share: take a multiple of {count}")
    weights = ChannelWeights(count)
    user_tower, item_tower = (Parallel(fields, dim // count, hidden, settings, weights) for fields in (user, item))
    return user_tower, item_tower

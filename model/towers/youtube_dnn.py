"""YoutubeDNN: the user through an MLP, the item as nothing but an embedding of its id (Covington et al., RecSys 2016).

Simple and strong where items are well known; an item that nobody has clicked has the default vector.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from model.config import Config
from model.towers import Field, unit
from model.towers.dssm import Dssm


class Settings(Config):
    """Nothing but what every tower has: dim and hidden."""


class ItemEmbedding(nn.Module):
    """The vector of the id, of unit length; the other fields are left out."""

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        self.place = [field.kind for field in fields].index("id")

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        return unit(fields[self.place])


def build(
    user: Sequence[Field], item: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Raises ValueError where the embedding of an item id is not of length dim: it is the item's vector."""
    length = next(field.length for field in item if field.kind == "id")
    if length != dim:
        raise ValueError(
            f"model.tower youtube_dnn: model.dim is {dim} and model.embedding_dim {length}; an item's vector is the "
            "embedding of its id, so set both to the same length"
        )
    return Dssm(user, dim, hidden), ItemEmbedding(item)

"""YoutubeDNN: an MLP for the user, only an id embedding for the item (Covington et al., RecSys 2016).

Simple and strong if items have many clicks. An item without clicks has the default vector.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from model.network.towers import Field, unit
from model.network.towers.dssm import Dssm
from pipelines.contract.strict import StrictModel


class Settings(StrictModel):
    """No settings besides dim and hidden."""


class ItemEmbedding(nn.Module):
    """Returns the embedding of the id, scaled to unit length. Reads no other field."""

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        self.reads = [field.name for field in fields if field.kind == "id"]

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        return unit(fields[0])


def id_tower(tower: str, item: Sequence[Field], dim: int) -> ItemEmbedding:
    """The item tower of `tower`. Raises ValueError if item id embeddings do not have length dim: they are the item vectors."""
    length = next(field.length for field in item if field.kind == "id")
    if length != dim:
        raise ValueError(
            f"model.tower {tower}: model.dim is {dim} and model.embedding_dim {length}; an item's vector is the "
            "embedding of its id, so set both to the same length"
        )
    return ItemEmbedding(item)


def build(
    user: Sequence[Field], item: Sequence[Field], dim: int, hidden: Sequence[int], settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build both sides. Raises ValueError if item id embeddings do not have length dim."""
    return Dssm(user, dim, hidden), id_tower("youtube_dnn", item, dim)

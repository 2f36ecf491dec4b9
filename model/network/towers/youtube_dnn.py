"""YoutubeDNN: the user through an MLP, the item as nothing but an embedding of its id (Covington et al., RecSys 2016).

Simple and strong where items are well known; an item that nobody has clicked has the default vector.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from model.network.towers import Field, unit
from model.network.towers.dssm import Dssm
from pipelines.contract.strict import StrictModel


class Settings(StrictModel):
    """Nothing but what every tower has: dim and hidden."""


class ItemEmbedding(nn.Module):
    """The vector of the id, of unit length; no other field has a part in it."""

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        self.reads = [field.name for field in fields if field.kind == "id"]

    def forward(self, fields: list[Tensor]) -> Tensor:  # noqa: D102
        return unit(fields[0])


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

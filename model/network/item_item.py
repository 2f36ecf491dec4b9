"""The item-item part of vectors: which items were taken by the same users, in closed form, beside what the towers learn.

Score of an item: <u, v> + weight * sum over the items j of the history of B[j, i], where B is the item-item matrix of EASE in
the best approximation of rank r (model/training/item_item_fit.py). B = F E^T, so user vectors become [u, sum of F[j]] and
item vectors [v, weight * E[i]]: one index by inner product serves both parts.

Shapes: B users, N items, L history length, V item indices, n fitted items, r rank.
"""

from typing import NamedTuple

from torch import Tensor, nn

from pipelines.contract.indices import PADDING


class ItemItemTables(NamedTuple):
    """F and E of the fitted items, after a row of zeros for all others. `place_V`: item index -> row of both."""

    place_V: Tensor  # int32
    of_history: Tensor  # F, [n + 1, r]
    of_items: Tensor  # E, [n + 1, r]


class ItemItemPart(nn.Module):
    """The components that the tables add to vectors. They are not trained."""

    place_V: Tensor
    of_history: Tensor
    of_items: Tensor

    def __init__(self, tables: ItemItemTables, size: int, weight: float) -> None:
        """`size`: number of item indices. Items that are not in the tables, or came after the fit, change no score."""
        super().__init__()
        self.weight = weight
        self.register_buffer("place_V", nn.functional.pad(tables.place_V, (0, size - len(tables.place_V))))
        self.register_buffer("of_history", tables.of_history)
        self.register_buffer("of_items", tables.of_items)

    @property
    def rank(self) -> int:
        """Number of components that it adds."""
        return self.of_items.shape[1]

    def users(self, history_BL: Tensor) -> Tensor:
        """[B, r] from the item indices of histories. An item that is there twice counts once, as in the fit."""
        sorted_BL = history_BL.sort(dim=1).values
        earlier_BL = nn.functional.pad(sorted_BL[:, :-1], (1, 0), value=PADDING)
        first_BL = (sorted_BL != earlier_BL).to(self.of_history.dtype)
        rows_BL = self.place_V[sorted_BL].long()
        return nn.functional.embedding_bag(rows_BL, self.of_history, per_sample_weights=first_BL, mode="sum")

    def items(self, index_N: Tensor) -> Tensor:
        """[N, r] from item indices."""
        return self.weight * self.of_items[self.place_V[index_N].long()]

"""The item-item part of vectors: which items were taken by the same users, in closed form, beside what the towers learn.

Score of an item: <u, v> + weight * sum over the items j of the history of B[j, i], where B is the item-item matrix of EASE in
the best approximation of rank r (model/training/item_item_fit.py). B = F E^T, so user vectors become [u, sum of F[j]] and
item vectors [v, weight * E[i]]: one index by inner product serves both parts.

Shapes: B users, N items, L history length, V item indices, r rank.
"""

from torch import Tensor, nn

from pipelines.contract.indices import PADDING


class ItemItemPart(nn.Module):
    """The tables F and E, and the components that they add to vectors. They are not trained."""

    of_history_Vr: Tensor  # F
    of_items_Vr: Tensor  # E

    def __init__(self, of_history_Vr: Tensor, of_items_Vr: Tensor, weight: float) -> None:
        """Rows are item indices. Items that were not fitted have rows of zeros, and change no score."""
        super().__init__()
        self.weight = weight
        self.register_buffer("of_history_Vr", of_history_Vr)
        self.register_buffer("of_items_Vr", of_items_Vr)

    @property
    def rank(self) -> int:
        """Number of components that it adds."""
        return self.of_items_Vr.shape[1]

    def users(self, history_BL: Tensor) -> Tensor:
        """[B, r] from the item indices of histories. An item that is there twice counts once, as in the fit."""
        sorted_BL = history_BL.sort(dim=1).values
        earlier_BL = nn.functional.pad(sorted_BL[:, :-1], (1, 0), value=PADDING)
        first_BL = (sorted_BL != earlier_BL).to(self.of_history_Vr.dtype)
        return nn.functional.embedding_bag(sorted_BL, self.of_history_Vr, per_sample_weights=first_BL, mode="sum")

    def items(self, index_N: Tensor) -> Tensor:
        """[N, r] from item indices."""
        return self.weight * self.of_items_Vr[index_N]


def grown(table_Vr: Tensor, size: int) -> Tensor:
    """A table with `size` rows: rows of zeros for items that came after the fit."""
    return nn.functional.pad(table_Vr, (0, 0, 0, size - len(table_Vr)))

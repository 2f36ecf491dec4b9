"""Self-supervision of the item tower: two views of an item's features should meet (Yao et al., arXiv 2007.12865).

Items are drawn uniformly from the catalogue, so the tail, which clicks hardly reach, is trained as often as the head.

Shapes: m items, F fields of the item tower, R ranks, d vector length.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import SelfSupervisionConfig
from model.data.catalogue import Catalogue
from model.distributed.collectives import gather_vectors, rank, world_size
from model.loss.losses import MASKED
from model.network.embeddings import Batch
from model.network.two_tower import TwoTower
from model.seeds import torch_generator
from pipelines.contract.indices import PADDING
from pipelines.contract.schema import MultiCategoricalFeature


def require_views(towers: TwoTower) -> None:
    """Raises ValueError where the item tower does not read every feature: views that hide the others would be equal."""
    if len(towers.item_features) < len(towers.schema.item):
        raise ValueError(
            f"loss.self_supervision hides features of items, and tower {towers.config.tower} does not read them: take another "
            "model.tower, or set loss.self_supervision: null"
        )


class SelfSupervision:
    """Draws items and masks, the same on every rank, and scores each rank's share of them."""

    def __init__(
        self,
        config: SelfSupervisionConfig,
        catalogue: Catalogue,
        seed: int,
        relations: Sequence[Sequence[float]] | None,
    ) -> None:
        """`relations`: mutual information [F, F] of the schema's item features, in its order; mask correlated needs it.

        Raises ValueError where it is missing or of another size, or where items have nothing but their id.
        """
        self.config, self.catalogue, self.seed = config, catalogue, seed
        self.start_step(0)
        fields = len(catalogue.schema.item)
        if fields < 2:
            raise ValueError("self_supervision compares views of an item's features; the item side has its id alone")
        self.related_FF: Tensor | None = None
        if config.mask == "correlated":
            if relations is None or len(relations) != fields:
                raise ValueError(
                    f"self_supervision.mask correlated needs the mutual information of {fields} item features, it was "
                    f"given {'none' if relations is None else len(relations)}"
                )
            self.related_FF = related_fields(torch.tensor(relations))

    def start_step(self, step: int) -> None:
        """What is drawn from here on is a function of the seed and the number of the step: a run can go on anywhere."""
        self.rng = torch_generator(self.seed, "self-supervision", step)

    def loss(self, towers: TwoTower) -> Tensor:
        """Scalar: this rank's part of -1/m sum_i log softmax_j(cos(z_i, z'_j) / tau); the parts of all ranks add up to it."""
        count = self.config.items // world_size()
        present = self.catalogue.present
        items_m = present[torch.randint(len(present), (count * world_size(),), generator=self.rng)]
        masks = self._masks(len(items_m))
        mine = slice(rank() * count, (rank() + 1) * count)
        batch = self.catalogue.gather(self.catalogue.rows(items_m[mine]))
        if masks is None:
            views = [towers.item_inputs(self._drop_values(batch)) for _ in range(2)]
        else:
            fields, defaults = towers.item_inputs(batch), towers.item_inputs(self.catalogue.defaults())
            views = [hide_fields(fields, defaults, mask_mF[mine]) for mask_mF in masks]
        one_md, other_md = (towers.item_tower(view) for view in views)
        logits_mm = one_md @ gather_vectors(other_md).T / self.config.temperature
        # An item that was drawn twice is no negative of itself.
        same_mm = items_m[mine][:, None] == items_m[None, :]
        same_mm[torch.arange(count), torch.arange(count) + rank() * count] = False
        logits_mm = logits_mm.masked_fill(same_mm, MASKED)
        places = torch.arange(count) + rank() * count
        return torch.nn.functional.cross_entropy(logits_mm, places, reduction="sum") / len(items_m)

    def _masks(self, count: int) -> tuple[Tensor, Tensor] | None:
        """[m, F] for either view: which fields of which row are hidden; None where values are dropped instead."""
        fields = len(self.catalogue.schema.item)
        if self.config.mask == "dropout":
            return None
        if self.config.mask == "random":
            return random_mask(count, fields, self.rng), random_mask(count, fields, self.rng)
        if self.config.mask == "complementary":
            hidden_mF = half_mask(count, fields, self.rng)
            return hidden_mF, ~hidden_mF
        assert self.related_FF is not None
        hidden_mF = self.related_FF[torch.randint(fields, (count,), generator=self.rng)]
        return hidden_mF, ~hidden_mF

    def _drop_values(self, batch: Batch) -> Batch:
        """Half of the values of every multi-valued feature, row by row, taken out; at least one stays."""
        dropped = dict(batch)
        for feature in self.catalogue.schema.item:
            if isinstance(feature, MultiCategoricalFeature):
                dropped[feature.column] = drop_half(batch[feature.column])
        return dropped


def hide_fields(fields: Sequence[Tensor], defaults: Sequence[Tensor], hidden_mF: Tensor) -> list[Tensor]:
    """[m, e] of each field, where it is hidden that of the default, [1, e]."""
    return [
        torch.where(hidden_mF[:, [n]], default, field)
        for n, (field, default) in enumerate(zip(fields, defaults, strict=True))
    ]


def drop_half(values_mV: Tensor) -> Tensor:
    """[m, V] with half of each row's values, rounded down, replaced by padding.

    Drawn from torch's global generator, like dropout: ranks need not agree on it.
    """
    there_mV = values_mV != PADDING
    order_mV = torch.rand(values_mV.shape).masked_fill(~there_mV, 2.0).argsort(1).argsort(1)
    return values_mV.masked_fill(order_mV < there_mV.sum(1, keepdim=True) // 2, PADDING)


def random_mask(count: int, fields: int, rng: torch.Generator) -> Tensor:
    """[m, F]: each field hidden with chance 1/2, but never all of a row: one field of it stays, drawn too."""
    hidden_mF = torch.rand(count, fields, generator=rng) < 0.5
    stays_m = torch.randint(fields, (count,), generator=rng)
    hidden_mF[torch.arange(count), stays_m] &= ~hidden_mF.all(1)
    return hidden_mF


def half_mask(count: int, fields: int, rng: torch.Generator) -> Tensor:
    """[m, F]: half of the fields of each row, rounded down, every subset equally likely."""
    return torch.rand(count, fields, generator=rng).argsort(1).argsort(1) < fields // 2


def related_fields(relations_FF: Tensor) -> Tensor:
    """[F, F] bool: for each seed field, itself and the fields that tell most of it, half of all in number."""
    fields = len(relations_FF)
    scores_FF = relations_FF.float().clone()
    scores_FF.fill_diagonal_(math.inf)  # The seed is always in its own half.
    order_FF = scores_FF.argsort(stable=True, dim=1, descending=True).argsort(dim=1)
    return order_FF < max(1, fields // 2)

"""Self-supervision of the item tower: pulls two views of an item's features together (Yao et al., arXiv 2007.12865).

Items are drawn uniformly from the catalogue, so rare items, which have few clicks, are trained as often as popular ones.

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
    """Raise ValueError if the item tower does not read all features: views that hide unread features would be equal."""
    if len(towers.item_features) < len(towers.schema.item):
        raise ValueError(
            f"loss.self_supervision hides features of items, but tower {towers.config.tower} does not read them: take another "
            "model.tower, or set loss.self_supervision: null"
        )


class SelfSupervision:
    """Draws items and masks, the same on every rank. Each rank computes the loss of its share of the items."""

    def __init__(
        self,
        config: SelfSupervisionConfig,
        catalogue: Catalogue,
        seed: int,
        relations: Sequence[Sequence[float]] | None,
    ) -> None:
        """`relations`: mutual information [F, F] of the schema's item features, in their order. Needed by mask correlated.

        Raises ValueError if it is missing or has another size, or if the item side has no features besides the id.
        """
        self.config, self.catalogue, self.seed = config, catalogue, seed
        self.start_step(0)
        fields = len(catalogue.schema.item)
        if fields < 2:
            raise ValueError("self_supervision compares views of an item's features, but the item side has only its id")
        self.related_FF: Tensor | None = None
        if config.mask == "correlated":
            if relations is None or len(relations) != fields:
                raise ValueError(
                    f"self_supervision.mask correlated needs the mutual information of {fields} item features, but got "
                    f"{'none' if relations is None else len(relations)}"
                )
            self.related_FF = related_fields(torch.tensor(relations))

    def start_step(self, step: int) -> None:
        """Set the step. Draws depend only on the seed and the step, so that a run can resume at any step."""
        self.rng = torch_generator(self.seed, "self-supervision", step)

    def loss(self, towers: TwoTower) -> Tensor:
        """This rank's part of -1/m sum_i log softmax_j(cos(z_i, z'_j) / tau), a scalar. The loss is the sum over ranks."""
        count = self.config.items // world_size()
        present = self.catalogue.present
        # Drawn on the CPU: the same items and masks on every rank and device.
        drawn_m = torch.randint(len(present), (count * world_size(),), generator=self.rng, device="cpu")
        items_m = present[drawn_m.to(present.device)]
        masks = self._masks(len(items_m))
        mine = slice(rank() * count, (rank() + 1) * count)
        batch = self.catalogue.gather(self.catalogue.rows(items_m[mine]))
        if masks is None:
            views = [towers.item_inputs(self._drop_values(batch)) for _ in range(2)]
        else:
            fields, defaults = towers.item_inputs(batch), towers.item_inputs(self.catalogue.defaults())
            views = [hide_fields(fields, defaults, mask_mF[mine].to(items_m.device)) for mask_mF in masks]
        one_md, other_md = (towers.item_tower(view) for view in views)
        logits_mm = one_md @ gather_vectors(other_md).T / self.config.temperature
        # If an item was drawn twice, it is not a negative of itself.
        same_mm = items_m[mine][:, None] == items_m[None, :]
        rows = torch.arange(count, device=items_m.device)
        places = rows + rank() * count
        same_mm[rows, places] = False
        logits_mm = logits_mm.masked_fill(same_mm, MASKED)
        return torch.nn.functional.cross_entropy(logits_mm, places, reduction="sum") / len(items_m)

    def _masks(self, count: int) -> tuple[Tensor, Tensor] | None:
        """[m, F] for each view: which fields are hidden. None if values are dropped instead."""
        fields = len(self.catalogue.schema.item)
        if self.config.mask == "dropout":
            return None
        if self.config.mask == "random":
            return random_mask(count, fields, self.rng), random_mask(count, fields, self.rng)
        if self.config.mask == "complementary":
            hidden_mF = half_mask(count, fields, self.rng)
            return hidden_mF, ~hidden_mF
        assert self.related_FF is not None
        hidden_mF = self.related_FF[torch.randint(fields, (count,), generator=self.rng, device="cpu")]
        return hidden_mF, ~hidden_mF

    def _drop_values(self, batch: Batch) -> Batch:
        """Drop half of the values of each multi-valued feature, per row. At least one value stays."""
        dropped = dict(batch)
        for feature in self.catalogue.schema.item:
            if isinstance(feature, MultiCategoricalFeature):
                dropped[feature.column] = drop_half(batch[feature.column])
        return dropped


def hide_fields(fields: Sequence[Tensor], defaults: Sequence[Tensor], hidden_mF: Tensor) -> list[Tensor]:
    """[m, e] of each field. Hidden entries are replaced by the default [1, e]."""
    return [
        torch.where(hidden_mF[:, [n]], default, field)
        for n, (field, default) in enumerate(zip(fields, defaults, strict=True))
    ]


def drop_half(values_mV: Tensor) -> Tensor:
    """[m, V] with half of each row's values, rounded down, replaced by padding.

    Draws from torch's global generator, like dropout: ranks may differ.
    """
    present_mV = values_mV != PADDING
    order_mV = torch.rand(values_mV.shape, device=values_mV.device).masked_fill(~present_mV, 2.0).argsort(1).argsort(1)
    return values_mV.masked_fill(order_mV < present_mV.sum(1, keepdim=True) // 2, PADDING)


def random_mask(count: int, fields: int, rng: torch.Generator) -> Tensor:
    """[m, F]: hides each field with probability 1/2. If all fields of a row are hidden, one random field stays."""
    hidden_mF = torch.rand(count, fields, generator=rng, device="cpu") < 0.5
    stays_m = torch.randint(fields, (count,), generator=rng, device="cpu")
    hidden_mF[torch.arange(count, device="cpu"), stays_m] &= ~hidden_mF.all(1)
    return hidden_mF


def half_mask(count: int, fields: int, rng: torch.Generator) -> Tensor:
    """[m, F]: hides half of the fields of each row, rounded down. All subsets are equally likely."""
    return torch.rand(count, fields, generator=rng, device="cpu").argsort(1).argsort(1) < fields // 2


def related_fields(relations_FF: Tensor) -> Tensor:
    """[F, F] bool: for each seed field, itself and the fields with the highest mutual information, half of all fields."""
    fields = len(relations_FF)
    scores_FF = relations_FF.float().clone()
    scores_FF.fill_diagonal_(math.inf)  # The seed field is always in its half.
    order_FF = scores_FF.argsort(stable=True, dim=1, descending=True).argsort(dim=1)
    return order_FF < max(1, fields // 2)

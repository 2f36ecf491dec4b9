"""How the logits of a row's hard negatives differ from those of other candidates: their weight and their temperature.

Shapes: B rows, K hard negatives per row.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import LossConfig
from model.loss.losses import MASKED


class HardNegatives(NamedTuple):
    """weight: added to the logit as a logarithm; 0 masks it. sharpness: temperature / temperature of hard negatives.

    relative: the sharpness applies to the difference from the positive, s_p + sharpness (s_h - s_p). The loss then depends
    on differences of scores only, as it does without a sharpness. Otherwise it applies to s_h itself.
    """

    weight: float = 1.0
    sharpness: float = 1.0
    relative: bool = True

    @classmethod
    def of(cls, config: LossConfig, temperature: float, scale: float) -> "HardNegatives":
        """From the config, the temperature of other candidates, and the factor on the weight (the ramp).

        In the means of pairwise and pointwise losses the weight of hard negatives is a share (`hard_share`).
        """
        weight = config.hard_weight * scale if config.kind == "listwise" else float(scale > 0)
        sharpness = temperature / config.hard_temperature if config.hard_temperature else 1.0
        return cls(weight, sharpness, relative=config.kind != "pointwise")

    def logits(self, positive_B: Tensor, hard_BK: Tensor) -> Tensor:
        """[B, K] from the scores of the positives and of the hard negatives, divided by the temperature of the others."""
        if self.weight == 0.0:
            return torch.full_like(hard_BK, MASKED)
        if self.sharpness != 1.0 and self.relative:
            hard_BK = torch.lerp(positive_B[:, None].expand_as(hard_BK), hard_BK, self.sharpness)
        elif self.sharpness != 1.0:
            hard_BK = self.sharpness * hard_BK
        return hard_BK if self.weight == 1.0 else hard_BK + math.log(self.weight)


AS_OTHERS = HardNegatives()

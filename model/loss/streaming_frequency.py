"""Streaming frequency estimation: estimates from the batches how often an item is among the positives of a batch.

For streams without known frequencies (Yi et al., RecSys 2019, Algorithms 2 and 3). Memory grows with slots, not items.

Shapes: m hash functions, H slots per hash function, N items.
"""

import torch
from torch import Tensor, nn

from model.config import StreamingConfig
from model.seeds import derive_seed
from pipelines.contract.indices import PADDING


class FrequencyEstimator(nn.Module):
    """Estimates the number of steps between two hits of an item. The reciprocal is its probability of being in a batch.

    Each slot stores the step A of its last hit, the estimated gap B, and its number of hits. In step t, each distinct slot
    that is hit is updated: B <- (1 - rate) B + rate (t - A), A <- t. The rate is alpha. With `warm_up` it is 1/k for the
    k-th hit while that is larger, so that B is the mean of the first gaps. The initial guess then has no effect after the
    first hit; without `warm_up` its weight is (1 - alpha)^k.
    Inputs are integers and all ranks do the same arithmetic, so ranks that see the same batches have the same state.
    """

    step: Tensor
    last_mH: Tensor
    gap_mH: Tensor
    hits_mH: Tensor
    rows_per_step: Tensor
    factors_m1: Tensor
    shifts_m1: Tensor

    def __init__(self, config: StreamingConfig, initial_gap: float, rows_per_step: int) -> None:
        """`initial_gap`: assumed steps before the first hit of an item. config.initial_gap takes precedence.

        `rows_per_step`: usual number of rows of a global batch. Needed to convert to batches of other sizes.
        """
        super().__init__()
        self.config = config
        shape = (config.hashes, config.slots)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_mH", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("gap_mH", torch.full(shape, float(max(1.0, config.initial_gap or initial_gap))))
        self.register_buffer("hits_mH", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("rows_per_step", torch.tensor(rows_per_step))
        # Constant: a slot must have the same meaning on every night, rank and machine.
        for name, part in (("factors_m1", "factor"), ("shifts_m1", "shift")):
            seeds = torch.tensor([derive_seed("frequency", part, number) for number in range(config.hashes)])
            self.register_buffer(name, seeds[:, None], persistent=False)

    def probabilities(self, items_N: Tensor, rows: int | None = None) -> Tensor:
        """[N] float32: probability that an item is among the positives of the next batch, above 0 and at most 1.

        `rows`: rows of that batch, if it has another size: 1 - (1 - p)^(rows / rows_per_step), for independent rows.
        With several hash functions the longest gap counts: other items in a slot can only shorten its gap.
        """
        usual_N = 1 / self.gap_mH.gather(1, self._slots(items_N)).amax(0).clamp(min=1.0)
        if rows is None or rows == int(self.rows_per_step):
            return usual_N
        return -torch.expm1(torch.log1p(-usual_N) * (rows / int(self.rows_per_step)))

    @torch.no_grad()
    def update(self, items_N: Tensor) -> None:
        """Count one step with the positives of the global batch. Duplicates and padding do not count."""
        self.step += 1
        # Items that share a slot write the same values to it, so each slot is counted once.
        slots_mN = self._slots(items_N[items_N != PADDING])
        gap_mN, hits_mN = self.gap_mH.gather(1, slots_mN), self.hits_mH.gather(1, slots_mN) + 1
        waited_mN = (self.step - self.last_mH.gather(1, slots_mN)).to(gap_mN.dtype)
        rate_mN = (1 / hits_mN).clamp(min=self.config.alpha) if self.config.warm_up else self.config.alpha
        self.gap_mH.scatter_(1, slots_mN, gap_mN + rate_mN * (waited_mN - gap_mN))
        self.last_mH.scatter_(1, slots_mN, self.step.expand(slots_mN.shape))
        self.hits_mH.scatter_(1, slots_mN, hits_mN)

    def resume(self, state: dict[str, Tensor], rows_per_step: int) -> None:
        """Continue from the `state_dict` of another run, which may have had another batch size.

        Raises ValueError if the number of hashes or slots differs.
        """
        was, now = tuple(state["gap_mH"].shape), tuple(self.gap_mH.shape)
        if was != now:
            raise ValueError(
                f"loss.streaming had {was[0]} hashes of {was[1]} slots, has {now[0]} of {now[1]}: counts cannot be converted"
            )
        self.load_state_dict(state)
        if rows_per_step == int(self.rows_per_step):
            return
        # With twice the rows per step, the gap between two hits is half as many steps.
        scale = float(self.rows_per_step) / rows_per_step
        self.gap_mH.mul_(scale).clamp_(min=1.0)
        self.last_mH.copy_(self.step - ((self.step - self.last_mH) * scale).round().long())
        self.rows_per_step.fill_(rows_per_step)

    @torch.no_grad()
    def introduce(self, items_N: Tensor) -> None:
        """Add new items: the wait for their first hit starts at the current step, not at the first night."""
        slots_mN = self._slots(items_N)
        last_mN, hits_mN = self.last_mH.gather(1, slots_mN), self.hits_mH.gather(1, slots_mN)
        self.last_mH.scatter_(1, slots_mN, torch.where(hits_mN == 0, self.step, last_mN))

    def _slots(self, items_N: Tensor) -> Tensor:
        """[m, N]: multiply, fold, multiply in 64 bits; the high half, mod H.

        Indices are dense. A single multiplication would map them to a lattice, which collides for some H.
        """
        mixed_mN = self.factors_m1 * items_N + self.shifts_m1
        mixed_mN = (mixed_mN ^ ((mixed_mN >> 32) & 0xFFFFFFFF)) * self.factors_m1
        return ((mixed_mN >> 32) & 0x7FFFFFFF) % self.config.slots

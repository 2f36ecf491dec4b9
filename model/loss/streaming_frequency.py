"""Streaming frequency estimation: how often an item is among the positives of a batch, learned from the batches alone.

For streams whose frequencies no table knows (Yi et al., RecSys 2019, Algorithms 2 and 3). Memory is slots, not items.

Shapes: m hash functions, H slots each, N items.
"""

import torch
from torch import Tensor, nn

from model.config import StreamingConfig
from model.seeds import derive_seed
from pipelines.contract.indices import PADDING


class FrequencyEstimator(nn.Module):
    """Estimates of the steps between two hits of an item; their reciprocals are its chances to be in a batch.

    Every slot keeps the step of its last hit A, the estimated gap B and its hits. In step t, each distinct slot hit:
    B <- (1 - rate) B + rate (t - A), A <- t. The rate is alpha; with `warm_up` it is 1/k for the k-th hit until that is
    smaller, so that B is the plain mean of the first gaps: the initial guess is forgotten at once, not at (1 - alpha)^k.
    Integers in, the same arithmetic everywhere: ranks that see the same batches hold the same state.
    """

    step: Tensor
    last_mH: Tensor
    gap_mH: Tensor
    hits_mH: Tensor
    rows_per_step: Tensor

    def __init__(self, config: StreamingConfig, initial_gap: float, rows_per_step: int) -> None:
        """`initial_gap`: steps that an item is taken to stay away before its first hit (config.initial_gap goes first).

        `rows_per_step`: usual rows of a global batch, for batches and nights of other sizes.
        """
        super().__init__()
        self.config = config
        shape = (config.hashes, config.slots)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_mH", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("gap_mH", torch.full(shape, float(max(1.0, config.initial_gap or initial_gap))))
        self.register_buffer("hits_mH", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("rows_per_step", torch.tensor(rows_per_step))
        # Fixed for ever: a slot must mean the same on every night, rank and machine.
        self._factors_m1, self._shifts_m1 = (
            torch.tensor([derive_seed("frequency", part, number) for number in range(config.hashes)])[:, None]
            for part in ("factor", "shift")
        )

    def probabilities(self, items_N: Tensor, rows: int | None = None) -> Tensor:
        """[N] float32: the chance that an item is among the positives of the next batch, above 0 and at most 1.

        `rows`: of that batch, where it is not the usual one: 1 - (1 - p)^(rows / rows_per_step) for independent rows.
        With several hash functions the longest gap: others that share a slot can only make it look shorter.
        """
        usual_N = 1 / self.gap_mH.gather(1, self._slots(items_N)).amax(0).clamp(min=1.0)
        if rows is None or rows == int(self.rows_per_step):
            return usual_N
        return -torch.expm1(torch.log1p(-usual_N) * (rows / int(self.rows_per_step)))

    @torch.no_grad()
    def update(self, items_N: Tensor) -> None:
        """Count one step, with the positives of the global batch (repeats and padding are no hits of their own)."""
        self.step += 1
        # Two items of one slot write the same values to it: that is what counts a slot once.
        slots_mN = self._slots(items_N[items_N != PADDING])
        gap_mN, hits_mN = self.gap_mH.gather(1, slots_mN), self.hits_mH.gather(1, slots_mN) + 1
        waited_mN = (self.step - self.last_mH.gather(1, slots_mN)).to(gap_mN.dtype)
        rate_mN = (1 / hits_mN).clamp(min=self.config.alpha) if self.config.warm_up else self.config.alpha
        self.gap_mH.scatter_(1, slots_mN, gap_mN + rate_mN * (waited_mN - gap_mN))
        self.last_mH.scatter_(1, slots_mN, self.step.expand(slots_mN.shape))
        self.hits_mH.scatter_(1, slots_mN, hits_mN)

    def resume(self, state: dict[str, Tensor], rows_per_step: int) -> None:
        """Go on from the `state_dict` of another run, whose batches may have had another size.

        Raises ValueError naming the difference where its arrays are of other sizes.
        """
        was, now = tuple(state["gap_mH"].shape), tuple(self.gap_mH.shape)
        if was != now:
            raise ValueError(
                f"loss.streaming had {was[0]} hashes of {was[1]} slots, has {now[0]} of {now[1]}: counts cannot move"
            )
        self.load_state_dict(state)
        if rows_per_step == int(self.rows_per_step):
            return
        # Twice the rows a step: half the steps between two hits.
        scale = float(self.rows_per_step) / rows_per_step
        self.gap_mH.mul_(scale).clamp_(min=1.0)
        self.last_mH.copy_(self.step - ((self.step - self.last_mH) * scale).round().long())
        self.rows_per_step.fill_(rows_per_step)

    @torch.no_grad()
    def introduce(self, items_N: Tensor) -> None:
        """Items that were not there before: the wait for their first hit begins now, not at the first night."""
        slots_mN = self._slots(items_N)
        last_mN, hits_mN = self.last_mH.gather(1, slots_mN), self.hits_mH.gather(1, slots_mN)
        self.last_mH.scatter_(1, slots_mN, torch.where(hits_mN == 0, self.step, last_mN))

    def _slots(self, items_N: Tensor) -> Tensor:
        """[m, N]: multiply, fold, multiply in 64 bits; the high half, mod H.

        Indices are dense, and one multiplication alone lays them out in a lattice that some H meets badly.
        """
        mixed_mN = self._factors_m1 * items_N + self._shifts_m1
        mixed_mN = (mixed_mN ^ ((mixed_mN >> 32) & 0xFFFFFFFF)) * self._factors_m1
        return ((mixed_mN >> 32) & 0x7FFFFFFF) % self.config.slots

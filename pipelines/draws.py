"""Drawing negatives in numpy: a whole Arrow batch of rows at once, every draw a hash of the row's key.

Shapes: n rows, s slots, K negatives. A (user, item) or (row, item) pair is one int64: `group * width + item`, so
that "is this item forbidden here?" is a binary search in a sorted array instead of a loop over rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.hashing import UInt64, mix, to_unit

Ints = npt.NDArray[np.int64]
NONE, UNIFORM, POPULARITY, COARSE, FINE = range(5)
KINDS = {NONE: "none", UNIFORM: "uniform", POPULARITY: "popularity", COARSE: "coarse", FINE: "fine"}


@dataclass(frozen=True)
class AliasTable:
    """Items with the chance of each; one draw costs two look-ups (Walker 1977, in Vose's construction)."""

    items: Ints  # [M] item indices
    q: npt.NDArray[np.float64]  # [M] probabilities
    threshold: npt.NDArray[np.float64]  # [M] chance to keep the cell's own item
    alias: Ints  # [M] the other item of the cell, as a position

    @classmethod
    def build(cls, items: Ints, mass: npt.NDArray[np.float64]) -> "AliasTable":
        """From masses [M] >= 0 in any scale; ValueError where they sum to nothing."""
        total = float(mass.sum())
        if not total > 0:
            raise ValueError("a sampler needs at least one item with mass above 0")
        q = mass / total
        scaled = (q * len(q)).tolist()
        alias = list(range(len(q)))
        small = [place for place, value in enumerate(scaled) if value < 1.0]
        large = [place for place, value in enumerate(scaled) if value >= 1.0]
        while small and large:
            under, over = small.pop(), large[-1]
            alias[under] = over
            scaled[over] -= 1.0 - scaled[under]
            if scaled[over] < 1.0:
                small.append(large.pop())
        for place in (*small, *large):  # what is left differs from 1 by rounding alone
            scaled[place] = 1.0
        return cls(np.asarray(items, np.int64), q, np.array(scaled), np.array(alias, np.int64))

    def draw(self, bits: UInt64) -> Ints:
        """64-bit hashes [n] -> positions [n] in `items`."""
        cell = (to_unit(bits) * len(self.items)).astype(np.int64)
        coin = to_unit(mix(bits, 0))
        return np.where(coin < self.threshold[cell], cell, self.alias[cell])


def draw_easy(
    keys: UInt64,
    kinds_NS: Ints,
    taken_NS: Ints,
    group_N: Ints,
    forbidden: Ints,
    width: int,
    samplers: dict[int, AliasTable],
    attempts: int,
) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
    """Fill the slots of `kinds_NS` (UNIFORM or POPULARITY; other kinds are left alone) by drawing and redrawing.

    keys [n]: row keys, already mixed with the seed. `taken_NS`: items that other slots hold (0: free). `group_N`: which
    group of `forbidden` a row belongs to; `forbidden`: sorted pairs group * width + item. A draw that is forbidden,
    or that the row already holds, is drawn again with the next attempt. Returns items [n, s], kinds [n, s] (NONE where
    every attempt failed) and log q [n, s] (0 where the kind has none).
    """
    items = taken_NS.copy()
    kinds = kinds_NS.copy()
    log_q = np.zeros(kinds.shape, np.float32)
    rows_all = np.arange(len(keys))
    held = np.sort((rows_all[:, None] * width + items)[items > 0])
    for attempt in range(attempts):
        rows, slots = np.nonzero((items == 0) & ((kinds == UNIFORM) | (kinds == POPULARITY)))
        if len(rows) == 0:
            break
        bits = mix(keys[rows], slots, attempt)
        drawn = np.zeros(len(rows), np.int64)
        q = np.ones(len(rows))
        for kind, sampler in samplers.items():
            here = np.flatnonzero(kinds[rows, slots] == kind)
            places = sampler.draw(bits[here])
            drawn[here], q[here] = sampler.items[places], sampler.q[places]
        pair = rows * width + drawn
        good = ~_contains(forbidden, group_N[rows] * width + drawn) & ~_contains(held, pair)
        # The same item twice in one row and attempt: the first slot keeps it.
        candidates = np.flatnonzero(good)
        _, first = np.unique(pair[candidates], return_index=True)
        chosen = candidates[first]
        items[rows[chosen], slots[chosen]] = drawn[chosen]
        log_q[rows[chosen], slots[chosen]] = np.log(q[chosen])
        held = np.sort(np.concatenate([held, pair[chosen]]))
    kinds[items == 0] = NONE
    return items, kinds, log_q


def pick_hard(
    keys: UInt64,
    quota: int,
    tiers: list[tuple[Ints, Ints]],
    group_N: Ints,
    forbidden: Ints,
    taken: Ints,
    width: int,
) -> Ints:
    """Up to `quota` items a row from ranked candidate lists: items [n, quota], 0 where the lists ran out.

    `tiers`: (row, item) pairs [c] each, best tier first (the row's own request, then the user's others). Within a tier
    a hash of row and item decides. `taken`: sorted pairs row * width + item that other slots of the row hold.
    """
    picked = np.zeros((len(keys), quota), np.int64)
    rows = np.concatenate([row for row, _ in tiers])
    items = np.concatenate([item for _, item in tiers])
    tier = np.repeat(np.arange(len(tiers)), [len(row) for row, _ in tiers])
    good = ~_contains(forbidden, group_N[rows] * width + items) & ~_contains(taken, rows * width + items) & (items > 0)
    rows, items, tier = rows[good], items[good], tier[good]
    order = np.lexsort((items, mix(keys[rows], items), tier, rows))
    rows, items = rows[order], items[order]
    # An item of both tiers stands twice; keep the first.
    _, first = np.unique(rows * width + items, return_index=True)
    first.sort()
    rows, items = rows[first], items[first]
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]])) if len(rows) else np.zeros(0, np.int64)
    place = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    within = place < quota
    picked[rows[within], place[within]] = items[within]
    return picked


def _contains(sorted_values: Ints, wanted: Ints) -> npt.NDArray[np.bool_]:
    if len(sorted_values) == 0:
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return sorted_values[places] == wanted

"""Draws negatives in numpy, for a whole batch of rows at once. Each draw is a hash of the row's key.

Shapes: n rows, K slots (negatives per row), M items. A group is a user. A (group, item) pair is one int64,
`group * width + item`, so that a lookup in a sorted array answers whether an item is forbidden for a user.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.contract.negative_kinds import NONE
from pipelines.hashing import UInt64, mix, to_unit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class Proposals(Protocol):
    """Draws from one distribution: for each row a sequence of items, which the row tries in order."""

    @property
    def limit(self) -> int:
        """Largest number of draws per row."""
        ...

    def propose(self, rows: Ints, number: Ints) -> tuple[Ints, Floats]:
        """The `number`-th draw (from 0) of each of `rows` (positions in the batch): items [n] and their log q [n]."""
        ...


@dataclass(frozen=True)
class AliasTable:
    """A discrete distribution over items. One draw costs two lookups (alias method of Walker 1977, built as in Vose 1991)."""

    items: Ints  # [M] item indices
    log_q: Floats  # [M] log probabilities
    threshold: npt.NDArray[np.float64]  # [M] probability of the cell's own item
    alias: Ints  # [M] position of the other item of the cell

    @classmethod
    def build(cls, items: Ints, mass: npt.NDArray[np.float64]) -> "AliasTable":
        """From masses [M] >= 0, which need not sum to 1. Raises ValueError if they sum to 0."""
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
        for place in (*small, *large):  # these differ from 1 only by rounding
            scaled[place] = 1.0
        with np.errstate(divide="ignore"):
            log_q = np.log(q).astype(np.float32)
        return cls(np.asarray(items, np.int64), log_q, np.array(scaled), np.array(alias, np.int64))

    def draw(self, bits: UInt64) -> Ints:
        """64-bit hashes [n] -> positions [n] in `items`."""
        cell = (to_unit(bits) * len(self.items)).astype(np.int64)
        coin = to_unit(mix(bits, 0))
        return np.where(coin < self.threshold[cell], cell, self.alias[cell])


@dataclass(frozen=True)
class AliasProposals:
    """Draws from an alias table by hash(row key, kind, number)."""

    table: AliasTable
    keys: UInt64  # [n] row keys, already mixed with the seed
    kind: int
    limit: int

    def propose(self, rows: Ints, number: Ints) -> tuple[Ints, Floats]:
        """See Proposals."""
        places = self.table.draw(mix(self.keys[rows], self.kind, number))
        return self.table.items[places], self.table.log_q[places]


@dataclass(frozen=True)
class WrittenProposals:
    """Draws that the rows carry, for catalogues that are too large to broadcast (samplers.with_written_draws)."""

    items: Ints  # [n, limit]
    log_q: Floats  # [n, limit]

    @property
    def limit(self) -> int:
        """Draws per row."""
        return self.items.shape[1]

    def propose(self, rows: Ints, number: Ints) -> tuple[Ints, Floats]:
        """See Proposals."""
        return self.items[rows, number], self.log_q[rows, number]


@dataclass(frozen=True)
class Forbidden:
    """The items that each group (user) must not get, as sorted pairs group * width + item.

    `maybe` is a bit table that fits into the CPU cache: False means that the pair is absent. Only pairs with True are
    looked up in `pairs`.
    """

    pairs: Ints
    maybe: Bools  # [2**bits], index: upper bits of a multiplicative hash of the pair
    SPREAD: ClassVar = np.uint64(0x9E3779B97F4A7C15)

    @classmethod
    def build(cls, pairs: Ints) -> "Forbidden":
        """From pairs in any order; they may repeat."""
        bits = min(24, max(10, 4 + len(pairs).bit_length()))  # at most 1 of 16 entries is True, up to 2**20 pairs
        maybe = np.zeros(1 << bits, bool)
        maybe[cls._places(pairs, bits)] = True
        return cls(np.sort(pairs), maybe)

    @classmethod
    def _places(cls, pairs: Ints, bits: int) -> Ints:
        return ((pairs.view(np.uint64) * cls.SPREAD) >> np.uint64(64 - bits)).view(np.int64)

    def contains(self, wanted: Ints) -> Bools:
        """Whether each pair [n] is forbidden."""
        forbidden = self.maybe[self._places(wanted, len(self.maybe).bit_length() - 1)]
        unsure = np.flatnonzero(forbidden)
        if len(unsure):
            places = np.searchsorted(self.pairs, wanted[unsure])
            places[places == len(self.pairs)] = 0
            forbidden[unsure] = self.pairs[places] == wanted[unsure]
        return forbidden

    def of_group(self, group: int, width: int) -> "Forbidden":
        """The pairs of one group, which becomes group 0."""
        start, stop = np.searchsorted(self.pairs, [group * width, (group + 1) * width])
        return Forbidden.build(self.pairs[start:stop] - group * width)


@dataclass(frozen=True)
class CandidateLists:
    """One list of candidates per row, in one array: row n has items[start_N[n] : stop_N[n]]."""

    items: Ints
    start_N: Ints
    stop_N: Ints


def draw_easy(
    items_NK: Ints,
    kinds_NK: Ints,
    group_N: Ints,
    forbidden: Forbidden,
    width: int,
    proposals: Mapping[int, Proposals],
    allowed: Callable[[Ints, Ints], Bools] | None = None,
) -> Floats:
    """Fill the empty slots (item 0) of kinds UNIFORM and POPULARITY, in place. Returns log q [n, K], 0 for other kinds.

    If a draw is forbidden, not allowed, or already in the row, the row takes its next draw of that kind. A slot whose
    draws run out keeps item 0 and gets kind NONE.

    `group_N`: the group of each row. `width`: number of item indices. `allowed(items [m], rows [m])`: whether each row may
    get the item; None allows all.
    """
    log_q = np.zeros(kinds_NK.shape, np.float32)
    used = {kind: np.zeros(len(group_N), np.int64) for kind in proposals}
    for slot in range(kinds_NK.shape[1]):
        for kind, source in proposals.items():
            rows = np.flatnonzero((items_NK[:, slot] == 0) & (kinds_NK[:, slot] == kind))
            while len(rows):
                number = used[kind][rows]
                rows, number = rows[number < source.limit], number[number < source.limit]
                drawn, drawn_log_q = source.propose(rows, number)
                used[kind][rows] += 1
                good = ~forbidden.contains(group_N[rows] * width + drawn)
                good &= ~(items_NK[rows] == drawn[:, None]).any(axis=1)
                if allowed is not None:
                    good &= allowed(drawn, rows)
                items_NK[rows[good], slot] = drawn[good]
                log_q[rows[good], slot] = drawn_log_q[good]
                rows = rows[~good]
    kinds_NK[(items_NK == 0) & np.isin(kinds_NK, list(proposals))] = NONE
    return log_q


def draw_from_lists(
    items_NK: Ints,
    slots: range,
    own: CandidateLists,
    wider: CandidateLists,
    keys: UInt64,
    attempts: int,
    allowed: Callable[[Ints, Ints], Bools] | None = None,
) -> None:
    """Fill `slots` of each row in place: from its own list without replacement, then from the wider list.

    The lists hold no forbidden items. Items that are in the row already, or not allowed (see `draw_easy`), are skipped. The
    wider list may be long and may repeat items, so at most `attempts` draws per slot are made from it. A slot that stays
    empty keeps item 0.
    """
    rows_all = np.arange(len(keys))
    size = own.stop_N - own.start_N
    take = np.minimum(size, len(slots))
    chosen = np.full((len(keys), len(slots)), -1, np.int64)
    for place, slot in enumerate(slots):
        # Floyd's sampling without replacement (Bentley and Floyd, CACM 1987): each subset is equally likely.
        rows = np.flatnonzero(place < take)
        last = size[rows] - take[rows] + place
        drawn = (to_unit(mix(keys[rows], slot, 0)) * (last + 1)).astype(np.int64)
        drawn = np.where((chosen[rows] == drawn[:, None]).any(axis=1), last, drawn)
        chosen[rows, place] = drawn
        _put(items_NK, rows, slot, own.items[own.start_N[rows] + drawn], allowed)
    width = wider.stop_N - wider.start_N
    for slot in slots:
        rows = rows_all[(items_NK[:, slot] == 0) & (width > 0)]
        for attempt in range(attempts):
            if len(rows) == 0:
                break
            drawn = (to_unit(mix(keys[rows], slot, attempt + 1)) * width[rows]).astype(np.int64)
            _put(items_NK, rows, slot, wider.items[wider.start_N[rows] + drawn], allowed)
            rows = rows[items_NK[rows, slot] == 0]


def _put(
    items_NK: Ints, rows: Ints, slot: int, drawn: Ints, allowed: Callable[[Ints, Ints], Bools] | None = None
) -> None:
    free = ~(items_NK[rows] == drawn[:, None]).any(axis=1)
    if allowed is not None:
        free &= allowed(drawn, rows)
    items_NK[rows[free], slot] = drawn[free]

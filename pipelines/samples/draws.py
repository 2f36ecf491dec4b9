"""Drawing negatives in numpy: a whole batch of rows at once, every draw a hash of the row's key.

Shapes: n rows, K slots (negatives a row), M items. A (group, item) pair is one int64, `group * width + item`, a group
being a user: "may this user not have this item?" is a binary search in a sorted array instead of a loop over rows.
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
    """The endless (or long) list of items that a row may take from one distribution, in the order of its draws."""

    @property
    def limit(self) -> int:
        """Draws a row at most."""
        ...

    def propose(self, rows: Ints, number: Ints) -> tuple[Ints, Floats]:
        """The `number`-th draw of each of `rows` (places in the batch): items and their log q."""
        ...


@dataclass(frozen=True)
class AliasTable:
    """Items with the chance of each; one draw costs two look-ups (Walker 1977, in Vose's construction)."""

    items: Ints  # [M] item indices
    log_q: Floats  # [M] log probabilities
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
    """Draws of one alias table: hash(row key, kind, number)."""

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
    """Draws that were made elsewhere and came with the rows (catalogues too large to broadcast)."""

    items: Ints  # [n, limit]
    log_q: Floats  # [n, limit]

    @property
    def limit(self) -> int:
        """Draws a row."""
        return self.items.shape[1]

    def propose(self, rows: Ints, number: Ints) -> tuple[Ints, Floats]:
        """See Proposals."""
        return self.items[rows, number], self.log_q[rows, number]


@dataclass(frozen=True)
class Forbidden:
    """Which items each group (user) may not have: pairs group * width + item, sorted.

    Nearly every question is answered by one look into a table of hashes that fits a cache; only where that says "perhaps"
    are the pairs searched.
    """

    pairs: Ints
    perhaps: Bools  # [2**bits] by the upper bits of a multiplicative hash
    SPREAD: ClassVar = np.uint64(0x9E3779B97F4A7C15)

    @classmethod
    def build(cls, pairs: Ints) -> "Forbidden":
        """From pairs in any order, with repeats or without."""
        bits = min(24, max(10, 4 + len(pairs).bit_length()))  # a look in sixteen or more is wrong
        perhaps = np.zeros(1 << bits, bool)
        perhaps[cls._places(pairs, bits)] = True
        return cls(np.sort(pairs), perhaps)

    @classmethod
    def _places(cls, pairs: Ints, bits: int) -> Ints:
        return ((pairs.view(np.uint64) * cls.SPREAD) >> np.uint64(64 - bits)).view(np.int64)

    def contains(self, wanted: Ints) -> Bools:
        """Whether each of these pairs [n] is forbidden."""
        found = self.perhaps[self._places(wanted, len(self.perhaps).bit_length() - 1)]
        asked = np.flatnonzero(found)
        if len(asked):
            places = np.searchsorted(self.pairs, wanted[asked])
            places[places == len(self.pairs)] = 0
            found[asked] = self.pairs[places] == wanted[asked]
        return found

    def of_group(self, group: int, width: int) -> "Forbidden":
        """One group's part, the group renumbered 0."""
        start, stop = np.searchsorted(self.pairs, [group * width, (group + 1) * width])
        return Forbidden.build(self.pairs[start:stop] - group * width)


@dataclass(frozen=True)
class Lists:
    """Candidate lists end to end: a row's list is items[start:stop]."""

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
    """Fill, in place, the free places (item 0) of UNIFORM or POPULARITY kind by drawing until one is allowed.

    `group_N`: the group of each row; `width`: number of item indices. `allowed`: which of these items [n] these rows [n]
    may have, None: all. A draw that is forbidden, or that
    the row already holds, is passed over for the row's next draw of that kind. Places whose draws run out keep item 0
    and become NONE. Returns log q [n, K], 0 where the kind has none.
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


def draw_from_lists(items_NK: Ints, slots: range, own: Lists, wider: Lists, keys: UInt64, attempts: int) -> None:
    """Fill, in place, `slots` of each row from its own list, without replacement, then from the wider one.

    The lists hold nothing that is forbidden to the row. What the row already holds is passed over: in the wider
    list, which may be long and repeats items, for at most `attempts` draws a place. A place that no list can fill keeps 0.
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
        _put(items_NK, rows, slot, own.items[own.start_N[rows] + drawn])
    width = wider.stop_N - wider.start_N
    for slot in slots:
        rows = rows_all[(items_NK[:, slot] == 0) & (width > 0)]
        for attempt in range(attempts):
            if len(rows) == 0:
                break
            drawn = (to_unit(mix(keys[rows], slot, attempt + 1)) * width[rows]).astype(np.int64)
            _put(items_NK, rows, slot, wider.items[wider.start_N[rows] + drawn])
            rows = rows[items_NK[rows, slot] == 0]


def _put(items_NK: Ints, rows: Ints, slot: int, drawn: Ints) -> None:
    free = ~(items_NK[rows] == drawn[:, None]).any(axis=1)
    items_NK[rows[free], slot] = drawn[free]

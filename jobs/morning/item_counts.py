"""Reads `item_stats` of a night in batches: how concentrated its positives are, and items to show."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import parquet as pq

from jobs.common.runner import Context
from model.io.urls import resolve
from pipelines.hashing import mix

POINTS = 60  # of the curve of popularity
BATCH = 65_536
COLUMNS = ("item_index", "live", "window_count", "sampled_count")
Ints = npt.NDArray[np.int64]
Keyed = tuple[int, int, int]  # sort key, item_index, window_count


@dataclass(frozen=True)
class ItemCounts:
    """Aggregates of `item_stats`."""

    totals: dict[int, tuple[int, int]]  # window_count -> (items with this count, their sampled_count)
    popular: list[tuple[int, int]]  # (item_index, window_count) of the live items with the highest count
    by_hash: list[tuple[int, int]]  # the same of live items chosen by hash

    def curve(self) -> list[list[float]]:
        """[rank, share of all positives, share of this night's rows] of the items up to a rank, most popular first."""
        counts = sorted(self.totals, reverse=True)
        items = np.cumsum([0, *(self.totals[count][0] for count in counts)])
        before = np.cumsum([0, *(count * self.totals[count][0] for count in counts)])
        after = np.cumsum([0, *(self.totals[count][1] for count in counts)])
        if not before[-1]:
            return []
        ranks = np.unique(np.geomspace(1, items[-1], POINTS).round().astype(np.int64))
        shares = [np.interp(ranks, items, sums) / max(1, sums[-1]) for sums in (before, after)]
        return [[int(rank), round(a, 5), round(b, 5)] for rank, a, b in zip(ranks, *(s.tolist() for s in shares))]


def read_item_counts(context: Context, items: int) -> ItemCounts:
    """Aggregate `item_stats` of ds, with `items` items of each choice. Holds one batch at a time."""
    totals: dict[int, tuple[int, int]] = {}
    popular, by_hash = list[Keyed](), list[Keyed]()
    for index, live, window, sampled in _batches(context):
        values, place = np.unique(window, return_inverse=True)
        numbers, rows = np.bincount(place), np.bincount(place, weights=sampled.astype(np.float64))
        for value, number, row_count in zip(values.tolist(), numbers.tolist(), rows.tolist()):
            known = totals.get(value, (0, 0))
            totals[value] = (known[0] + number, known[1] + int(row_count))
        index, window = index[live], window[live]
        popular = _smallest(popular, -window, index, window, items)
        by_hash = _smallest(by_hash, mix(index.astype(np.uint64), context.config.seed), index, window, items)
    return ItemCounts(totals, *([(index, window) for _, index, window in chosen] for chosen in (popular, by_hash)))


def _smallest(chosen: list[Keyed], keys: npt.NDArray[Any], index: Ints, window: Ints, items: int) -> list[Keyed]:
    """The items with the smallest keys of those chosen so far and of a batch."""
    places = np.lexsort((index, keys))[:items]
    return sorted([*chosen, *zip(keys[places].tolist(), index[places].tolist(), window[places].tolist())])[:items]


def _batches(context: Context) -> Iterator[tuple[Ints, npt.NDArray[np.bool_], Ints, Ints]]:
    """item_index, live, window_count and sampled_count in batches."""
    for url in context.warehouse.data_files(context.warehouse.path("item_stats", context.ds)):
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=list(COLUMNS)):
                index, live, window, sampled = (batch.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS)
                yield index.astype(np.int64), live.astype(bool), window.astype(np.int64), sampled.astype(np.int64)

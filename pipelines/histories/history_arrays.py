"""The Python side of histories: numpy functions over sorted rows in Arrow batches.

The cost of a row does not depend on the number of events of its user: only the last entries of one user are carried from
batch to batch. Spark's Python workers import only this file, so it needs only numpy and pyarrow.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
SECOND = 1_000_000  # microseconds


@dataclass(frozen=True)
class Histories:
    """Histories of N rows, L items each: oldest first, 0-padded on the left."""

    items_NL: Indices
    until_N: Ints  # time of the newest item in microseconds; -1 if the history is empty or has no times
    # Number of the user's entries before the cut, those beyond L included; None: the history has no order of time.
    past_N: Ints | None = None
    ages_NL: Indices | None = None  # seconds from each item to the cut of the row, 0 for padding; None: not wanted
    actions_NL: Indices | None = None  # the action of each item, 0 for padding; None: not known


@dataclass(frozen=True)
class Entries:
    """Past positives of several users: E entries, sorted by user (numbered from 0) and time."""

    group_E: Ints
    time_E: Ints  # microseconds
    item_E: Ints
    forgotten: int = 0  # number of older entries of user 0 that were dropped
    action_E: Ints | None = None  # None: not wanted

    def _at(self, places: Ints | slice, group_E: Ints, forgotten: int) -> "Entries":
        """The entries at some places, with these users."""
        action_E = None if self.action_E is None else self.action_E[places]
        return Entries(group_E, self.time_E[places], self.item_E[places], forgotten, action_E)

    def then(self, later: "Entries") -> "Entries":
        """The entries with those of `later` appended, user by user."""
        group = np.concatenate([self.group_E, later.group_E])
        order = np.argsort(group, kind="stable")
        time, item = np.concatenate([self.time_E, later.time_E]), np.concatenate([self.item_E, later.item_E])
        action = None
        if self.action_E is not None and later.action_E is not None:
            action = np.concatenate([self.action_E, later.action_E])
        return Entries(group, time, item, self.forgotten, action)._at(order, group[order], self.forgotten)

    def of_group(self, group: int) -> "Entries":
        """The entries of one user, renumbered 0."""
        start, stop = np.searchsorted(self.group_E, [group, group + 1])
        forgotten = self.forgotten if group == 0 else 0
        return self._at(slice(start, stop), np.zeros(stop - start, np.int64), forgotten)

    def last(self, length: int, since: int, *, counted: bool = False) -> "Entries":
        """The entries that rows with cuts at or after `since` (microseconds) may still need; all must be of one user.

        These are the last `length` before `since` and all from then on; of entries that are all at `since` only the last
        `length`, unless past entries are counted.
        """
        first = int(np.searchsorted(self.time_E, since))
        start = max(0, first - length)
        if not counted and first < len(self.time_E) and self.time_E[-1] == since:
            keep = np.concatenate(
                [np.arange(start, first), np.arange(max(first, len(self.time_E) - length), len(self.time_E))]
            )
            return self._at(keep, self.group_E[keep], 0)
        return self._at(slice(start, None), self.group_E[start:], self.forgotten + start)


def histories_before(entries: Entries, group_N: Ints, cut_N: Ints, length: int, *, ages: bool = False) -> Histories:
    """The last `length` items strictly before the cut of each row. Entries of the same instant never see each other.

    `group_N`, `cut_N`: the user and the cut (microseconds) of each row. Cuts need not be sorted.
    """
    begin = np.searchsorted(entries.group_E, group_N, "left")
    low, high = begin, np.searchsorted(entries.group_E, group_N, "right")
    # One binary search for all rows: the user's first entry that is not before the time is in [low, high].
    while (low < high).any():
        middle = (low + high) // 2
        earlier = (low < high) & (entries.time_E[np.minimum(middle, len(entries.time_E) - 1)] < cut_N)
        low, high = np.where(earlier, middle + 1, low), np.where(earlier, high, np.minimum(middle, high))
    end, count = low, low - begin
    padding_NL = np.arange(length) < (length - count)[:, None]
    items_NL = _windows(entries.item_E.astype(np.int32), end, length)
    items_NL[padding_NL] = 0
    actions_NL = None
    if entries.action_E is not None:
        actions_NL = np.where(padding_NL, np.int32(0), _windows(entries.action_E.astype(np.int32), end, length))
    if len(entries.time_E) == 0:
        none_NL = np.zeros_like(items_NL) if ages else None
        return Histories(items_NL, np.full(len(group_N), -1), count, none_NL, actions_NL)
    until_N = np.where(count > 0, entries.time_E[np.maximum(end - 1, 0)], -1)
    past_N = count + np.where(group_N == 0, entries.forgotten, 0)
    if not ages:
        return Histories(items_NL, until_N, past_N, actions_NL=actions_NL)
    # Both times are rounded down to whole seconds first, so that ages at two cuts differ by the seconds between the cuts.
    ages_NL = cut_N[:, None] // SECOND - _windows(entries.time_E // SECOND, end, length)
    ages_NL[padding_NL] = 0
    ages_NL = np.clip(ages_NL, 0, np.iinfo(np.int32).max)
    return Histories(items_NL, until_N, past_N, ages_NL.astype(np.int32), actions_NL)


def _windows(values_E: npt.NDArray[Any], end_N: Ints, length: int) -> npt.NDArray[Any]:
    """The `length` values before each end [n, length]; 0 before the first value."""
    padded = np.concatenate([np.zeros(length, values_E.dtype), values_E])
    # padded[end : end + length] holds the values before `end`.
    return np.lib.stride_tricks.sliding_window_view(padded, length)[end_N]


def histories_of_others(pools: Entries, group_N: Ints, item_N: Ints, length: int) -> Indices:
    """The last items [n, length] of each row's user other than the row's own item, 0-padded on the left.

    `pools`: at most length + 1 distinct items per user, oldest first.
    """
    start, stop = (np.searchsorted(pools.group_E, group_N, side) for side in ("left", "right"))
    place = stop[:, None] - (length + 1) + np.arange(length + 1)
    items = np.append(pools.item_E, 0).astype(np.int32)
    pool = np.where(place >= start[:, None], items[np.clip(place, 0, len(items) - 1)], 0)
    # Remove the row's own item; if the pool lacks it, remove the oldest.
    removed = (pool == item_N[:, None]).argmax(axis=1)
    others = np.arange(length) + (np.arange(length) >= removed[:, None])
    return np.take_along_axis(pool, others, axis=1)


def last_rows(
    batches: Iterable[pa.RecordBatch], length: int, known_items: int, *, actions: bool = False
) -> Iterator[pa.RecordBatch]:
    """One row per user, with the last `length` events and the last `known_items` distinct items.

    `batches`: rows sorted by user. `actions`: they have an action_index, which the result has for each event. Column `number`
    numbers the rows of each user from 1; raises AssertionError if they are not in that order. Of the last user of a batch,
    only `length` events and `known_items` touches (the last event of each distinct item) are carried into the next batch.
    """
    user: pa.Scalar | None = None  # the last user of the previous batch, whose rows may continue
    # That user's events and touches: item, time, hash of the pair, and action.
    events, touches = (np.zeros((4 if actions else 3, 0), np.int64) for _ in range(2))
    kind = pa.timestamp("us")
    for batch in batches:
        if batch.num_rows == 0:
            continue
        users, kind = batch.column("user_id"), batch.column("event_time").type
        number = batch.column("number").to_numpy()
        begins = number == 1
        follows = begins[0] or (user is not None and users[0].equals(user))
        if not (follows and (begins[1:] | (np.diff(number) == 1)).all()):
            raise AssertionError("rows of a user are not in one partition and in order; please report this")
        if user is not None and begins[0]:
            yield _user_rows(pa.array([user.as_py()]), (events, _zeros(events)), (touches, _zeros(touches)), kind)
            events, touches = events[:, :0], touches[:, :0]
        columns = [batch.column("item_index").to_numpy(), _micros(batch.column("event_time"))]
        columns.append(batch.column("pair").to_numpy())
        rows = np.stack([*columns, batch.column("action_index").to_numpy()] if actions else columns)
        group = np.cumsum(begins) - begins[0]

        # Carried rows always belong to the first user of the batch.
        events, event_group = _last(
            np.concatenate([events, rows], axis=1), np.concatenate([_zeros(events), group]), length
        )
        touches, touch_group = _last(
            *_last_touches(np.concatenate([touches, rows], axis=1), np.concatenate([_zeros(touches), group])),
            known_items,
        )
        last = group[-1]
        done, touched = event_group < last, touch_group < last
        if last > 0:
            ended = users.take(pa.array(np.flatnonzero(begins[1:])))
            yield _user_rows(
                ended, (events[:, done], event_group[done]), (touches[:, touched], touch_group[touched]), kind
            )
        user, events, touches = users[-1], events[:, ~done], touches[:, ~touched]
    if user is not None:
        yield _user_rows(pa.array([user.as_py()]), (events, _zeros(events)), (touches, _zeros(touches)), kind)


def _last(rows: Ints, group: Ints, number: int) -> tuple[Ints, Ints]:
    """The last `number` rows [any, n] of each group [n]; groups are ascending."""
    ends = np.cumsum(np.bincount(group))[group]
    keep = ends - np.arange(len(group)) <= number
    return rows[:, keep], group[keep]


def _last_touches(rows: Ints, group: Ints) -> tuple[Ints, Ints]:
    """The last row of each item of each group, in the order of (time, hash of the pair). `rows` [any, n]: by group, time."""
    pair_of = group << 32 | rows[0]
    by_pair = np.argsort(pair_of)
    first = np.flatnonzero(np.diff(pair_of[by_pair], prepend=-1))
    latest = np.sort(np.maximum.reduceat(by_pair, first)) if len(first) else first
    rows, group = rows[:, latest], group[latest]
    # Only rows of the same instant are still out of order.
    new = np.ones(len(group), bool)
    new[1:] = (group[1:] != group[:-1]) | (rows[1, 1:] != rows[1, :-1])
    instant = np.cumsum(new) - 1
    tied = np.flatnonzero(np.bincount(instant)[instant] > 1) if len(group) else first
    rows[:, tied] = rows[:, tied[np.lexsort((rows[2, tied], instant[tied]))]]
    return rows, group


def _user_rows(
    users: pa.Array, events: tuple[Ints, Ints], touches: tuple[Ints, Ints], kind: pa.DataType
) -> pa.RecordBatch:
    """One row per user: items, times and actions (if any) of the events, items of the touches. Group n is user n."""
    sizes = np.bincount(events[1], minlength=len(users))
    columns = {
        "user_id": users,
        "items_today": _lists(events[0][0], sizes, pa.int32()),
        "times_today": _lists(events[0][1], sizes, kind),
        "known_today": _lists(touches[0][0], np.bincount(touches[1], minlength=len(users)), pa.int32()),
    }
    if len(events[0]) > 3:
        columns["actions_today"] = _lists(events[0][3], sizes, pa.int32())
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _lists(flat: Ints, sizes: Ints, element: pa.DataType) -> pa.ListArray:
    """Consecutive numbers as lists of the given sizes."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), type=pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(flat).cast(element))


def _micros(times: pa.Array) -> Ints:
    """Timestamps as microseconds since 1970; 0 for null."""
    return pc.fill_null(times.cast(pa.int64()), 0).to_numpy()


def _zeros(rows: Ints) -> Ints:
    return np.zeros(rows.shape[1], np.int64)

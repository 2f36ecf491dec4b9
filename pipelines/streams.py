"""The Python side of histories: sorted Arrow batches in, numpy inside, Arrow batches out.

A row costs the same whether its user has ten events or a million: nothing but the last rows of one user is carried from
batch to batch. Workers import this file alone, so it needs no more than numpy and pyarrow.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]


@dataclass
class _Open:
    """What the next batch may still need of the user that the last one ended in."""

    user: pa.Scalar | None
    time: int
    items: Ints  # the last L before the open instant, then the last L within it
    times: Ints
    before: int  # how many of them are before it


def cut_histories(batches: Iterable[pa.RecordBatch], length: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows sorted by user, time and key in; kept rows with `history` and `history_until` out.

    Rows: user_id, event_time, item_index, kept, past (what the user had before; with the first row of a user, else null),
    past_until, and `columns`, which go through.
    """
    open_ = _Open(None, 0, np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
    for batch in batches:
        if batch.num_rows == 0:
            continue
        users, times = batch.column("user_id"), _micros(batch.column("event_time"))
        goes_on = open_.user is not None and users[0].equals(open_.user)
        new_user = np.concatenate([[not goes_on], _changes(users)])
        new_time = new_user | np.concatenate([[not (goes_on and open_.time == times[0])], times[1:] != times[:-1]])

        # One flat stream of items: what is carried, then each user's past ahead of the user's rows.
        sizes = pc.fill_null(pc.list_value_length(batch.column("past")), 0).to_numpy().astype(np.int64)
        carried = len(open_.items) if goes_on else 0
        place = carried + np.arange(batch.num_rows) + np.cumsum(sizes)
        items, stamps = np.zeros(place[-1] + 1, np.int64), np.zeros(place[-1] + 1, np.int64)
        if goes_on:
            items[:carried], stamps[:carried] = open_.items, open_.times
        is_past = np.ones(len(items), bool)
        is_past[:carried] = is_past[place] = False
        items[place], stamps[place] = batch.column("item_index").to_numpy(), times
        items[is_past] = batch.column("past").flatten().to_numpy()
        stamps[is_past] = np.repeat(_micros(batch.column("past_until")), sizes)

        user_start = np.maximum.accumulate(np.where(new_user, place - sizes, 0))
        instant_start = np.maximum.accumulate(np.where(new_time, place, open_.before if goes_on else 0))
        out = np.flatnonzero(batch.column("kept").to_numpy(zero_copy_only=False))
        end, start = instant_start[out], user_start[out]
        window = end[:, None] - length + np.arange(length)
        history = np.where(window >= start[:, None], items[np.maximum(window, 0)], 0)
        until = pa.array(stamps[np.maximum(end - 1, 0)], mask=end == start)
        if len(out):
            yield pa.RecordBatch.from_arrays(
                [
                    *(batch.column(name).take(pa.array(out)) for name in columns),
                    _lists(history.ravel(), np.full(len(out), length), pa.int32()),
                    until.cast(batch.column("event_time").type),
                ],
                names=[*columns, "history", "history_until"],
            )

        before = np.arange(max(user_start[-1], instant_start[-1] - length), instant_start[-1])
        within = np.arange(max(instant_start[-1], len(items) - length), len(items))
        keep = np.concatenate([before, within])
        open_ = _Open(users[-1], int(times[-1]), items[keep], stamps[keep], len(before))


def last_rows(batches: Iterable[pa.RecordBatch], length: int, known: int) -> Iterator[pa.RecordBatch]:
    """Sorted rows in; one row a user out, with the last `length` events and the last `known` distinct items.

    Of the user that a batch ends in, only `length` events and `known` touches are carried on.
    """
    user: pa.Scalar | None = None  # the open one
    events, touches = np.zeros((3, 0), np.int64), np.zeros((3, 0), np.int64)  # its rows: item, time, hash of the pair
    kind = pa.timestamp("us")
    for batch in batches:
        if batch.num_rows == 0:
            continue
        users, kind = batch.column("user_id"), batch.column("event_time").type
        if user is not None and not users[0].equals(user):
            yield _user_rows(pa.array([user.as_py()]), (events, _zeros(events)), (touches, _zeros(touches)), kind)
            events, touches = events[:, :0], touches[:, :0]
        columns = [batch.column("item_index").to_numpy(), _micros(batch.column("event_time"))]
        rows = np.stack([*columns, batch.column("pair").to_numpy()])
        changes = _changes(users)
        group = np.concatenate([[0], np.cumsum(changes)])

        # What is carried belongs to the first user of the batch: nothing is carried of another one.
        events, event_group = _last(
            np.concatenate([events, rows], axis=1), np.concatenate([_zeros(events), group]), length
        )
        touches, touch_group = _last(
            *_last_touches(np.concatenate([touches, rows], axis=1), np.concatenate([_zeros(touches), group])), known
        )
        last = group[-1]
        done, touched = event_group < last, touch_group < last
        if last > 0:
            ended = users.take(pa.array(np.flatnonzero(changes)))
            yield _user_rows(
                ended, (events[:, done], event_group[done]), (touches[:, touched], touch_group[touched]), kind
            )
        user, events, touches = users[-1], events[:, ~done], touches[:, ~touched]
    if user is not None:
        yield _user_rows(pa.array([user.as_py()]), (events, _zeros(events)), (touches, _zeros(touches)), kind)


def _last(rows: Ints, group: Ints, number: int) -> tuple[Ints, Ints]:
    """The last `number` rows [3, n] of each group [n]; groups are ascending."""
    ends = np.searchsorted(group, group, side="right")
    keep = ends - np.arange(len(group)) <= number
    return rows[:, keep], group[keep]


def _last_touches(rows: Ints, group: Ints) -> tuple[Ints, Ints]:
    """The last row of each item of each group, in the order of (time, hash of the pair)."""
    by_item = np.lexsort((rows[1], rows[0], group))
    item, owner = rows[0][by_item], group[by_item]
    latest = by_item[np.concatenate([(item[1:] != item[:-1]) | (owner[1:] != owner[:-1]), [True]])]
    order = latest[np.lexsort((rows[2][latest], rows[1][latest], group[latest]))]
    return rows[:, order], group[order]


def _user_rows(
    users: pa.Array, events: tuple[Ints, Ints], touches: tuple[Ints, Ints], kind: pa.DataType
) -> pa.RecordBatch:
    """One row a user: items and times of the events, items of the touches; group n is user n."""
    sizes = np.bincount(events[1], minlength=len(users))
    return pa.RecordBatch.from_arrays(
        [
            users,
            _lists(events[0][0], sizes, pa.int32()),
            _lists(events[0][1], sizes, kind),
            _lists(touches[0][0], np.bincount(touches[1], minlength=len(users)), pa.int32()),
        ],
        names=["user_id", "items_today", "times_today", "known_today"],
    )


def _lists(flat: Ints, sizes: Ints, element: pa.DataType) -> pa.ListArray:
    """Numbers cut into lists of these sizes."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), type=pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(flat).cast(element))


def _micros(times: pa.Array) -> Ints:
    """Timestamps as microseconds since 1970; 0 where there is none."""
    return pc.fill_null(times.cast(pa.int64()), 0).to_numpy()


def _changes(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether each value but the first differs from the one before it."""
    return pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)


def _zeros(rows: Ints) -> Ints:
    return np.zeros(rows.shape[1], np.int64)

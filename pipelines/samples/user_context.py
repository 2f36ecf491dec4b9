"""Per-user context of the rows, as numpy arrays. Computed once for each user, not once for each row."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import HARD, KINDS, MINED, NONE, POPULARITY, UNIFORM
from pipelines.features.feature_schema import ACTION_INDEX
from pipelines.histories.history_arrays import Entries, Histories, histories_before, histories_of_others
from pipelines.histories.user_stream import DROPPED, EXCLUDED, PAST, RANKED, ROW
from pipelines.samples.availability import Availability
from pipelines.samples.draws import AliasTable, Forbidden, Ints
from pipelines.samples.funnel import DAY_MICROS, FunnelCandidates
from pipelines.samples.mined import MinedCandidates


@dataclass(frozen=True)
class SamplingSettings:
    """What every task that makes samples needs; Spark broadcasts it."""

    config: Negatives
    seed: int
    width: int  # number of item indices
    alias_tables: dict[int, AliasTable]  # by kind; empty if the rows carry written draws
    history_length: int = 1  # items per history
    leave_one_out: bool = False  # a history holds the user's other positives, earlier and later ones
    availability: Availability | None = None  # of items that are not available on all days of the rows
    ahead_days: float | None = None  # a history ends up to this many days before its row; None: at the row
    ages: bool = False  # add the column history_ages
    actions: bool = False  # add the column history_actions
    counts_past: bool = False  # add the column past, for packed rows
    has_mined: bool = False  # a release has ranked candidates for the users

    @property
    def fallback(self) -> int:
        """The easy kind that fills the empty slots of hard kinds."""
        return POPULARITY if self.config.popularity else UNIFORM

    @property
    def ahead_micros(self) -> int:
        """The longest time between a row and the end of its history."""
        return math.ceil((self.ahead_days or 0) * DAY_MICROS)

    @property
    def kinds(self) -> list[int]:
        """The kind of each slot, in order [K]."""
        return [kind for kind in KINDS for _ in range(self._quota(kind))]

    def max_slots(self, kind: int) -> int:
        """Slots that an easy kind fills at most, including those it takes over from hard kinds."""
        hard = sum(self._quota(kind) for kind in HARD)
        return self._quota(kind) + (hard if kind == self.fallback else 0)

    @property
    def hard_slots(self) -> int:
        """Slots per row that hard negatives should fill: without those of mined ones if no release has ranked any."""
        return sum(self._quota(kind) for kind in HARD if kind != MINED or self.has_mined)

    def written_draws(self, kind: int) -> int:
        """Written draws per row of an easy kind: twice as many as slots if some items are not available on all days."""
        return self.max_slots(kind) * (1 if self.availability is None else 2)

    def _quota(self, kind: int) -> int:
        return 0 if kind == NONE else int(getattr(self.config, KINDS[kind]))


@dataclass(frozen=True)
class UserContexts:
    """The context of some users, numbered from 0 in the order of the stream."""

    forbidden: Forbidden
    candidates: FunnelCandidates
    mined: MinedCandidates
    # Entries of the user, in the order that histories need. Without leave_one_out: the past, then the rows themselves.
    # With it: the newest known items. Carried rows are in the past already.
    entries: Entries

    @classmethod
    def build(
        cls, table: pa.Table, role: Ints, group: Ints, settings: SamplingSettings, first_user: "UserContexts | None"
    ) -> "UserContexts":
        """From stream rows. `first_user`: the context of user 0, if an earlier table held a part of it."""
        at, key = numbers(table, "at"), numbers(table, "key")
        places, items = _flat(table, np.flatnonzero(role == EXCLUDED))
        pairs = group[places] * settings.width + items
        if first_user is not None:
            pairs = np.concatenate([first_user.forbidden.pairs, pairs])
        forbidden = Forbidden.build(pairs)

        places, packed = _flat(table, np.flatnonzero(role == DROPPED))
        candidates = FunnelCandidates.build(
            group[places], at[places], key[places], packed, forbidden, settings.width, settings.config
        )
        if first_user is not None:
            candidates = first_user.candidates.followed_by(candidates)

        places, items = _flat(table, np.flatnonzero(role == RANKED))
        mined = MinedCandidates.build(group[places], items, forbidden, settings.width)
        if first_user is not None:
            mined = first_user.mined.followed_by(mined)

        places, values = _flat(table, np.flatnonzero(role == PAST))
        if settings.leave_one_out:
            entries = Entries(group[places], at[places], values)
        else:
            entries = _entries(group[places], values, settings.actions)
        if first_user is not None:
            entries = first_user.entries.then(entries)
        if not settings.leave_one_out:
            rows = np.flatnonzero((role == ROW) & (numbers(table, "carried") == 0))
            actions = numbers(table, ACTION_INDEX)[rows] if settings.actions else None
            own = Entries(group[rows], at[rows], numbers(table, "item_index")[rows], action_E=actions)
            entries = entries.then(own)
        return cls(forbidden, candidates, mined, entries)

    def of_group(self, group: int, settings: SamplingSettings, at: int) -> "UserContexts":
        """The context of one user, who becomes user 0, for rows at or after `at` (microseconds)."""
        entries = self.entries.of_group(group)
        if not settings.leave_one_out:
            since = at - settings.ahead_micros
            entries = entries.last(settings.history_length, since, counted=settings.counts_past)
        return UserContexts(
            self.forbidden.of_group(group, settings.width),
            self.candidates.of_group(group),
            self.mined.of_group(group),
            entries,
        )

    def histories(self, group_N: Ints, item_N: Ints, cut_N: Ints, settings: SamplingSettings) -> Histories:
        """Histories of rows given by user, item and cut."""
        if settings.leave_one_out:
            items_NL = histories_of_others(self.entries, group_N, item_N, settings.history_length)
            return Histories(items_NL, np.full(len(group_N), -1))
        return histories_before(self.entries, group_N, cut_N, settings.history_length, ages=settings.ages)


def _entries(group_V: Ints, values_V: Ints, actions: bool) -> Entries:
    """The past from the values of user_stream.interleaved: item, time and, with `actions`, action of each event."""
    step = 3 if actions else 2
    action_E = values_V[2::step] if actions else None
    return Entries(group_V[::step], values_V[1::step], values_V[::step], action_E=action_E)


def with_contexts(
    batches: Iterable[pa.RecordBatch], settings: SamplingSettings
) -> Iterator[tuple[pa.Table, UserContexts, Ints]]:
    """Cut the stream into tables of rows, each with the contexts of its users: (rows, contexts, user of each row).

    Stream rows of a user's context wait until the first row of the user. If the user's rows span several batches, the
    context is passed on to the next batch.
    """
    waiting: pa.Table | None = None  # context of users whose rows have not arrived yet
    last_context: UserContexts | None = None  # context of the user of the last row
    last_user: int | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        if waiting is not None:
            table = pa.concat_tables([waiting, table])
        role = numbers(table, "role")
        rows = np.flatnonzero(role == ROW)
        end = int(rows[-1]) + 1 if len(rows) else 0
        waiting = table.slice(end)
        if end == 0:
            continue
        table, role = table.slice(0, end), role[:end]
        user = numbers(table, "user_key")
        group = np.cumsum(np.concatenate([[0], user[1:] != user[:-1]])).astype(np.int64)
        if last_user != int(user[0]):
            last_context = None
        contexts = UserContexts.build(table, role, group, settings, last_context)
        at = int(numbers(table, "at")[-1])
        last_context, last_user = contexts.of_group(int(group[-1]), settings, at), int(user[-1])
        yield table.take(pa.array(rows)), contexts, group[rows]


def numbers(table: pa.Table, name: str) -> Ints:
    """A column as int64 (true is 1). Nulls, which occur only in rows of another role, are 0."""
    column = table.column(name)
    return (
        (column.fill_null(pa.scalar(0).cast(column.type)) if column.null_count else column)
        .to_numpy()
        .astype(np.int64, copy=False)
    )


def lists(table: pa.Table, name: str) -> pa.ListArray:
    """A list column as one array instead of chunks."""
    return pa.concat_arrays(table.column(name).chunks)


def _flat(table: pa.Table, places: Ints) -> tuple[Ints, Ints]:
    """All values of the rows at `places`, as one array: (row of each value, value)."""
    if len(places) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    taken = lists(table.select(["values"]).take(pa.array(places)), "values")
    return np.repeat(places, np.diff(taken.offsets.to_numpy())), taken.flatten().to_numpy()

"""What decides the rows of some users, as numpy: worked out once a user, however many rows the user has."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import COARSE, FINE, POPULARITY, UNIFORM
from pipelines.histories.history_arrays import Entries, Indices, histories_before, histories_of_others
from pipelines.histories.user_stream import DROPPED, EXCLUDED, PAST, ROW
from pipelines.samples.availability import Availability
from pipelines.samples.draws import AliasTable, Forbidden, Ints
from pipelines.samples.funnel import Candidates


@dataclass(frozen=True)
class Setting:
    """What the tasks that make samples share."""

    config: Negatives
    seed: int
    width: int  # number of item indices
    tables: dict[int, AliasTable]  # empty where the draws come with the rows
    history: int = 1  # items a history
    others: bool = False  # histories of the user's other positives, whatever their order
    availability: Availability | None = None  # of items that were not there on all days of the rows

    @property
    def fallback(self) -> int:
        """The easy kind that takes the places which hard ones leave."""
        return POPULARITY if self.config.popularity else UNIFORM

    @property
    def kinds(self) -> list[int]:
        """The kind of each slot, in order [K]."""
        config = self.config
        quotas = {UNIFORM: config.uniform, POPULARITY: config.popularity, COARSE: config.coarse, FINE: config.fine}
        return [kind for kind, quota in quotas.items() for _ in range(quota)]

    def places(self, kind: int) -> int:
        """Slots of an easy kind, those that may fall to it included."""
        hard = self.config.coarse + self.config.fine
        return self.kinds.count(kind) + (hard if kind == self.fallback else 0)

    def written(self, kind: int) -> int:
        """Places to write draws for where they come with the rows: more where some will be of items that were not there."""
        return self.places(kind) * (1 if self.availability is None else 2)


@dataclass(frozen=True)
class Context:
    """What is known of the users of some rows. Users are numbered from 0 in the order of the stream."""

    forbidden: Forbidden
    candidates: Candidates
    did: Entries  # the past, or the pools of others, and then the rows themselves; carried rows are part of the past

    @classmethod
    def build(cls, table: pa.Table, role: Ints, group: Ints, setting: Setting, opened: "Context | None") -> "Context":
        """From stream rows; `opened`: the context of user 0, where it came with earlier rows."""
        at, key = numbers(table, "at"), numbers(table, "key")
        places, items = _flat(table, np.flatnonzero(role == EXCLUDED))
        pairs = group[places] * setting.width + items
        forbidden = Forbidden.build(pairs if opened is None else np.concatenate([opened.forbidden.pairs, pairs]))

        pieces = np.flatnonzero(role == DROPPED)
        places, packed = _flat(table, pieces)
        found = Candidates.build(
            group[places], at[places], key[places], packed, forbidden, setting.width, setting.config
        )
        candidates = found if opened is None else opened.candidates.before(found)

        places, values = _flat(table, np.flatnonzero(role == PAST))
        if setting.others:
            past = Entries(group[places], at[places], values)
        else:
            past = Entries(group[places[::2]], values[1::2], values[::2])  # streams.pairs
        if opened is not None:
            past = opened.did.then(past)
        if setting.others:
            return cls(forbidden, candidates, past)
        rows = np.flatnonzero((role == ROW) & (numbers(table, "carried") == 0))
        did = past.then(Entries(group[rows], at[rows], numbers(table, "item_index")[rows]))
        return cls(forbidden, candidates, did)

    def of_group(self, group: int, setting: Setting) -> "Context":
        """One user's part, the user renumbered 0."""
        did = self.did.of_group(group)
        return Context(
            self.forbidden.of_group(group, setting.width),
            self.candidates.of_group(group),
            did if setting.others else did.last(setting.history),
        )

    def histories(self, group_N: Ints, item_N: Ints, time_N: Ints, setting: Setting) -> tuple[Indices, Ints]:
        """History and the time of its newest item (-1: none) of rows, by their user, item and time."""
        if setting.others:
            history = histories_of_others(self.did, group_N, item_N, setting.history)
            return history, np.full(len(group_N), -1)
        return histories_before(self.did, group_N, time_N, setting.history)


def with_contexts(batches: Iterable[pa.RecordBatch], setting: Setting) -> Iterator[tuple[pa.Table, Context, Ints]]:
    """The stream cut into tables of rows with the context of their users: (rows, context, user of each row).

    A user's context is worked out once: it is held back until it is whole, and carried on while the user's rows go on.
    """
    held: pa.Table | None = None  # the context of a user whose rows have not come yet
    opened: Context | None = None  # of the user that the last rows belonged to
    open_user: int | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        if held is not None:
            table = pa.concat_tables([held, table])
        role = numbers(table, "role")
        rows = np.flatnonzero(role == ROW)
        end = int(rows[-1]) + 1 if len(rows) else 0
        held = table.slice(end)
        if end == 0:
            continue
        table, role = table.slice(0, end), role[:end]
        user = numbers(table, "user_key")
        group = np.cumsum(np.concatenate([[0], user[1:] != user[:-1]])).astype(np.int64)
        if open_user != int(user[0]):
            opened = None
        built = Context.build(table, role, group, setting, opened)
        opened, open_user = built.of_group(int(group[-1]), setting), int(user[-1])
        yield table.take(pa.array(rows)), built, group[rows]


def numbers(table: pa.Table, name: str) -> Ints:
    """A column as int64 (true is 1); null, which only columns of another role have, is 0."""
    column = table.column(name)
    return (
        (column.fill_null(pa.scalar(0).cast(column.type)) if column.null_count else column)
        .to_numpy()
        .astype(np.int64, copy=False)
    )


def lists(table: pa.Table, name: str) -> pa.ListArray:
    """A list column in one piece."""
    return pa.concat_arrays(table.column(name).chunks)


def _flat(table: pa.Table, places: Ints) -> tuple[Ints, Ints]:
    """The values of some rows end to end: (row of each value, value)."""
    if len(places) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    taken = lists(table.select(["values"]).take(pa.array(places)), "values")
    return np.repeat(places, np.diff(taken.offsets.to_numpy())), taken.flatten().to_numpy()

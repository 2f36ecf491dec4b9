"""Negatives of every kind for every positive, with the exclusions that make them negatives.

The easy ones come from the corpus, the hard ones from the funnel: what was recalled for this user and dropped before fine
ranking (coarse), or reached fine ranking and came out last (fine). What the user has, did or saw is never a
negative: Facebook measured -55% recall with exposed-but-not-clicked items as negatives (Huang et al., KDD 2020).

All that decides a user's rows goes through one stream, sorted by user: first what the user must not get, then what the
funnel dropped, then the rows. A user's context crosses to numpy once, however many rows the user has.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipelines.config import Negatives
from pipelines.draws import (
    COARSE,
    FINE,
    NONE,
    POPULARITY,
    UNIFORM,
    AliasProposals,
    AliasTable,
    Floats,
    Ints,
    Proposals,
    WrittenProposals,
    contains,
    draw_easy,
    draw_from_lists,
)
from pipelines.funnel import Candidates, chunks
from pipelines.hashing import UInt64, mix

EXCLUDED, DROPPED, ROW = range(3)  # roles in the stream, in their order
WIDER_ATTEMPTS = 8  # draws from the user's other requests before an easy negative takes the place
STREAM = ("user_key", "role", "day", "request_key", "chunk")


@dataclass(frozen=True)
class Setting:
    """What the drawing tasks share."""

    config: Negatives
    seed: int
    width: int  # number of item indices
    tables: dict[int, AliasTable]  # empty where the draws come with the rows

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


def exclusions(known: DataFrame, interactions: DataFrame, requests: DataFrame | None) -> DataFrame:
    """What is never a negative of a user: known positives, everything interacted with, everything shown.

    `known`: user_key, known_items. `interactions`: user_key, item_index. `requests`: user_key, exposed (requests_of).
    Returns user_key, chunk, values (array<long>): a user may have several rows.
    """
    lists = known.select("user_key", F.col("known_items").cast("array<long>").alias("items"))
    did = interactions.groupBy("user_key").agg(F.collect_list(F.col("item_index").cast("long")).alias("items"))
    lists = lists.unionByName(did)
    if requests is not None:
        lists = lists.unionByName(requests.select("user_key", F.col("exposed").alias("items")))
    return lists.select("user_key", chunks(F.col("items")))


def stream_of(rows: DataFrame, excluded: DataFrame, requests: DataFrame | None) -> DataFrame:
    """Everything by user, in the order of STREAM: exclusions, what the funnel dropped, rows."""
    whole = rows.withColumn("role", F.lit(ROW)).unionByName(
        excluded.withColumn("role", F.lit(EXCLUDED)), allowMissingColumns=True
    )
    if requests is not None:
        dropped = requests.select("user_key", "request_key", "day", chunks(F.col("dropped")))
        whole = whole.unionByName(dropped.withColumn("role", F.lit(DROPPED)), allowMissingColumns=True)
    return whole.repartition("user_key").sortWithinPartitions(*STREAM)


def draw_negatives(
    rows: DataFrame, excluded: DataFrame, requests: DataFrame | None, keep: list[str], setting: Setting
) -> DataFrame:
    """Rows -> their `keep` columns with negatives, negative_kinds and negative_log_q (arrays of K).

    `rows`: user_key, request_key (null: none), day, row_key, item_index and, where `setting` has no tables, written draws
    (samplers.with_written_draws). `excluded`: of exclusions(). `requests`: of requests_of(), or None.
    """
    shared = rows.sparkSession.sparkContext.broadcast(setting)
    schema = T.StructType(
        [
            *rows.select(*keep).schema.fields,
            T.StructField("negatives", T.ArrayType(T.IntegerType())),
            T.StructField("negative_kinds", T.ArrayType(T.IntegerType())),
            T.StructField("negative_log_q", T.ArrayType(T.FloatType())),
        ]
    )

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table, context, group_N in with_contexts(batches, shared.value):
            yield from _fill(table, context, group_N, keep, shared.value).to_batches()

    return stream_of(rows, excluded, requests).mapInArrow(run, schema)


@dataclass(frozen=True)
class Context:
    """What is known of the users of some rows. Users are numbered from 0 in the order of the stream."""

    forbidden: Ints  # sorted pairs user * width + item
    candidates: Candidates

    @classmethod
    def build(cls, table: pa.Table, role: Ints, group: Ints, setting: Setting, opened: "Context | None") -> "Context":
        """From stream rows; `opened`: the context of user 0, where it came with earlier rows."""
        places, items = _flat(table, "values", np.flatnonzero(role == EXCLUDED))
        forbidden = group[places] * setting.width + items
        if opened is not None:
            forbidden = np.concatenate([opened.forbidden, forbidden])
        forbidden = np.sort(forbidden)
        places, packed = _flat(table, "values", np.flatnonzero(role == DROPPED))
        day, request = (_numbers(table, name)[places] for name in ("day", "request_key"))
        allowed = ~contains(forbidden, group[places] * setting.width + (packed & 0xFFFFFFFF))
        found = Candidates.build(group[places], day, request, packed, allowed, setting.config.fine_share)
        return cls(forbidden, opened.candidates.before(found) if opened is not None else found)

    def of_group(self, group: int, width: int) -> "Context":
        """One user's part, the user renumbered 0."""
        start, stop = np.searchsorted(self.forbidden, [group * width, (group + 1) * width])
        return Context(self.forbidden[start:stop] - group * width, self.candidates.of_group(group))


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
        role = _numbers(table, "role")
        rows = np.flatnonzero(role == ROW)
        end = int(rows[-1]) + 1 if len(rows) else 0
        held = table.slice(end)
        if end == 0:
            continue
        table, role = table.slice(0, end), role[:end]
        user = _numbers(table, "user_key")
        group = np.cumsum(np.concatenate([[0], user[1:] != user[:-1]])).astype(np.int64)
        if open_user != int(user[0]):
            opened = None
        context = Context.build(table, role, group, setting, opened)
        opened, open_user = context.of_group(int(group[-1]), setting.width), int(user[-1])
        yield table.take(pa.array(rows)), context, group[rows]


def _fill(rows: pa.Table, context: Context, group_N: Ints, keep: list[str], setting: Setting) -> pa.Table:
    """Hard slots first (fine, then coarse), then the easy ones; an empty hard slot becomes an easy one."""
    kinds = setting.kinds
    keys = mix(_numbers(rows, "row_key").view(np.uint64), setting.seed)
    day, request = _numbers(rows, "day"), _numbers(rows, "request_key")
    # The positive takes part as one more held item, so that no draw repeats it.
    items = np.zeros((rows.num_rows, len(kinds) + 1), np.int64)
    items[:, -1] = _numbers(rows, "item_index")
    kinds_NK = np.tile(np.array([*kinds, NONE]), (rows.num_rows, 1))
    for kind in (FINE, COARSE):
        slots = range(kinds.index(kind), kinds.index(kind) + kinds.count(kind)) if kind in kinds else range(0)
        own, wider = context.candidates.lists(kind, group_N, day, request)
        draw_from_lists(items, slots, own, wider, mix(keys, kind), WIDER_ATTEMPTS)
    kinds_NK[(items == 0) & (kinds_NK >= COARSE)] = setting.fallback
    log_q = draw_easy(items, kinds_NK, group_N, context.forbidden, setting.width, _proposals(rows, keys, setting))
    out = rows.select(keep)
    for name, values, kind in (
        ("negatives", items, pa.int32()),
        ("negative_kinds", kinds_NK, pa.int32()),
        ("negative_log_q", log_q, pa.float32()),
    ):
        flat = pa.array(np.ascontiguousarray(values[:, :-1]).ravel(), type=kind)
        offsets = pa.array(np.arange(rows.num_rows + 1) * len(kinds), type=pa.int32())
        out = out.append_column(name, pa.ListArray.from_arrays(offsets, flat))
    return out


def _proposals(rows: pa.Table, keys: UInt64, setting: Setting) -> dict[int, Proposals]:
    """The easy draws of each kind: of the broadcast tables, or those that came with the rows."""
    found: dict[int, Proposals] = {}
    for kind in (UNIFORM, POPULARITY):
        if setting.tables:
            limit = setting.places(kind) * setting.config.attempts
            found[kind] = AliasProposals(setting.tables[kind], keys, kind, limit)
        elif f"drawn_{kind}" in rows.column_names:
            shape = (rows.num_rows, -1)
            items = _list(rows, f"drawn_{kind}").flatten().to_numpy().astype(np.int64)
            log_q: Floats = _list(rows, f"drawn_log_q_{kind}").flatten().to_numpy()
            found[kind] = WrittenProposals(items.reshape(shape), log_q.reshape(shape))
    return found


def _numbers(table: pa.Table, name: str) -> Ints:
    """A column as int64; null, which only columns of another role have, is 0; a date is its days since 1970."""
    column = table.column(name)
    if pa.types.is_date(column.type):
        column = column.cast(pa.int32())
    return column.fill_null(0).to_numpy().astype(np.int64)


def _list(table: pa.Table, name: str) -> pa.ListArray:
    return pa.concat_arrays(table.column(name).chunks)


def _flat(table: pa.Table, name: str, places: Ints) -> tuple[Ints, Ints]:
    """The lists of some rows end to end: (row of each value, value)."""
    lists = _list(table.select([name]).take(pa.array(places)), name) if len(places) else None
    if lists is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    sizes = np.diff(lists.offsets.to_numpy())
    return np.repeat(places, sizes), lists.flatten().to_numpy().astype(np.int64)

"""A history and negatives of every kind for every positive.

The easy negatives come from the corpus, the hard ones from the funnel: what was recalled for this user and dropped by
coarse ranking (coarse), or reached fine ranking and came out last (fine); the config may name other stages. What the user
has, did or saw is never a negative: Facebook measured -55% recall with exposed-but-not-clicked items as negatives (Huang et
al., KDD 2020).
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from pipelines.contract.negative_kinds import COARSE, FINE, NONE, POPULARITY, UNIFORM
from pipelines.hashing import UInt64, mix
from pipelines.histories.user_stream import stream_of
from pipelines.samples.draws import (
    AliasProposals,
    Floats,
    Ints,
    Proposals,
    WrittenProposals,
    draw_easy,
    draw_from_lists,
)
from pipelines.samples.funnel import DAY_MICROS
from pipelines.samples.user_context import Context, Setting, lists, numbers, with_contexts

WIDER_ATTEMPTS = 8  # draws from the user's other requests before an easy negative takes the place
_INDICES = T.ArrayType(
    T.IntegerType(), containsNull=False
)  # asked of every element otherwise, four hundred million times
MADE = T.StructType(
    [
        T.StructField("history", _INDICES),
        T.StructField("history_until", T.TimestampType()),
        T.StructField("negatives", _INDICES),
        T.StructField("negative_kinds", _INDICES),
        T.StructField("negative_log_q", T.ArrayType(T.FloatType(), containsNull=False)),
    ]
)


def make_samples(rows: DataFrame, contexts: list[DataFrame], keep: list[str], setting: Setting) -> DataFrame:
    """Rows -> their `keep` columns with history and history_until (the time of its newest item, null: none), negatives,
    negative_kinds and negative_log_q (arrays of K).

    `rows`: user_key, at (microseconds), key (the row key), item_index, request_key (null: none), cell (a row without one is
    part of histories and does not come out), carried (its event is part of the past already) and, where `setting` has no
    tables, written draws
    (samplers.with_written_draws). `contexts`: see streams.stream_of.
    """
    shared = rows.sparkSession.sparkContext.broadcast(setting)
    schema = T.StructType([*rows.select(*keep).schema.fields, *MADE.fields])

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table, context, group_N in with_contexts(batches, shared.value):
            yield from complete(table, context, group_N, keep, shared.value).to_batches()

    return stream_of(rows, contexts).mapInArrow(run, schema)


def complete(rows: pa.Table, context: Context, group_N: Ints, keep: list[str], setting: Setting) -> pa.Table:
    """The rows with a cell, and all that is made for them."""
    chosen = np.flatnonzero(rows.column("cell").is_valid())
    rows, group_N = rows.take(pa.array(chosen)), group_N[chosen]
    history, until = context.histories(group_N, numbers(rows, "item_index"), numbers(rows, "at"), setting)
    items, kinds, log_q = _draw(rows, context, group_N, setting)
    made = [
        _matrix(history, pa.int32()),
        pa.array(until, pa.timestamp("us", tz="UTC"), mask=until < 0),
        _matrix(items, pa.int32()),
        _matrix(kinds, pa.int32()),
        _matrix(log_q, pa.float32()),
    ]
    out = rows.select(keep)
    for field, column in zip(MADE.fieldNames(), made):
        out = out.append_column(field, column)
    return out


def _draw(rows: pa.Table, context: Context, group_N: Ints, setting: Setting) -> tuple[Ints, Ints, Floats]:
    """Items, kinds and log q [N, K]: hard slots first (fine, then coarse), then the easy ones; an empty hard slot becomes an
    easy one."""
    kinds = setting.kinds
    keys = mix(numbers(rows, "key").view(np.uint64), setting.seed)
    day, request = numbers(rows, "at") // DAY_MICROS, numbers(rows, "request_key")
    # The positive takes part as one more held item, so that no draw repeats it.
    items = np.zeros((rows.num_rows, len(kinds) + 1), np.int64)
    items[:, -1] = numbers(rows, "item_index")
    kinds_NK = np.tile(np.array([*kinds, NONE]), (rows.num_rows, 1))
    for kind in (FINE, COARSE):
        slots = range(kinds.index(kind), kinds.index(kind) + kinds.count(kind)) if kind in kinds else range(0)
        own, wider = context.candidates.lists(kind, group_N, day, request)
        draw_from_lists(items, slots, own, wider, mix(keys, kind), WIDER_ATTEMPTS)
    kinds_NK[(items == 0) & (kinds_NK >= COARSE)] = setting.fallback
    late, allowed = setting.availability, None
    if late is not None:
        allowed = lambda drawn, places: late.allows(drawn, day[places])  # noqa: E731
    proposals = _proposals(rows, keys, setting)
    log_q = draw_easy(items, kinds_NK, group_N, context.forbidden, setting.width, proposals, allowed)
    if late is not None:
        for kind in proposals:  # the distribution of a row is that of the items of its day
            log_q -= np.where(kinds_NK == kind, late.correction(kind, day)[:, None], np.float32(0))
    items = items[:, :-1]
    if context.forbidden.contains((group_N[:, None] * setting.width + items).ravel()).any():
        raise AssertionError("a negative was drawn that its user has, did or was shown; please report this")
    return items, kinds_NK[:, :-1], log_q[:, :-1]


def _proposals(rows: pa.Table, keys: UInt64, setting: Setting) -> dict[int, Proposals]:
    """The easy draws of each kind: of the broadcast tables, or those that came with the rows."""
    found: dict[int, Proposals] = {}
    for kind in (UNIFORM, POPULARITY):
        if setting.tables:
            limit = setting.places(kind) * setting.config.attempts
            found[kind] = AliasProposals(setting.tables[kind], keys, kind, limit)
        elif f"drawn_{kind}" in rows.column_names:
            shape = (rows.num_rows, -1)
            items = lists(rows, f"drawn_{kind}").flatten().to_numpy().astype(np.int64)
            log_q: Floats = lists(rows, f"drawn_log_q_{kind}").flatten().to_numpy()
            found[kind] = WrittenProposals(items.reshape(shape), log_q.reshape(shape))
    return found


def _matrix(values: npt.NDArray[np.generic], element: pa.DataType) -> pa.ListArray:
    """Numbers [n, k] as n lists of k."""
    offsets = pa.array(np.arange(len(values) + 1) * values.shape[1], type=pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel(), type=element))

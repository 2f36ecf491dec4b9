"""Adds the history and the negatives of every kind to each positive.

Easy negatives come from the catalogue. Hard negatives come from the ranking funnel of the user's request: items that were
recalled and that coarse ranking dropped (coarse), or items that fine ranking placed last (fine). The config may name other
stages. Or they come from the items that the last release ranks for the user (mined). Items that the user has, interacted
with or was shown are never negatives: with exposed but not clicked items as negatives, Facebook measured 55% lower recall
(Huang et al., KDD 2020).
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from pipelines.contract.negative_kinds import COARSE, FINE, HARD, MINED, NONE, POPULARITY, UNIFORM
from pipelines.features.feature_schema import HISTORY_ACTIONS, HISTORY_AGES
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
from pipelines.samples.user_context import SamplingSettings, UserContexts, lists, numbers, with_contexts

MAX_WIDER_DRAWS = 8  # draws per slot from the user's other requests, before an easy negative fills the slot
# containsNull=False: otherwise Spark checks every element for null, 400 million times per night.
_INDICES = T.ArrayType(T.IntegerType(), containsNull=False)


def added_fields(settings: SamplingSettings) -> list[T.StructField]:
    """The columns that `make_samples` adds to the rows."""
    fields = [
        T.StructField("history", _INDICES),
        T.StructField("history_until", T.TimestampType()),
        T.StructField("negatives", _INDICES),
        T.StructField("negative_kinds", _INDICES),
        T.StructField("negative_log_q", T.ArrayType(T.FloatType(), containsNull=False)),
    ]
    if settings.ages:
        fields.append(T.StructField(HISTORY_AGES, _INDICES))
    if settings.actions:
        fields.append(T.StructField(HISTORY_ACTIONS, _INDICES))
    return [*fields, T.StructField("past", T.LongType())] if settings.counts_past else fields


def make_samples(rows: DataFrame, contexts: list[DataFrame], keep: list[str], settings: SamplingSettings) -> DataFrame:
    """Add histories and negatives to rows. Returns the `keep` columns of the rows and the columns of `added_fields`.

    `history_until` is the time of the newest item of the history, null if it is empty. `negatives`, `negative_kinds` and
    `negative_log_q` are arrays of K. `history_ages` (with `settings.ages`) has the age of each item of the history, and
    `history_actions` (with `settings.actions`) its action. `past` (with `settings.counts_past`) is the number of the user's
    positives before the cut.

    `rows`: user_key, at (microseconds), key (the row key), item_index, request_key (null if the event has no request), cell
    (a row without a cell extends histories and is not returned), carried (the event is in the past already). Without
    `settings.alias_tables` also the columns of samplers.with_written_draws; with `settings.ahead_days` also `cut`
    (microseconds: the history ends before it); with `settings.actions` also action_index. `contexts`: see
    user_stream.stream_of.
    """
    shared = rows.sparkSession.sparkContext.broadcast(settings)
    schema = T.StructType([*rows.select(*keep).schema.fields, *added_fields(settings)])

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table, context, group_N in with_contexts(batches, shared.value):
            yield from complete(table, context, group_N, keep, shared.value).to_batches()

    return stream_of(rows, contexts).mapInArrow(run, schema)


def complete(
    rows: pa.Table, contexts: UserContexts, group_N: Ints, keep: list[str], settings: SamplingSettings
) -> pa.Table:
    """The rows that have a cell, with the columns of `added_fields`."""
    chosen = np.flatnonzero(rows.column("cell").is_valid())
    rows, group_N = rows.take(pa.array(chosen)), group_N[chosen]
    cut = numbers(rows, "at" if settings.ahead_days is None else "cut")
    histories = contexts.histories(group_N, numbers(rows, "item_index"), cut, settings)
    items, kinds, log_q = _draw(rows, contexts, group_N, settings)
    added = {
        "history": list_array(histories.items_NL, pa.int32()),
        "history_until": pa.array(histories.until_N, pa.timestamp("us", tz="UTC"), mask=histories.until_N < 0),
        "negatives": list_array(items, pa.int32()),
        "negative_kinds": list_array(kinds, pa.int32()),
        "negative_log_q": list_array(log_q, pa.float32()),
    }
    if histories.ages_NL is not None:
        added[HISTORY_AGES] = list_array(histories.ages_NL, pa.int32())
    if histories.actions_NL is not None:
        added[HISTORY_ACTIONS] = list_array(histories.actions_NL, pa.int32())
    if settings.counts_past:
        added["past"] = pa.array(histories.past_N)
    out = rows.select(keep)
    for name, column in added.items():
        out = out.append_column(name, column)
    return out


def _draw(
    rows: pa.Table, contexts: UserContexts, group_N: Ints, settings: SamplingSettings
) -> tuple[Ints, Ints, Floats]:
    """Items, kinds and log q [N, K]. Fills hard slots first (fine, coarse, mined), then easy slots and empty hard slots."""
    kinds = settings.kinds
    keys = mix(numbers(rows, "key").view(np.uint64), settings.seed)
    day, request = numbers(rows, "at") // DAY_MICROS, numbers(rows, "request_key")
    # The positive fills one more slot during the draws, so that no draw repeats it.
    items = np.zeros((rows.num_rows, len(kinds) + 1), np.int64)
    items[:, -1] = numbers(rows, "item_index")
    kinds_NK = np.tile(np.array([*kinds, NONE]), (rows.num_rows, 1))
    availability, allowed = settings.availability, None
    if availability is not None:
        allowed = lambda drawn, places: availability.allows(drawn, day[places])  # noqa: E731
    for kind in (FINE, COARSE):
        own, wider = contexts.candidates.lists(kind, group_N, day, request)
        draw_from_lists(items, _slots(kinds, kind), own, wider, mix(keys, kind), MAX_WIDER_DRAWS)
    ranked = contexts.mined.lists(group_N)
    # A carried row is of an earlier day than the newest items of the release, so it skips them, as in easy draws.
    draw_from_lists(items, _slots(kinds, MINED), ranked, ranked, mix(keys, MINED), settings.config.attempts, allowed)
    kinds_NK[(items == 0) & np.isin(kinds_NK, HARD)] = settings.fallback
    proposals = _proposals(rows, keys, settings)
    log_q = draw_easy(items, kinds_NK, group_N, contexts.forbidden, settings.width, proposals, allowed)
    if availability is not None:
        for kind in proposals:  # q of a row is conditional on the items available on the day of the row
            log_q -= np.where(kinds_NK == kind, availability.log_mass_on(kind, day)[:, None], np.float32(0))
    items = items[:, :-1]
    if contexts.forbidden.contains((group_N[:, None] * settings.width + items).ravel()).any():
        raise AssertionError("drew a negative that its user has, did or was shown; please report this")
    return items, kinds_NK[:, :-1], log_q[:, :-1]


def _slots(kinds: list[int], kind: int) -> range:
    """The slots of a kind; they are next to each other."""
    return range(kinds.index(kind), kinds.index(kind) + kinds.count(kind)) if kind in kinds else range(0)


def _proposals(rows: pa.Table, keys: UInt64, settings: SamplingSettings) -> dict[int, Proposals]:
    """The easy draws of each kind: from the broadcast alias tables, or from the written draws of the rows."""
    proposals: dict[int, Proposals] = {}
    for kind in (UNIFORM, POPULARITY):
        if settings.alias_tables:
            limit = settings.max_slots(kind) * settings.config.attempts
            proposals[kind] = AliasProposals(settings.alias_tables[kind], keys, kind, limit)
        elif f"drawn_{kind}" in rows.column_names:
            shape = (rows.num_rows, -1)
            items = lists(rows, f"drawn_{kind}").flatten().to_numpy().astype(np.int64)
            log_q: Floats = lists(rows, f"drawn_log_q_{kind}").flatten().to_numpy()
            proposals[kind] = WrittenProposals(items.reshape(shape), log_q.reshape(shape))
    return proposals


def list_array(values: npt.NDArray[np.generic], element: pa.DataType) -> pa.ListArray:
    """An array [n, k] as n lists of k elements."""
    offsets = pa.array(np.arange(len(values) + 1) * values.shape[1], type=pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel(), type=element))

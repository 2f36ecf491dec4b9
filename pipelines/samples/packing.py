"""Packed samples: one row holds up to T consecutive positives of a user with one history (docs/tables.md).

A sequence tower then reads each history once for all positives of the row. Positive number t sees the first
`history_seen[t]` items of it, which end before its own cut.

Rows are cut by the data alone. The past positives of a user are cut into blocks: block 0 has the first L, later blocks have
R = max(1, L / 2) each. A row holds positives of one split, one block and equal user features. So positives of users with up
to L past positives see their whole history, and others at least the last L - R items.

Shapes: n positives, S rows, T positives per row, L items per history.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipelines.contract.schema import FeatureSchema, columns_of
from pipelines.features.feature_schema import HISTORY_ACTIONS, HISTORY_AGES
from pipelines.hashing import hashed
from pipelines.histories.cuts import cut_micros
from pipelines.histories.history_arrays import SECOND, Ints
from pipelines.samples.make import list_array
from pipelines.samples.row_groups import RowGroupLayout
from pipelines.samples.user_context import SamplingSettings, lists, numbers
from pipelines.storage.manifest import Manifest

OF_EACH = ("row_key", "event_time", "item_id", "history_until")  # arrays of the actual number of positives
NEGATIVES = ("negatives", "negative_kinds", "negative_log_q")  # [T * K]
NUMBERS = ("item_index", "item_snapshot", "example_age", "weight")  # [T]
CONTEXT = "context_"  # columns with this prefix describe the request of each positive
# Columns that only cut rows: hash of the user with all features, block of the user's past, cut of the positive.
KEYS = ("_user", "_block", "_cut")
ORDER = (*KEYS, "event_time", "row_key")
PLACES_PER_PIECE = 65_536
SEEN, LAG = "history_seen", "request_lag"


def block_of(past: Column, length: int) -> Column:
    """The block of a positive with so many past positives: 0 up to L of them, then one block for every max(1, L / 2)."""
    later = F.floor((past - length - 1) / max(1, length // 2)) + 1
    return F.when(past <= length, 0).otherwise(later.cast("long"))


def pack_samples(
    rows: DataFrame, layout: RowGroupLayout, user_columns: Sequence[str], settings: SamplingSettings, pack: int
) -> DataFrame:
    """Pack the rows of make_samples (with `past`) into rows of up to `pack` positives, each in the task of its row group.

    `user_columns`: user_index and the encoded features of users. Packed rows of a group are in the order of a hash.
    """
    user = F.xxhash64("user_id", *user_columns)
    keys = (user, block_of(F.col("past"), settings.history_length), cut_micros(settings.ahead_days, settings.seed))
    ordered = layout.gather(rows.withColumns(dict(zip(KEYS, keys))), ORDER).drop("cell")
    schema = packed_schema(ordered.schema, settings.ages)
    length = settings.history_length

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return packed_batches(batches, schema.fieldNames(), pack, length)

    first = F.col("row_key")[0]
    packed = ordered.mapInArrow(run, schema)
    return packed.sortWithinPartitions("split", "group", hashed("shuffle", settings.seed, first), first)


def packed_schema(rows: T.StructType, ages: bool) -> T.StructType:
    """The columns of packed rows, from those of the ordered rows."""
    fields = []
    for field in rows.fields:
        if field.name in (*KEYS, "past"):
            continue
        kind = field.dataType
        if field.name in OF_EACH:
            kind = T.ArrayType(kind, containsNull=field.name == "history_until")
        elif _is_padded(field.name) and not isinstance(kind, T.ArrayType):
            kind = T.ArrayType(kind, containsNull=False)
        fields.append(T.StructField(field.name, kind))
    indices = T.ArrayType(T.IntegerType(), containsNull=False)
    return T.StructType([*fields, *(T.StructField(name, indices) for name in ([SEEN, LAG] if ages else [SEEN]))])


def packed_batches(
    batches: Iterable[pa.RecordBatch], columns: Sequence[str], pack: int, length: int
) -> Iterator[pa.RecordBatch]:
    """Packed rows from rows in the order of (split, group, *ORDER). The last row of a batch waits for the next batch."""
    waiting: pa.Table | None = None
    size = max(1, PLACES_PER_PIECE // pack)
    for batch in batches:
        table = pa.Table.from_batches([batch])
        if waiting is not None:
            table = pa.concat_tables([waiting, table])
        if not table.num_rows:
            continue
        table = table.combine_chunks()
        starts = row_starts(table, pack)
        # In pieces, because the padding of rows with few positives may take many times the space of the batch.
        for first in range(0, len(starts) - 1, size):
            piece = starts[first : min(first + size, len(starts) - 1) + 1]
            rows = table.slice(piece[0], piece[-1] - piece[0])
            yield from _packed(rows, piece[:-1] - piece[0], columns, pack, length)
        waiting = table.slice(starts[-1])
    if waiting is not None:
        yield from _packed(waiting, np.zeros(1, np.int64), columns, pack, length)


def row_starts(table: pa.Table, pack: int) -> Ints:
    """The places of `table` (in order) at which packed rows start; the first place is one of them."""
    begins = np.zeros(table.num_rows, bool)
    begins[0] = True
    for name in ("split", "group", "user_id", *KEYS[:2]):
        column = table.column(name)
        begins[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy()
    place = np.arange(table.num_rows)
    run_start = np.maximum.accumulate(np.where(begins, place, 0))
    return np.flatnonzero((place - run_start) % pack == 0)


def _packed(table: pa.Table, starts: Ints, columns: Sequence[str], pack: int, length: int) -> Iterator[pa.RecordBatch]:
    """One packed row for the rows from each start up to the next one."""
    edges = np.append(starts, table.num_rows)
    newest = pa.array(edges[1:] - 1)  # rows are in the order of cuts
    row_n = np.repeat(np.arange(len(starts)), np.diff(edges))
    place_n = row_n * pack + np.arange(table.num_rows) - starts[row_n]

    def padded(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
        """One value per positive [n] or several [n, m], with zeros appended up to T: [S, T * m]."""
        out = np.zeros((len(starts) * pack, *values.shape[1:]), values.dtype)
        out[place_n] = values
        return list_array(out.reshape(len(starts), -1), kind)

    past_n, second_n = numbers(table, "past"), numbers(table, KEYS[2]) // SECOND
    last_n = (edges[1:] - 1)[row_n]
    added = {
        SEEN: np.maximum(past_n - past_n[last_n] + np.minimum(past_n[last_n], length), 0),
        LAG: np.minimum(second_n[last_n] - second_n, np.iinfo(np.int32).max),
    }
    arrays = []
    for name in columns:
        if name in added:
            arrays.append(padded(added[name].astype(np.int32), pa.int32()))
            continue
        kind = table.schema.field(name).type
        if name in OF_EACH:
            offsets = pa.array(edges, pa.int32())
            arrays.append(pa.ListArray.from_arrays(offsets, pa.concat_arrays(table.column(name).chunks)))
        elif not _is_padded(name):
            arrays.append(pa.concat_arrays(table.column(name).take(newest).chunks))
        elif pa.types.is_list(kind):
            values = lists(table, name).flatten().to_numpy().reshape(table.num_rows, -1)
            arrays.append(padded(values, kind.value_type))
        else:
            arrays.append(padded(table.column(name).to_numpy(), kind))
    yield from pa.Table.from_arrays(arrays, names=list(columns)).to_batches()


def _is_padded(name: str) -> bool:
    return name in NUMBERS or name in NEGATIVES or name.startswith(CONTEXT)


def is_packed(frame: DataFrame) -> bool:
    """Whether rows of samples are packed."""
    return isinstance(frame.schema["row_key"].dataType, T.ArrayType)


def unpacked(frame: DataFrame, schema: FeatureSchema | None = None) -> DataFrame:
    """Packed samples as one row per positive, with the columns of samples that are not packed; other samples unchanged.

    The history of a positive has the items that it sees in its packed row: at least the last L - L / 2 of its last L.
    `frame`: table samples with row_key, item_index, history and history_seen among its columns. `schema`: the feature schema
    in its manifest, which tells context columns with several values per request; without it they are left out.
    """
    if not is_packed(frame):
        return frame
    lists_of_context = columns_of([f for f in schema.context if hasattr(f, "length")]) if schema else []
    place, seen = F.col("_place"), F.get("history_seen", F.col("_place"))
    size, newest = F.size("history"), F.array_max("history_seen")
    padding = F.array_repeat(F.lit(0), size - seen)

    def of_positive(name: str) -> Column:
        if name in NEGATIVES or name in lists_of_context:
            number = (F.size(name) / F.size("item_index")).cast("int")
            return F.slice(name, place * number + 1, number)
        if name in ("history", HISTORY_ACTIONS):
            return F.concat(padding, F.slice(name, size - newest + 1, seen))
        if name == HISTORY_AGES:
            lag = F.get(LAG, place)
            ages = F.transform(F.slice(name, size - newest + 1, seen), lambda age: F.greatest(age - lag, F.lit(0)))
            return F.concat(padding, ages)
        return F.get(name, place) if name in OF_EACH or _is_padded(name) else F.col(name)

    exploded = frame.select("*", F.posexplode("row_key").alias("_place", "_row_key")).drop("_row_key")
    names = [n for n in frame.columns if n not in (SEEN, LAG) and (schema or not n.startswith(CONTEXT))]
    return exploded.select(*(of_positive(name).alias(name) for name in names))


def positives_in(samples: Manifest) -> int:
    """The number of positives in a partition of samples. Packed rows hold several each."""
    if "pack" not in samples.facts:
        return samples.rows
    return sum(int(split["positives"]) for split in samples.facts["splits"].values())

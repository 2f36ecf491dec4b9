"""The ranking funnel of each request: which items were shown, and which items were dropped at which stage.

A log row is packed into one integer, `stage code << 49 | position << 31 | item`. So 50 million rows pass to numpy as
integer columns and return as one list per request. Sorting the integers sorts the request, best item first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import COARSE, FINE
from pipelines.hashing import mix
from pipelines.histories.user_stream import CHUNK, CONTEXT, DROPPED, EXCLUDED, key_of
from pipelines.samples.draws import CandidateLists, Forbidden, Ints

# Codes of the last stage that an item reached, best first: re-ranked items come before items of fine ranking.
EXPOSED, RERANKED, FINE_RANKED, COARSE_RANKED, RECALLED = range(5)
STAGE_CODES = {
    "exposed": EXPOSED,
    "rerank": RERANKED,
    "fine": FINE_RANKED,
    "coarse": COARSE_RANKED,
    "recall": RECALLED,
}
ITEM_BITS, POSITION_BITS, STAGE_BITS = 31, 18, 3
STAGE_SHIFT = ITEM_BITS + POSITION_BITS
PACKED_BITS = STAGE_SHIFT + STAGE_BITS
ITEM = 2**ITEM_BITS - 1
LAST_POSITION = 2**POSITION_BITS - 1  # larger positions, and missing ones, become this one
ROWS_AT_ONCE = 200_000  # log rows that a task groups at once
MIN_RUN_LENGTH = 8  # if runs of rows of one request are shorter on average, the rows are sorted first
DAY_MICROS = 86_400_000_000
SEGMENTS = 2 ** (63 - PACKED_BITS)  # requests whose rows fit into one sort


def requests_of(logs: DataFrame, items: DataFrame) -> DataFrame:
    """The items that each request showed and dropped, as stream rows (columns: user_stream.CONTEXT).

    Role EXCLUDED: shown items as item indices. Role DROPPED: the other items as packed rows; `at` is the day (days since
    1970-01-01), `key` is the request.

    Rows of a request are close together in the logs, so a request becomes one or two stream rows. A request that crosses
    midnight counts as two; `FunnelCandidates.lists` chooses between them.

    `logs`: ranking_logs with is_candidate (boolean: may become a hard negative; other rows count only if they were shown).
    `items`: item_key (user_stream.key_of), item_index; rows of other items are left out.
    """
    stage = F.lit(None).cast("long")
    for name, code in STAGE_CODES.items():
        stage = F.when(F.col("stage") == name, F.lit(code).cast("long")).otherwise(stage)
    position = F.least(F.greatest(F.coalesce("position", F.lit(LAST_POSITION)), F.lit(0)), F.lit(LAST_POSITION))
    packed = F.shiftleft(stage, STAGE_SHIFT).bitwiseOR(F.shiftleft(position.cast("long"), ITEM_BITS))
    rows = (
        logs.where((F.col("stage") == "exposed") | F.col("is_candidate"))
        .withColumn("item_key", key_of("item_id"))
        .join(items, on="item_key", how="inner")
        .select(
            key_of("user_id").alias("user_key"),
            key_of("request_id").alias("request_key"),
            packed.bitwiseOR(F.col("item_index").cast("long")).alias("packed"),
            F.expr(f"unix_micros(event_time) div {DAY_MICROS}").alias("day"),  # 10 times faster than to_date()
        )
    )
    return rows.mapInArrow(_gather, CONTEXT)


def _gather(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Group packed log rows by request, ROWS_AT_ONCE rows at a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield from _by_request(waiting)
            waiting = []
    yield from _by_request(waiting)


def _by_request(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if sum(map(len, batches)) == 0:
        return
    rows = np.stack([np.concatenate([batch.column(n).to_numpy() for batch in batches]) for n in range(4)])
    if len(_starts(rows)) * MIN_RUN_LENGTH > rows.shape[1]:
        rows = rows[:, np.argsort(mix(rows[0].view(np.uint64), rows[1]))]
    shown = rows[2] >> STAGE_SHIFT == EXPOSED
    for role, chosen in ((EXCLUDED, shown), (DROPPED, ~shown)):
        user, request, packed, day = part = rows[:, chosen]
        start = _starts(part)
        # One row per CHUNK items of a request.
        since = np.arange(len(user)) - np.repeat(start, np.diff(start, append=len(user)))
        start = np.flatnonzero(since % CHUNK == 0)
        nothing = np.full(len(start), role == EXCLUDED)
        columns = [
            pa.array(user[start]),
            pa.array(np.full(len(start), role, np.int32)),
            pa.array(day[start], mask=nothing),
            pa.array(request[start], mask=nothing),
            pa.ListArray.from_arrays(
                pa.array(np.append(start, len(user)), pa.int32()),
                pa.array(packed & ITEM if role == EXCLUDED else packed),
            ),
        ]
        yield pa.RecordBatch.from_arrays(columns, names=["user_key", "role", "at", "key", "values"])


def _starts(rows: Ints) -> Ints:
    """Start of each run of rows [4, n] with the same user, request and day."""
    new = np.ones(rows.shape[1], bool)
    user, request, _, day = rows
    new[1:] = (request[1:] != request[:-1]) | (user[1:] != user[:-1]) | (day[1:] != day[:-1])
    return np.flatnonzero(new)


@dataclass(frozen=True)
class FunnelCandidates:
    """The hard candidates of some users: one list per kind and request, ordered by user, day and request. S requests."""

    group_S: Ints  # [S] user of each request, ascending
    day_S: Ints  # [S] ascending within a user
    request_S: Ints  # [S]
    items: dict[int, Ints]  # by kind: the lists in one array
    starts: dict[int, Ints]  # by kind [S + 1]: where the list of each request starts in `items`

    @classmethod
    def build(
        cls, group: Ints, day: Ints, request: Ints, packed: Ints, forbidden: Forbidden, width: int, config: Negatives
    ) -> "FunnelCandidates":
        """From packed rows sorted by user, day and request. Leaves out forbidden items."""
        new = np.ones(len(packed), bool)
        new[1:] = (group[1:] != group[:-1]) | (day[1:] != day[:-1]) | (request[1:] != request[:-1])
        starts = np.append(np.flatnonzero(new), len(packed))
        segment = np.cumsum(new) - 1
        packed = _sorted_within(segment, starts, packed)
        item, stage = packed & ITEM, packed >> STAGE_SHIFT
        allowed = ~forbidden.contains(group * width + item)
        coarse, fine = (
            np.isin(stage, [STAGE_CODES[name] for name in names])
            for names in (config.coarse_stages, config.fine_stages)
        )
        # Rank of each row in the fine list of its request, and the length of that list: only the last fine_share is eligible.
        seen = np.concatenate([[0], np.cumsum(fine)])
        before = seen[:-1] - seen[starts[segment]]
        total = seen[starts[segment + 1]] - seen[starts[segment]]
        kinds = {COARSE: coarse, FINE: fine & (total - before <= config.fine_share * total + 1e-9)}
        items, offsets = {}, {}
        for kind, of_kind in kinds.items():
            eligible = of_kind & allowed
            items[kind] = item[eligible]
            offsets[kind] = np.concatenate([[0], np.cumsum(eligible)])[starts]
        first = starts[:-1]
        return cls(group[first], day[first], request[first], items, offsets)

    def of_group(self, group: int) -> "FunnelCandidates":
        """The candidates of one user, who becomes user 0."""
        start, stop = (int(x) for x in np.searchsorted(self.group_S, [group, group + 1]))
        items, starts = {}, {}
        for kind in self.items:
            edges = self.starts[kind][start : stop + 1]
            items[kind], starts[kind] = self.items[kind][edges[0] : edges[-1]], edges - edges[0]
        part = slice(start, stop)
        return FunnelCandidates(np.zeros(stop - start, np.int64), self.day_S[part], self.request_S[part], items, starts)

    def followed_by(self, later: "FunnelCandidates") -> "FunnelCandidates":
        """These candidates and then those of `later`. User 0 is the same in both."""
        items = {k: np.concatenate([self.items[k], later.items[k]]) for k in self.items}
        starts = {k: np.concatenate([self.starts[k], later.starts[k][1:] + self.starts[k][-1]]) for k in self.items}
        group_S = np.concatenate([self.group_S, later.group_S])
        day_S = np.concatenate([self.day_S, later.day_S])
        return FunnelCandidates(group_S, day_S, np.concatenate([self.request_S, later.request_S]), items, starts)

    def lists(self, kind: int, group_N: Ints, day_N: Ints, request_N: Ints) -> tuple[CandidateLists, CandidateLists]:
        """For each row: the list of its own request, and the list of all requests of the user on that day.

        The own request is looked up on the day of the row, then on the day before (a click after midnight), then on the
        day after (a log written late). The first day that has items of the kind counts, so request ids need to be unique
        only within a day.
        """
        edges = self.starts[kind]
        user_day_S, user_day_N = self.group_S * 2**20 + self.day_S, group_N * 2**20 + day_N
        places = (np.searchsorted(user_day_S, user_day_N, side) for side in ("left", "right"))
        wide = CandidateLists(self.items[kind], *(edges[place] for place in places))
        if len(self.group_S) == 0:
            return wide, wide
        key_S = mix(self.request_S.view(np.uint64), self.group_S, self.day_S)
        order = np.argsort(key_S, kind="stable")
        start_N, stop_N = np.zeros((2, len(group_N)), np.int64)
        missing_N = np.ones(len(group_N), bool)
        for days_later in (0, -1, 1):
            key_N = mix(request_N.view(np.uint64), group_N, day_N + days_later)
            request = order[np.minimum(np.searchsorted(key_S, key_N, sorter=order), len(order) - 1)]
            matches = missing_N & (key_S[request] == key_N) & (edges[request + 1] > edges[request])
            start_N[matches], stop_N[matches] = edges[request[matches]], edges[request[matches] + 1]
            missing_N &= ~matches
        return CandidateLists(self.items[kind], start_N, stop_N), wide


def _sorted_within(segment: Ints, starts: Ints, packed: Ints) -> Ints:
    """Sort packed rows within each segment (numbered from 0, ascending). The segment number goes into the upper bits."""
    out = np.empty_like(packed)
    for first in range(0, len(starts) - 1, SEGMENTS):
        part = slice(starts[first], starts[min(first + SEGMENTS, len(starts) - 1)])
        out[part] = np.sort((segment[part] - first) << PACKED_BITS | packed[part]) & (2**PACKED_BITS - 1)
    return out

"""What the ranking funnel did with each request: who was shown, who was dropped, and how late.

A request's rows travel as one array of packed numbers, `rank of the stage << 60 | position << 32 | item`, so that fifty
million log rows cross to numpy as half a million rows, and sorting the numbers sorts the request, best first.
"""

from dataclasses import dataclass

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.draws import COARSE, FINE, Bools, Ints, Lists
from pipelines.hashing import mix

# The last stage that an item reached, in the order of a request: re-ranked items stand before those of fine ranking.
EXPOSED, NOT_FINE, RERANKED, RANKED = range(4)
RANK_OF = {"exposed": EXPOSED, "recall": NOT_FINE, "coarse": NOT_FINE, "rerank": RERANKED, "fine": RANKED}
LAST_POSITION = 2**28 - 1  # also of items without one
CHUNK = 512  # values a row: Arrow counts rows a batch, not bytes


def requests_of(logs: DataFrame, items: DataFrame) -> DataFrame:
    """One row a request: user_key, request_key, day (date), exposed and dropped (array<long>, packed, sorted).

    `logs`: ranking_logs with `own` (boolean: of a day whose drops are wanted; others give exposures alone). `items`:
    item_id, item_index; rows of other items are left out.
    """
    stage = F.lit(None).cast("long")
    for name, rank in RANK_OF.items():
        stage = F.when(F.col("stage") == name, F.lit(rank).cast("long")).otherwise(stage)
    position = F.least(F.greatest(F.coalesce("position", F.lit(LAST_POSITION)), F.lit(0)), F.lit(LAST_POSITION))
    packed = F.shiftleft(stage, 60).bitwiseOR(F.shiftleft(position.cast("long"), 32)).bitwiseOR(F.col("item_index"))
    rows = logs.join(items, on="item_id", how="inner").select(
        F.xxhash64("user_id").alias("user_key"),
        F.xxhash64("request_id").alias("request_key"),
        F.to_date("event_time").alias("day"),
        F.when(F.col("stage") == "exposed", F.col("item_index").cast("long")).alias("shown"),
        F.when((F.col("stage") != "exposed") & F.col("own"), packed).alias("packed"),
    )
    return rows.groupBy("user_key", "request_key").agg(
        F.min("day").alias("day"),
        F.collect_list("shown").alias("exposed"),
        F.sort_array(F.collect_list("packed")).alias("dropped"),
    )


def chunks(values: Column) -> Column:
    """An array as one row for each CHUNK of it: (chunk int, values array). Empty arrays give none."""
    pieces = F.transform(
        F.sequence(F.lit(0), F.floor((F.size(values) - 1) / CHUNK).cast("int")),
        lambda piece: F.slice(values, piece * CHUNK + 1, F.lit(CHUNK)),
    )
    whole = F.when(F.size(values) <= CHUNK, F.array(values)).otherwise(pieces)
    return F.posexplode(F.filter(whole, lambda piece: F.size(piece) > 0)).alias("chunk", "values")


@dataclass(frozen=True)
class Candidates:
    """The hard candidates of some users, by kind: lists end to end, in the order of user, day and request."""

    group_S: Ints  # [S] the user of each request, ascending  # noqa: N815
    day_S: Ints  # [S] ascending within a user  # noqa: N815
    request_S: Ints  # [S]  # noqa: N815
    items: dict[int, Ints]  # kind -> items
    starts: dict[int, Ints]  # kind -> [S + 1] where each request's list begins

    @classmethod
    def build(
        cls, group: Ints, day: Ints, request: Ints, packed: Ints, allowed: Bools, fine_share: float
    ) -> "Candidates":
        """From unpacked rows [c] in order: each value with its user, day and request; `allowed`: not forbidden to its user."""
        new = np.ones(len(packed), bool)
        new[1:] = (group[1:] != group[:-1]) | (day[1:] != day[:-1]) | (request[1:] != request[:-1])
        starts = np.append(np.flatnonzero(new), len(packed))
        segment = np.cumsum(new) - 1
        stage = packed >> 60
        fine = stage >= RERANKED
        # How many of the fine list there are up to each value, and in all: the last share of the list is eligible.
        seen = np.concatenate([[0], np.cumsum(fine)])
        before = seen[:-1] - seen[starts[segment]]
        total = seen[starts[segment + 1]] - seen[starts[segment]]
        from_end = total - before
        kinds = {COARSE: stage == NOT_FINE, FINE: fine & (from_end <= fine_share * total + 1e-9)}
        items, offsets = {}, {}
        for kind, mine in kinds.items():
            kept = mine & allowed
            items[kind] = packed[kept] & 0xFFFFFFFF
            offsets[kind] = np.concatenate([[0], np.cumsum(kept)])[starts]
        first = starts[:-1]
        return cls(group[first], day[first], request[first], items, offsets)

    def of_group(self, group: int) -> "Candidates":
        """One user's part, the user renumbered 0."""
        start, stop = (int(x) for x in np.searchsorted(self.group_S, [group, group + 1]))
        items, starts = {}, {}
        for kind in self.items:
            edges = self.starts[kind][start : stop + 1]
            items[kind], starts[kind] = self.items[kind][edges[0] : edges[-1]], edges - edges[0]
        part = slice(start, stop)
        return Candidates(np.zeros(stop - start, np.int64), self.day_S[part], self.request_S[part], items, starts)

    def before(self, later: "Candidates") -> "Candidates":
        """These and then `later`, whose users come after (group 0 is the same user in both)."""
        items = {k: np.concatenate([self.items[k], later.items[k]]) for k in self.items}
        starts = {k: np.concatenate([self.starts[k], later.starts[k][1:] + self.starts[k][-1]]) for k in self.items}
        group_S = np.concatenate([self.group_S, later.group_S])
        day_S = np.concatenate([self.day_S, later.day_S])
        return Candidates(group_S, day_S, np.concatenate([self.request_S, later.request_S]), items, starts)

    def lists(self, kind: int, group_N: Ints, day_N: Ints, request_N: Ints) -> tuple[Lists, Lists]:
        """For each row the list of its own request, and that of all the user's requests of the day (own included)."""
        edges = self.starts[kind]
        day_S, day_N = self.group_S * 2**20 + self.day_S, group_N * 2**20 + day_N
        wide = Lists(self.items[kind], *(edges[np.searchsorted(day_S, day_N, side)] for side in ("left", "right")))
        if len(self.group_S) == 0:
            return wide, wide
        key_S = mix(self.request_S.view(np.uint64), self.group_S)
        key_N = mix(request_N.view(np.uint64), group_N)
        order = np.argsort(key_S)
        found = order[np.minimum(np.searchsorted(key_S, key_N, sorter=order), len(order) - 1)]
        stop_N = np.where(key_S[found] == key_N, edges[found + 1], edges[found])
        return Lists(self.items[kind], edges[found], stop_N), wide

"""Negatives mined from what a release ranks for a user: drawn from the user's own list, by hash, without excluded items."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from pipelines.config import Negatives
from pipelines.contract.negative_kinds import FINE, MINED, NONE, POPULARITY, UNIFORM
from pipelines.histories.user_stream import DROPPED, EXCLUDED, RANKED, ROW, key_of
from pipelines.samples.availability import Availability
from pipelines.samples.draws import AliasTable
from pipelines.samples.funnel import DAY_MICROS, FINE_RANKED, ITEM_BITS, STAGE_SHIFT
from pipelines.samples.make import complete
from pipelines.samples.mined import mined_rows
from pipelines.samples.user_context import SamplingSettings, with_contexts
from tests.pipelines.samples.test_make import SCHEMA

ITEMS, ROWS, MONDAY = 200, 40, 19786
CONFIG = Negatives(uniform=1, popularity=1, coarse=0, fine=1, fine_share=1, mined=2)
RANKS = {1: [30, 31, 32, 33, 34, 35, 60], 2: [40, 60], 3: []}  # user -> candidates; item 60 is excluded for all
LATE = 31  # an item that is not available on Monday


def settings(config: Negatives = CONFIG, availability: Availability | None = None) -> SamplingSettings:
    items = np.arange(100, ITEMS)
    table = AliasTable.build(items, np.ones(len(items)))
    return SamplingSettings(
        config, 17, ITEMS, {UNIFORM: table, POPULARITY: table}, availability=availability, has_mined=True
    )


def batches(size: int) -> Iterator[pa.RecordBatch]:
    """Users 1 to 3 with ROWS rows each. The positives of user 1 are among its candidates. Item 35 is also a fine negative."""
    stream: list[tuple[object, ...]] = []
    for user, ranked in RANKS.items():
        stream.append((user, EXCLUDED, None, None, [60]))
        if user == 1:
            stream.append((user, DROPPED, MONDAY, 7, [FINE_RANKED << STAGE_SHIFT | 1 << ITEM_BITS | 35]))
        stream += [(user, RANKED, None, place, ranked[place * 4 : place * 4 + 4]) for place in range(2)]
        for key in range(ROWS):
            positive = 30 if user == 1 and key % 2 else 90
            stream.append((user, ROW, MONDAY * DAY_MICROS + key, 1000 * user + key, None, 7, positive, 0))
    rows = [row + (None,) * (len(SCHEMA) - len(row)) for row in stream]
    for start in range(0, len(rows), size):
        columns = zip(*rows[start : start + size])
        yield pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCHEMA)], schema=SCHEMA)


def samples(size: int, shared: SamplingSettings) -> dict[int, dict[str, list[int]]]:
    made = {}
    for rows, contexts, group in with_contexts(batches(size), shared):
        for row in complete(rows, contexts, group, ["key", "item_index"], shared).to_pylist():
            made[row["key"]] = row
    return made


def of_kind(row: dict[str, list[int]], kind: int) -> list[int]:
    return [item for item, its in zip(row["negatives"], row["negative_kinds"]) if its == kind]


WHOLE = samples(1000, settings())


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_mined_negatives_do_not_depend_on_batch_boundaries(size: int) -> None:
    assert samples(size, settings()) == WHOLE


def test_mined_negatives_come_from_the_ranked_items_of_the_user() -> None:
    drawn = set()
    for key in range(1000, 1000 + ROWS):
        row = WHOLE[key]
        mined, (positive,) = of_kind(row, MINED), {row["item_index"]}
        assert of_kind(row, FINE) == [35]
        # A positive or a fine negative that is drawn is replaced by another item of the list.
        assert len(set(mined)) == 2
        assert set(mined) <= {30, 31, 32, 33, 34} - {positive}
        assert row["negative_log_q"][-2:] == [0, 0]
        drawn |= set(mined)
    assert drawn == {30, 31, 32, 33, 34}


def test_easy_negatives_fill_the_places_of_missing_mined_ones() -> None:
    for key, row in WHOLE.items():
        if key >= 2000:
            ranked = 1 if key < 3000 else 0
            assert of_kind(row, MINED) == [40] * ranked
            assert len(of_kind(row, POPULARITY)) == 4 - ranked  # its own place, the fine one, and the mined ones
            assert not of_kind(row, NONE)


def test_a_row_draws_no_item_that_was_not_available_on_its_day() -> None:
    mass = {kind: np.array([0.1]) for kind in (UNIFORM, POPULARITY)}
    late = Availability.build(np.array([LATE]), np.array([MONDAY + 1]), mass, ITEMS)
    rows = [row for key, row in samples(1000, settings(availability=late)).items() if key < 2000]
    assert {item for row in rows for item in of_kind(row, MINED)} == {30, 32, 33, 34}
    assert all(len(of_kind(row, MINED)) == 2 for row in rows)


def test_places_of_mined_negatives_count_as_hard_only_if_a_release_ranked_items() -> None:
    assert settings().hard_slots == 3
    assert SamplingSettings(CONFIG, 17, ITEMS, {}).hard_slots == 1
    assert settings().max_slots(POPULARITY) == 4
    assert settings().kinds == [UNIFORM, POPULARITY, FINE, MINED, MINED]


def test_only_candidates_of_the_users_of_the_night_enter_the_stream(spark: SparkSession) -> None:
    mined = spark.createDataFrame([("a", [5, 6]), ("b", [7]), ("c", [])], "user_id string, items array<int>")
    users = mined.where("user_id != 'b'").select(key_of("user_id").alias("user_key"))
    rows = mined_rows(mined, users).collect()
    assert [(row["role"], row["values"]) for row in rows] == [(RANKED, [5, 6])]

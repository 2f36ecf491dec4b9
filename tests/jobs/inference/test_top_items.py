"""Ranked items of a release, computed on Arrow batches as Spark passes them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.inference.embed import cached_model
from jobs.inference.top_items import RankedItems, _ranked_lists
from model.io.urls import read_columns
from model.serving.embed import batch_columns, embed_items, embed_users
from tests.model import toy_night
from tests.model.serving.toy_release import write_release

USERS, FIRST, LAST = 20, 4, 9


def test_ranks_leave_out_known_items_and_items_that_are_not_live_keep_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write_release(folder, "plain")
    indices = np.arange(2, toy_night.ITEMS)  # One item of the release is beyond item_stats.
    live = indices % 5 > 0
    pq.write_table(pa.table({"item_index": pa.array(indices, pa.int32()), "live": live}), folder / "stats.parquet")
    rng = np.random.default_rng(2)
    known = [rng.choice(indices, size, replace=False).astype(np.int32) for size in rng.integers(0, 12, USERS)]
    queries = toy_night.table(toy_night.sample_rows(USERS))
    queries = queries.append_column("known_items", pa.array([list(items) for items in known], pa.list_(pa.int32())))
    (batch,) = queries.combine_chunks().to_batches()
    model = f"{folder}/model"
    ranking = RankedItems(
        model,
        f"{folder}/index.faiss",
        "r",
        (f"{folder}/items/part-0.parquet",),
        (f"{folder}/stats.parquet",),
        FIRST,
        LAST,
    )
    lists = [*_ranked_lists(batch.slice(0, 7), ranking), *_ranked_lists(batch.slice(7), ranking)]

    towers = cached_model(model, "r")
    items = read_columns(ranking.files, towers.schema.item_columns)
    columns = [name for name in towers.schema.user_columns if name != "example_age"]
    scores = embed_users(towers, batch_columns(batch, columns)) @ embed_items(towers, items).T
    dropped = 0
    for row, ranked in enumerate(lists):
        order = [int(item) for item in items["item_index"][np.argsort(-scores[row])] if item not in known[row]]
        expected = [item for item in order[FIRST - 1 : LAST] if item in indices[live]]
        assert ranked.as_py() == expected
        dropped += LAST - FIRST + 1 - len(expected)
    assert dropped > USERS / 2

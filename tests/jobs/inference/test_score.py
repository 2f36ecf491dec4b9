"""Scoring of users whose targets are in different slices."""

from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from jobs.inference.score import ScoringInputs, score_users
from model.evaluation.ranking_metrics import SLICES
from model.serving.embed import embed_items
from model.training.checkpoint import load_checkpoint
from model.training.trainer import train
from tests.model import toy_night

TODAY = 19_800  # days since 1970
HEAD, MID, TAIL = 2, 3, 4  # items with 100, 60 and 1 clicks; all others have 1
EARLIER = 3  # days before TODAY on which the head item had its clicks
UNSEEN = 39  # an item without clicks


def inputs(folder: Path) -> ScoringInputs:
    """A toy model and its catalogue, in which item 40 is new."""
    spec = toy_night.make_spec(folder, [100])
    train(spec)
    rows = toy_night.item_rows()
    count = len(rows["item_index"])
    vectors = embed_items(load_checkpoint(spec.output), rows)
    embeddings = toy_night.table({"item_index": rows["item_index"], "embedding": vectors})
    clicks = np.ones(count, np.int64)
    clicks[:2] = 100, 60
    clicks[rows["item_index"] == UNSEEN] = 0
    stats = toy_night.table({"item_index": rows["item_index"], "window_count": clicks})
    stats = stats.append_column(
        "day_ordinals", pa.array([[TODAY - EARLIER], *[[TODAY]] * (count - 1)], pa.list_(pa.int32()))
    )
    stats = stats.append_column("day_counts", pa.array([[n] for n in clicks.tolist()], pa.list_(pa.int64())))
    first = [None if index == UNSEEN else date(2020, 1, 1) for index in rows["item_index"]]
    stats = stats.append_column("first_seen", pa.array(first, pa.date32()))
    born = [datetime(2024, 3, 18) if index == 40 else datetime(2020, 1, 1) for index in rows["item_index"]]
    features = toy_night.table(rows).append_column("publish_time", pa.array(born, pa.timestamp("us")))
    near = pa.schema(
        {"item_index": pa.int32(), "neighbours": pa.list_(pa.int32()), "similarities": pa.list_(pa.float32())}
    )
    tables = {"embeddings": embeddings, "stats": stats, "features": features, "near": near.empty_table()}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    urls = {name: (f"file://{folder}/{name}.parquet",) for name in tables}
    return ScoringInputs(
        model_uri=spec.output, model_fingerprint=str(folder), embeddings=urls["embeddings"], item_stats=urls["stats"],
        item_features=urls["features"], neighbours=urls["near"], truth=(), last_day=TODAY, popularity_days=(1, 7, 30),
        first_new_day=TODAY - 7, ks=(1, 10),
    )  # fmt: skip


def test_a_batch_may_have_no_targets_of_a_slice(spark: SparkSession, tmp_path: Path) -> None:
    """Two users in one task, one batch each, with targets of different slices. Recall of popularity is computed by hand."""
    rows = toy_night.sample_rows(2)
    columns = {name: values for name, values in rows.items() if name.startswith("user_") or name == "history"}
    users = toy_night.table(columns).append_column("user_id", pa.array(["old", "newcomer"]))
    lists = {"known_items": [[5, 6], []], "targets": [[HEAD, MID], [TAIL, 40, UNSEEN]], "excluded": [[], []]}
    for name, values in lists.items():
        users = users.append_column(name, pa.array(values, pa.list_(pa.int32())))
    frame = spark.createDataFrame(users.to_pandas()).coalesce(1)
    before = spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch")
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1")
    try:
        scored = score_users(frame, inputs(tmp_path)).toPandas()
    finally:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", before)
    recall = scored[scored["model"] == "popularity_7d"].set_index(["user_id", "slice", "k"])["recall"].to_dict()
    assert {name for _, name, _ in recall} == set(SLICES)
    assert recall["old", "all", 1] == 0.5
    assert recall["old", "head", 1] == 1.0
    assert recall["old", "mid", 1] == 0.0
    assert recall["old", "all", 10] == recall["old", "known_users", 10] == 1.0
    assert recall["newcomer", "tail", 10] == recall["newcomer", "new_users", 10] == 1 / 3
    assert recall["newcomer", "new_items", 10] == recall["newcomer", "unseen_items", 10] == 0.0
    assert not {("old", "tail", 10), ("old", "new_users", 10), ("newcomer", "head", 10)} & set(recall)
    yesterday = scored[scored["model"] == "popularity_1d"].set_index(["user_id", "slice", "k"])["recall"].to_dict()
    assert (yesterday["old", "head", 1], yesterday["old", "mid", 1]) == (0.0, 1.0)
    assert set(scored["model"]) == {"two_tower", "popularity_1d", "popularity_7d", "item_cf"}, "the logs have 4 days"

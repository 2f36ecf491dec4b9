"""Files of RecFlow, with the columns as published."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.datasets.recflow import FLAGS

NOON = 1_705_147_200_000  # 2024-01-13 12:00 UTC in milliseconds
DAY = 86_400_000
ORDER = [  # columns as published
    *("request_id", "request_timestamp", "user_id", "device_id", "age", "gender", "province", "video_id", "author_id"),
    *("category_level_one", "category_level_two", "upload_type", "upload_timestamp", "duration", "realshow"),
    *("rerank_pos", "rerank_neg", "rank_pos", "rank_neg", "coarse_neg", "prerank_neg", "rank_index", "rerank_index"),
    *("playing_time", "effective_view", "long_view", "like", "follow", "forward", "comment"),
]


def source_row(request: int, user: int, video: int, time: int = NOON, **values: Any) -> dict[str, Any]:
    """A row with all 30 published columns. Flags are 0 unless given in `values`."""
    context = {"device_id": user + 500, "age": user % 5, "gender": user % 2, "province": 3}
    item = {"author_id": video % 7, "category_level_one": video % 3, "category_level_two": video % 9, "upload_type": 1}
    row = {"request_id": request, "request_timestamp": time, "user_id": user, "video_id": video, **context, **item}
    row |= {"upload_timestamp": 1_704_067_200 + video, "duration": 15_000, "rank_index": -1, "rerank_index": -1}
    return row | dict.fromkeys(FLAGS, 0) | {"playing_time": 0} | values


def write(path: Path, rows: list[dict[str, Any]], **types: Any) -> None:
    """Write a Feather file with pandas: version 2, lz4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows)[ORDER].astype(types).to_feather(path)

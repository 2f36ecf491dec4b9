"""The popularity that `loss.lift` leaves out of the vectors: each item's share of the positives that a night trains on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.data.batching import to_tensor
from model.io.urls import read_columns
from pipelines.contract.schema import FeatureSchema

PSEUDO_ROWS = 0.5  # per item


def read_log_popularity(schema: FeatureSchema, urls: Sequence[str]) -> Tensor:
    """[M] log of each item's share of the positives, relative to the mean item; 0 for indices that are no item.

    `urls`: the Parquet files of one partition of `item_stats`. The share is that of the night's rows and of half a row per
    item. These are distributed as the positives of the window after down-sampling, plus half a positive per item. So a
    first night, which has many rows, follows its rows, and the night of a single day follows the window where the day has
    few rows: a day in which nobody took an item does not mean that nobody takes it.
    """
    rows = read_columns(urls, ["item_index", "sampled_count", "window_count", "keep_probability"])
    sampled_n, window_n, kept_n = (
        to_tensor(rows[name]).double() for name in ("sampled_count", "window_count", "keep_probability")
    )
    items = len(sampled_n)
    prior_n = window_n * kept_n + PSEUDO_ROWS
    share_n = sampled_n + PSEUDO_ROWS * items * prior_n / prior_n.sum()
    popularity_M = torch.zeros(schema.item_id.size)
    popularity_M[to_tensor(rows["item_index"])] = (share_n * items / share_n.sum()).log().float()
    return popularity_M

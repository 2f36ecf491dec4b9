"""The popularity that a model of lift leaves out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.popularity import read_log_popularity
from tests.model import toy_night

ITEMS = toy_night.ITEMS


def shares(tmp_path: Path, sampled: np.ndarray, window: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The share of each item, from a table of item_stats."""
    columns = {"sampled_count": sampled, "window_count": window, "keep_probability": kept}
    table = pa.table({"item_index": np.arange(2, ITEMS + 2, dtype=np.int32), **columns})
    pq.write_table(table, tmp_path / "stats.parquet")
    log_M = read_log_popularity(toy_night.schema(), [str(tmp_path / "stats.parquet")])
    assert (log_M[:2] == 0).all()
    assert len(log_M) == toy_night.schema().item_id.size
    return np.exp(log_M[2 : ITEMS + 2].numpy()) / ITEMS


def test_many_rows_decide_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sampled = rng.integers(100_000, 1_000_000, ITEMS)
    found = shares(tmp_path, sampled, rng.integers(0, 100, ITEMS), np.ones(ITEMS))
    np.testing.assert_allclose(found, sampled / sampled.sum(), rtol=1e-3)


def test_without_rows_the_window_decides_after_down_sampling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    window, kept = rng.integers(1_000, 100_000, ITEMS), rng.uniform(0.1, 1.0, ITEMS)
    found = shares(tmp_path, np.zeros(ITEMS, np.int64), window, kept)
    np.testing.assert_allclose(found, window * kept / (window * kept).sum(), rtol=1e-2)


def test_shares_add_up_and_items_without_positives_have_one(tmp_path: Path) -> None:
    found = shares(tmp_path, np.arange(ITEMS) % 3, np.arange(ITEMS) % 5, np.ones(ITEMS))
    assert found.sum() == pytest.approx(1, rel=1e-5)
    assert found.min() > 0

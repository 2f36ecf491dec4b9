"""The item-item part of a night: what it is fitted on, and that nights without one have none."""

import json
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from jobs.release import item_item
from model.item_item_config import ItemItemConfig
from model.training.item_item_fit import KnownItems, fit_item_item
from pipelines.contract.errors import NightjarError
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, SECOND, NightlyRun
from tests.model import toy_night

THIRD = "2024-03-06"


def test_the_part_is_fitted_on_the_known_items_of_users_without_the_held_out_hours(first_night: NightlyRun) -> None:
    """The gates compare releases on the events of these hours."""
    # positives.valid_hours: 3. Also positives that are in no sample.
    since = datetime.fromisoformat(f"{FIRST}T21:00+00:00")
    late = [row for row in first_night.rows("positives", FIRST) if row["event_time"].astimezone(timezone.utc) >= since]
    held_out = {(row["user_id"], row["item_index"]) for row in late}
    known = [
        (number, row["user_id"], item)
        for number, row in enumerate(first_night.rows("user_histories", FIRST))
        for item in row["known_items"]
    ]
    kept = [(number, item) for number, user, item in known if (user, item) not in held_out]
    assert 0 < len(kept) < len(known)
    stored = load_file(first_night.warehouse / "models" / f"ds={FIRST}" / "item_item.safetensors")
    users, items = np.array(kept).T
    size, rank = len(stored["place_V"]), stored["of_items"].shape[1]
    starts = np.searchsorted(users, np.arange(users.max() + 2))
    live = np.zeros(size, bool)
    live[[row["item_index"] for row in first_night.rows("item_features", FIRST)]] = True
    expected = fit_item_item(KnownItems(starts, items.astype(np.int32)), live, rank, ItemItemConfig()).tables
    np.testing.assert_array_equal(stored["place_V"], expected.place_V)
    # Scores, because the eigenvectors of one eigenvalue may turn.
    scores = (expected.of_history @ expected.of_items.T).numpy()
    np.testing.assert_allclose(stored["of_history"] @ stored["of_items"].T, scores, atol=1e-4)


@pytest.mark.slow
def test_a_fit_that_fails_comes_before_the_training(first_night_copy: NightlyRun) -> None:
    """With next to no penalty, more items than users have no inverse."""
    output = first_night_copy.run("train", "--ds", FIRST, "--set", "model.item_item.penalty=1e-200", code=2)
    assert "model.item_item.penalty: X^T X + " in output
    assert "has no inverse: raise the penalty" in output
    assert "epoch" not in output


@pytest.mark.slow
def test_a_model_without_the_part_writes_none(first_night_copy: NightlyRun) -> None:
    folder = first_night_copy.warehouse / "models" / f"ds={FIRST}"
    first_night_copy.run("train", "--ds", FIRST, "--set", "model.item_item=null")
    assert not (folder / "item_item.safetensors").exists()
    assert len(first_night_copy.manifest("models", FIRST)["facts"]["content"]) == 2
    first_night_copy.run("train", "--ds", FIRST)
    assert len(first_night_copy.manifest("models", FIRST)["facts"]["content"]) == 3


@pytest.mark.slow
def test_settings_and_the_catalogue_may_change_from_night_to_night(first_night: NightlyRun, tmp_path: Path) -> None:
    """Another weight and rank, then no part at all: each release is compared with the one before. Some items are gone."""
    night = first_night.copy(tmp_path / "changed")
    gone = remove_popular_items(night)
    flags = ("--set", "model.item_item.weight=0.3", "--set", "model.item_item.rank=5", "--set", "index.factory=null")
    night.run("nightly", "--ds", SECOND, *flags, "--set", "model.item_item.popularity_exponent=0.5")
    first, second = first_night.current(), night.current()
    assert json.loads((night.release / "gates.json").read_text())["against"] == first
    assert json.loads((night.release / "manifest.json").read_text())["components"] == {
        "towers": 16,
        "item_item": 5,
        "prior": 1,
    }
    tables = load_file(night.warehouse / "models" / f"ds={SECOND}" / "item_item.safetensors")
    index = {row["item_id"]: row["item_index"] for row in night.rows("item_stats", SECOND)}
    rows = [tables["place_V"][index[item]] for item in gone]
    assert all(rows), "the catalogue is smaller than model.item_item.items, so they count in histories"
    assert np.abs(tables["of_history"][rows]).sum() > 0
    np.testing.assert_allclose(tables["of_history"] @ tables["of_items"][rows].T, 0, atol=1e-6)

    night.run("nightly", "--ds", THIRD, "--set", "model.item_item=null")
    assert json.loads((night.release / "gates.json").read_text())["against"] == second
    assert json.loads((night.release / "manifest.json").read_text())["components"]["item_item"] == 0
    assert not (night.release / "model" / "item_item.safetensors").exists()


def remove_popular_items(night: NightlyRun) -> list[str]:
    """Take the ten items with the most positives out of the catalogue, as of SECOND. Returns their ids."""
    stats = sorted(night.rows("item_stats", FIRST), key=lambda row: -row["window_count"])
    gone = [row["item_id"] for row in stats[:10]]
    newest = max((night.warehouse / "items").glob("ds=*"))
    tables = [pq.read_table(file) for file in newest.glob("*.parquet")]
    table = pa.concat_tables(tables)
    kept = table.filter(pc.invert(pc.is_in(table["item_id"].cast(pa.string()), pa.array(gone))))
    assert len(kept) == len(table) - 10
    folder = night.warehouse / "items" / f"ds={SECOND}"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    pq.write_table(kept, folder / "part-0.parquet")
    return gone


@pytest.mark.slow
def test_a_night_with_hashed_item_ids_has_no_part(first_night: NightlyRun, tmp_path: Path) -> None:
    night = first_night.copy(tmp_path / "hashed")
    night.run("nightly", "--ds", FIRST, *BOOTSTRAP, "--force", "--set", "features.ids.item.buckets=300")
    manifest = json.loads((night.release / "manifest.json").read_text())
    assert manifest["components"]["item_item"] == 0
    assert manifest["dim"] == 16 + 1
    assert not (night.warehouse / "models" / f"ds={FIRST}" / "item_item.safetensors").exists()


def test_too_little_memory_is_named_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError("Unable to allocate 2.0 GiB")

    monkeypatch.setattr(item_item, "_known_items", fails)
    spec = toy_night.make_spec(tmp_path, [8])
    spec = spec.model_copy(update={"features": toy_night.schema(history=toy_night.FULL_HISTORY)})
    context: Any = SimpleNamespace(ds=FIRST)
    with pytest.raises(NightjarError, match=r"Unable to allocate 2.0 GiB\)\. Lower model\.item_item\.items or "):
        item_item.fit_of_night(context, spec)

"""The item-item part of a night: what it is fitted on, and that nights without one have none."""

from datetime import datetime, timezone

import numpy as np
from safetensors.numpy import load_file

from model.item_item_config import ItemItemConfig
from model.training.item_item_fit import fit_item_item
from tests.jobs.nightly_run import FIRST, NightlyRun


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
    expected = fit_item_item(users, items, size, rank, ItemItemConfig()).tables
    np.testing.assert_array_equal(stored["place_V"], expected.place_V)
    # Scores, because the eigenvectors of one eigenvalue may turn.
    scores = (expected.of_history @ expected.of_items.T).numpy()
    np.testing.assert_allclose(stored["of_history"] @ stored["of_items"].T, scores, atol=1e-4)


def test_a_model_without_the_part_writes_none(first_night_copy: NightlyRun) -> None:
    folder = first_night_copy.warehouse / "models" / f"ds={FIRST}"
    first_night_copy.run("train", "--ds", FIRST, "--set", "model.item_item=null")
    assert not (folder / "item_item.safetensors").exists()
    assert len(first_night_copy.manifest("models", FIRST)["facts"]["content"]) == 2
    first_night_copy.run("train", "--ds", FIRST)
    assert len(first_night_copy.manifest("models", FIRST)["facts"]["content"]) == 3

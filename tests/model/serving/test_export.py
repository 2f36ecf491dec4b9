"""Exported towers return the vectors of the model, without this package and without pickles."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.data.catalogue import Catalogue
from model.network.embeddings import history_column
from model.network.item_item import ItemItemPart
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items, embed_users
from model.serving.export import SIGNATURE, ExportError, export_towers
from tests.model import toy_night
from tests.model.serving.toy_release import item_item_tables

ALL_SETTINGS = {"width": 16, "time": "gaps", "actions": True}
# Runs an exported tower with torch and numpy only, and fails on any pickle.
RUN_TOWERS = """
import pickle, sys
import numpy as np, torch, torch.export
class Refuse:
    def __init__(self, *args, **kwargs): raise RuntimeError("a pickle was read")
pickle.load = pickle.loads = pickle.Unpickler = Refuse
assert not any(name == "model" or name.startswith("model.") for name in sys.modules)
for side in ("user", "item"):
    columns = {name: torch.from_numpy(values) for name, values in np.load(f"{side}.npz").items()}
    np.save(f"{side}.npy", torch.export.load(f"{side}.pt2").module()(columns).detach().numpy())
"""


@pytest.mark.parametrize(
    "config",
    [
        {"tower": "dssm", "history_features": ["category", "tags"]},
        {"tower": "senet", "history_pooling": "decay"},
        {"tower": "parallel", "dim": 18, "history_pooling": "attention", "history_items": 2},
        {"tower": "youtube_dnn", "embedding_dim": 16},
        {"tower": "sequence", "history_features": ["category", "tags"], "settings": ALL_SETTINGS},
        {"tower": "sequence", "embedding_dim": 16, "settings": {"items": "ids"}},
        {"tower": "dssm", "item_item": None},
    ],
)
@pytest.mark.processes
def test_exported_towers_return_the_vectors_of_the_model(tmp_path: Path, config: dict[str, Any]) -> None:
    torch.manual_seed(1)
    schema = toy_night.schema(history=toy_night.FULL_HISTORY)
    model = TwoTower(schema, ModelConfig.model_validate({"dim": 16, "hidden": [8], **config})).eval()
    if config.get("item_item", True):
        model.item_item = ItemItemPart(item_item_tables(seed=1), schema.item_id.size, weight=0.5)
    catalogue, rows = Catalogue(toy_night.schema(), toy_night.item_rows()), toy_night.sample_rows(11)
    signature = export_towers(model, tmp_path)
    assert json.loads((tmp_path / SIGNATURE).read_text()) == signature
    history = torch.from_numpy(rows["history"]).long()
    rows["history_ages"] = np.arange(rows["history"].size)[::-1].reshape(rows["history"].shape) * (rows["history"] > 0)
    rows["history_actions"] = (rows["history"] > 0) * (1 + rows["history"] % 4)
    rows |= {n: v.numpy() for n, v in catalogue.history_columns(history, model.history_features).items()}
    for side, rows_of_side in (("user", rows), ("item", toy_night.item_rows())):
        inputs = signature[side]["inputs"]
        assert "example_age" not in inputs
        columns = {name: rows_of_side[name].astype(spec["dtype"]) for name, spec in inputs.items()}
        assert all(list(columns[name].shape[1:]) == spec["shape"][1:] for name, spec in inputs.items())
        np.savez(tmp_path / f"{side}.npz", **columns)
    subprocess.run([sys.executable, "-I", "-c", RUN_TOWERS], cwd=tmp_path, check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "user.npy"), embed_users(model, rows, catalogue), atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "item.npy"), embed_items(model, toy_night.item_rows()), atol=1e-5)
    assert (history_column("item_tags") in signature["user"]["inputs"]) == ("history_features" in config)
    for name, setting in (("history_ages", "time"), ("history_actions", "actions")):
        assert (name in signature["user"]["inputs"]) == (setting in config.get("settings", {}))


def test_vectors_are_inputs_of_an_exported_tower_and_its_file_holds_only_its_own_projection(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = TwoTower(toy_night.vector_schema(), ModelConfig(dim=16, hidden=[8])).eval()
    signature = export_towers(model, tmp_path)
    assert signature["user"]["inputs"]["user_taste"] == {"dtype": "float32", "shape": ["rows", 3]}
    assert signature["item"]["inputs"]["item_look"] == {"dtype": "float32", "shape": ["rows", 4]}
    for side, column in (("user", "user_taste"), ("item", "item_look")):
        state = torch.export.load(tmp_path / f"{side}.pt2").state_dict
        assert {name.split(".")[-3] for name in state if "projections." in name} == {column}


def test_an_export_that_differs_from_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TwoTower(toy_night.schema(), ModelConfig(dim=16)).eval()
    monkeypatch.setattr("model.serving.export.load_exported", lambda path: lambda columns: torch.zeros(1, 16))
    with pytest.raises(ExportError, match=r"exported user tower differs from the model by 0\.\d+ on 1 rows"):
        export_towers(model, tmp_path)


NEED_A_HISTORY = [
    {"history_features": ["tags"]},
    {"tower": "sequence"},
    {"tower": "sequence", "settings": {"actions": True}},
]


@pytest.mark.parametrize(
    ("config", "history"),
    [
        *(
            (config, history)
            for config in ({}, {"share_history": False}, {"tower": "youtube_dnn"})
            for history in (True, False)
        ),
        *((config, True) for config in NEED_A_HISTORY),
    ],
)
def test_a_file_holds_only_the_tables_that_its_tower_reads(
    tmp_path: Path, config: dict[str, Any], history: bool
) -> None:
    """A table of the other side could be most of the file."""
    schema = toy_night.schema(history=toy_night.FULL_HISTORY if history else None)
    model = TwoTower(
        schema, ModelConfig.model_validate({"dim": 32, "embedding_dim": 32, "hidden": [8], **config})
    ).eval()
    export_towers(model, tmp_path)
    state = {side: dict(torch.export.load(tmp_path / f"{side}.pt2").state_dict) for side in ("user", "item")}
    tables = {side: {name.split("tables.")[1] for name in state[side] if "tables." in name} for side in state}
    user = {"user_id.weight", "user/age.weight", "user_tenure.weight"}
    user |= {"item_id.weight" if config.get("share_history", True) else "history.weight"} if history else set()
    user |= {"item/tags.weight"} if "history_features" in config else set()
    user |= {"action.weight"} if "settings" in config else set()
    only_ids = config.get("tower") == "youtube_dnn"
    assert tables["user"] == user
    assert tables["item"] == {"item_id.weight"} | (set() if only_ids else {"item/category.weight", "item/tags.weight"})
    assert not any("item_tower" in name for name in state["user"])
    assert not any("user_tower" in name or "pooling" in name or "encoder" in name for name in state["item"])
    for side, tensors in state.items():
        numbers = sum(tensor.numel() for tensor in tensors.values())
        assert (tmp_path / f"{side}.pt2").stat().st_size < 4 * numbers + 200_000, "beyond the tables only the graph"
    assert model.tables.keys() >= {"user_id", "item_id"}, "the model itself is unchanged"

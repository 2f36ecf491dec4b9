"""A release of the toy night. Item n has id "in", user n has id n."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model.config import ModelConfig
from model.io.urls import checksum
from model.network.item_item import ItemItemTables
from model.network.two_tower import TwoTower
from model.serving.embed import embed_items
from model.serving.faiss_index import build_index, save_index
from model.training.checkpoint import load_checkpoint, save_checkpoint, write_item_item
from model.training.spec import TrainingResult
from tests.model import toy_night

KINDS = ("plain", "pooled", "hashed", "sequence", "item_item")

REQUEST: list[dict[str, Any]] = [
    {"name": "user_id", "kind": "id", "column": "user_index", "type": "integer", "vocabulary": "user_id"},
    {"name": "age", "kind": "categorical", "column": "user_age", "type": "text", "vocabulary": "user.age"},
    {"name": "tenure", "kind": "numeric", "column": "user_tenure", "type": "double", "boundaries": [1.0, 2.0]},
    {"name": "income", "kind": "numeric", "column": "user_income", "type": "double"},
    {
        "name": "history",
        "kind": "history",
        "column": "history",
        "type": "text",
        "vocabulary": "item_id",
        "length": toy_night.HISTORY,
        "order": "strictly_before",
    },
]
ACTIONS = {"name": "history_actions", "column": "history_actions", "type": "text", "vocabulary": "action"}
HASHED = {"column": "item_row", "size": 7, "hashed": True}


def write_release(folder: Path, kind: str) -> None:
    """Write a release.

    pooled: the user tower pools item features over the history; hashed: item ids are hashed; sequence: a sequence tower reads
    items, their features, ages and actions; item_item: vectors have an item-item part.
    """
    torch.manual_seed(3)
    items = toy_night.item_rows()
    schema, fields = toy_night.schema(), REQUEST
    pooled = ["category", "tags"] if kind in ("pooled", "sequence") else []
    config: dict[str, Any] = {"dim": 8, "hidden": [16], "history_features": pooled}
    if kind == "sequence":
        config |= {"tower": "sequence", "settings": {"width": 16, "time": "gaps", "actions": True}}
        schema = toy_night.schema(history=toy_night.FULL_HISTORY)
        fields = [*REQUEST[:-1], REQUEST[-1] | {"ages": "history_ages", "actions": ACTIONS}]
    if kind == "hashed":
        items = items | {"item_row": (2 + items["item_index"] % 5).astype(np.int32)}
        item_id, *others = toy_night.SCHEMA["item"]
        schema = toy_night.schema(item=[{**item_id, "rows": HASHED}, *others])
    model = TwoTower(schema, ModelConfig.model_validate(config)).eval()
    folder.mkdir(parents=True)
    save_checkpoint(str(folder / "model"), model, {}, TrainingResult.model_construct())
    if kind == "item_item":
        write_item_item(str(folder / "model"), item_item_tables(seed=3))
        model = load_checkpoint(str(folder / "model"))
    index = build_index(lambda: [(items["item_index"].astype(np.int64), embed_items(model, items))], model.dim)
    save_index(index, folder / "index.faiss")
    (folder / "items").mkdir()
    table = toy_night.table(items).append_column("item_id", pa.array([f"i{n}" for n in items["item_index"]]))
    pq.write_table(table, folder / "items" / "part-0.parquet")
    (folder / "vocabularies").mkdir()
    pq.write_table(_vocabularies(), folder / "vocabularies" / "part-0.parquet")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {str(path.relative_to(folder)): checksum(str(path)) for path in paths}
    manifest = {"release_id": folder.name, "ds": "2024-03-01", "files": files, "request": fields}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def item_item_tables(seed: int) -> ItemItemTables:
    """Tables of an item-item part of rank 4. Items after the tenth were not fitted."""
    place_V = torch.zeros(toy_night.schema().item_id.size, dtype=torch.int32)
    place_V[2:12] = torch.arange(1, 11, dtype=torch.int32)
    rows = torch.randn(2, 11, 4, generator=torch.Generator().manual_seed(seed))
    rows[:, 0] = 0
    return ItemItemTables(place_V, rows[0], rows[1])


def _vocabularies() -> pa.Table:
    values = [
        *(("user_id", str(n), n) for n in range(2, toy_night.USERS + 2)),
        *(("item_id", f"i{n}", n) for n in range(2, toy_night.ITEMS + 2)),
        *(("user.age", f"a{n}", n) for n in range(2, 6)),
        *(("action", f"did{n}", n) for n in range(2, 5)),
    ]
    features, texts, indices = zip(*values)
    return pa.table({"feature": features, "value": texts, "index": pa.array(indices, pa.int32())})


def update_checksums(folder: Path) -> None:
    """Write the checksums of the files as they are now into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: checksum(str(folder / name)) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))

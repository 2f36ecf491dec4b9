"""Exports each tower to a file (torch.export): a graph in JSON and raw weights, with a signature, without pickles.

The files need only torch, not this package: `torch.export.load(FILE).module()(columns)`.

Shapes: n rows, d vector length.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.network.embeddings import Batch, column_of, history_column, lookup_column
from model.network.sequence_encoder import OLDEST_AGE
from model.network.two_tower import TwoTower
from pipelines.contract.schema import (
    Feature,
    HistoryFeature,
    MultiCategoricalFeature,
    NumericFeature,
    VectorFeature,
    columns_of,
)

SIGNATURE = "signature.json"
SIDES = ("user", "item")
TOLERANCE = 1e-5  # Largest difference between a component of an exported and of an eager vector (unit length).
_PROBE_ROWS = 3  # torch.export specialises the sizes 0 and 1.


class ExportError(RuntimeError):
    """An exported tower does not return the vectors of the model."""


class UserTower(nn.Module):
    """User columns -> vectors [n, d]. example_age is not an input: in serving it is 0."""

    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.towers = towers.side("user")

    def forward(self, columns: Batch) -> Tensor:  # noqa: D102
        age = self.towers.schema.example_age
        if age:
            rows = column_of(columns, next(iter(columns))).shape[0]
            columns = {**columns, age.column: torch.zeros(rows)}
        return self.towers.user_vectors(columns)


class ItemTower(nn.Module):
    """Item columns -> vectors [n, d]."""

    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.towers = towers.side("item")

    def forward(self, columns: Batch) -> Tensor:  # noqa: D102
        return self.towers.item_vectors(columns)


def export_towers(model: TwoTower, folder: Path) -> dict[str, Any]:
    """Write user.pt2, item.pt2 and signature.json; return the signature. A file holds only the tables that its tower reads.

    The signature lists the input columns of each side with dtype and shape ("rows" is a free dimension), and the output.
    Raises ExportError if a tower, read back from its file, differs from the model on other rows than those of the export.
    """
    model = model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    signature = {"user": _signature(_user_columns(model), model), "item": _signature(_item_columns(model), model)}
    for side, tower in zip(SIDES, (UserTower(model), ItemTower(model)), strict=True):
        probe = _probe(signature[side], _PROBE_ROWS, seed=0)
        rows = torch.export.Dim("rows", min=1)
        with torch.no_grad():
            program = torch.export.export(tower, (probe,), dynamic_shapes=({name: {0: rows} for name in probe},))
            torch.export.save(program, folder / f"{side}.pt2")
            for count in (1, 7):
                probe = _probe(signature[side], count, seed=count)
                worst = float((load_exported(folder / f"{side}.pt2")(probe) - tower(probe)).abs().max())
                if not worst <= TOLERANCE:
                    raise ExportError(
                        f"the exported {side} tower differs from the model by {worst:.2g} on {count} rows; rounding explains "
                        f"at most {TOLERANCE:.0e}"
                    )
    (folder / SIGNATURE).write_text(json.dumps(signature, indent=1))
    return signature


def load_exported(path: Path) -> nn.Module:
    """Load a tower from its file. It maps columns as in its signature to vectors [n, d]."""
    return torch.export.load(path).module()


def _user_columns(model: TwoTower) -> dict[str, Feature | HistoryFeature]:
    """Column -> feature, for every column that the user tower reads in serving."""
    schema = model.schema
    columns: dict[str, Feature | HistoryFeature] = {
        column: feature for feature in schema.of_user_tower for column in columns_of([feature])
    }
    if schema.history:
        if not schema.item_id.hashed:
            columns[schema.history.column] = schema.history
        if model.encoder and model.encoder.ages_column:
            columns[model.encoder.ages_column] = schema.history
        columns |= {feature.column: feature for feature in model.history_actions}
        columns |= {history_column(lookup_column(feature)): feature for feature in model.history_features}
    return columns


def _item_columns(model: TwoTower) -> dict[str, Feature | HistoryFeature]:
    columns: dict[str, Feature | HistoryFeature] = {}
    for feature in model.item_features:
        names = [lookup_column(feature)]
        if isinstance(feature, MultiCategoricalFeature) and feature.weights_column:
            names.append(feature.weights_column)
        columns |= dict.fromkeys(names, feature)
    if model.item_item:  # Reads the index of the item, also for a tower that does not.
        columns.setdefault(lookup_column(model.schema.item_id), model.schema.item_id)
    return columns


def _signature(columns: Mapping[str, Feature | HistoryFeature], model: TwoTower) -> dict[str, Any]:
    history = model.schema.history
    inputs: dict[str, dict[str, Any]] = {}
    for name, feature in columns.items():
        shape: list[Any] = ["rows"]
        of_history = history and (feature in (history, history.actions) or name.startswith(history_column("")))
        if history and of_history:
            shape.append(history.length)
        if isinstance(feature, MultiCategoricalFeature | VectorFeature):
            shape.append(feature.length)
        is_float = isinstance(feature, NumericFeature | VectorFeature) or name == getattr(
            feature, "weights_column", None
        )
        size = getattr(feature, "table_size", getattr(feature, "size", None))
        if isinstance(feature, HistoryFeature) and name == feature.ages_column:
            size = OLDEST_AGE + 1
        inputs[name] = {"dtype": "float32" if is_float else "int64", "shape": shape}
        if not is_float:
            inputs[name]["below"] = size
    return {"inputs": inputs, "output": {"dtype": "float32", "shape": ["rows", model.dim]}}


def _probe(signature: dict[str, Any], rows: int, seed: int) -> Batch:
    """Random columns that fit a signature."""
    rng = torch.Generator().manual_seed(seed)
    columns = {}
    for name, spec in signature["inputs"].items():
        shape = (rows, *spec["shape"][1:])
        if spec["dtype"] == "float32":
            columns[name] = torch.rand(shape, generator=rng)
        else:
            columns[name] = torch.randint(spec["below"], shape, generator=rng)
    return columns

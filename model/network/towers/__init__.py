"""Towers, one file each. A tower converts the fields of one side to the vector of that side.

A field is a feature as a vector [B, e]; lengths e differ. Each file of this folder defines a tower. `model.tower` selects
it by name. The file contains

- `Settings`: a StrictModel with the fields of `model.settings`, each with a default;
- `build(user, item, dim, hidden, settings)`: returns the modules of both sides, given their fields. A module maps its
  tensors, in the order of the fields, to vectors [B, dim] of unit length. One function builds both sides, because some
  towers share parameters.

The user tower gets the history as pooled fields (embeddings.HistoryPooling). A file may also define
`history_encoder(history, parts, settings, history_dropout)`: a module that reads the history itself, given the parts of its
items. It has a `length`, and maps the tables and a batch to [B, length]: one field instead of the pooled ones.

A module may define `reads`: the names of the fields that it uses. It then gets only those. A module with weights of fields
or channels may define `mean_weights(fields) -> {name: weight}`, which is recorded for each night.

A module sees only the fields of its side: user and item meet only in the dot product. So items can be embedded once and
searched.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.sequence_encoder import SequenceEncoder, TokenPart
from pipelines.contract.schema import HistoryFeature
from pipelines.contract.strict import StrictModel


class Field(NamedTuple):
    """A feature as a vector: name, kind (id, categorical, …, history) and length of the vector."""

    name: str
    kind: str
    length: int


def tower_names() -> list[str]:
    """Names of all towers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def tower_module(name: str) -> ModuleType:
    """The module of a tower. Raises ValueError with the names of all towers."""
    if name not in tower_names():
        raise ValueError(f"model.tower: {name!r} is not a tower; the towers are {', '.join(tower_names())}")
    return importlib.import_module(f"{__name__}.{name}")


def settings_of(tower: str, given: Mapping[str, Any]) -> StrictModel:
    """The settings of a tower, with defaults. Raises ValueError if a setting is unknown or wrong."""
    settings: type[StrictModel] = tower_module(tower).Settings
    try:
        return settings.model_validate(dict(given))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        names = ", ".join(settings.model_fields) or "none"
        raise ValueError(f"model.settings of tower {tower}: {wrong} (its settings: {names})") from None


def build_towers(user: Sequence[Field], item: Sequence[Field], config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """Build the user and item towers of a config. Raises ValueError if the fields or settings do not fit the tower."""
    settings = settings_of(config.tower, config.settings)
    towers: tuple[nn.Module, nn.Module] = tower_module(config.tower).build(
        user, item, config.dim, config.hidden, settings
    )
    for module in (module for tower in towers for module in tower.modules()):
        if isinstance(module, Mlp):
            module.dropout = config.dropout
    return towers


def build_history_encoder(
    history: HistoryFeature | None, parts: Sequence[TokenPart], config: ModelConfig
) -> SequenceEncoder | None:
    """The module with which the tower reads the history itself; None: the tower reads the pooled history.

    Raises ValueError if there is no history, or if the settings do not fit it.
    """
    module = tower_module(config.tower)
    if not hasattr(module, "history_encoder"):
        return None
    if history is None:
        raise ValueError(
            f"model.tower {config.tower}: reads the user's history, and the model has none: set features.history (and do not "
            "leave it out), or choose another tower"
        )
    for name, neutral in (("history_pooling", "mean"), ("history_items", None)):
        if (value := getattr(config, name)) != neutral:
            raise ValueError(
                f"model.{name}: {value} has no effect, because tower {config.tower} does not pool the history: leave it "
                "out, or choose another tower"
            )
    settings = settings_of(config.tower, config.settings)
    encoder: SequenceEncoder = module.history_encoder(history, parts, settings, config.history_dropout)
    return encoder


def fields_read(tower: nn.Module, fields: Sequence[Field]) -> list[str]:
    """Names of the fields that a tower gets, in order: all fields, or those in its `reads`."""
    reads = getattr(tower, "reads", None)
    return [field.name for field in fields if reads is None or field.name in reads]


def total_length(fields: Sequence[Field]) -> int:
    """Sum of the lengths of the fields."""
    return sum(field.length for field in fields)


class Mlp(nn.Sequential):
    """Linear layers with ReLU between them, and in training dropout after each ReLU. `build_towers` sets the dropout."""

    dropout = 0.0

    def forward(self, values: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        for layer in self:
            values = layer(values)
            if self.dropout and self.training and isinstance(layer, nn.ReLU):
                values = nn.functional.dropout(values, self.dropout)
        return values


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> Mlp:
    """[B, inputs] -> [B, outputs]: linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return Mlp(*layers, nn.Linear(inputs, outputs))


def unit(vectors_Bd: Tensor) -> Tensor:
    """Normalise [B, d] to unit length. In float32 also under autocast: bfloat16 lengths would be off by up to 1%."""
    return nn.functional.normalize(vectors_Bd.float(), dim=1)

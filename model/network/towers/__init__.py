"""Towers, one file each: what turns the fields of a side into its vector.

A side's fields are its features as vectors: [B, e] each, of lengths of their own. A file of this folder is a tower:
`model.tower` names it, and it has

- `Settings`: a StrictModel with what can be set under `model.settings`, each with a default;
- `build(user, item, dim, hidden, settings)`: the modules of both sides, from their fields. Each maps its tensors, in the
  order of the fields, to vectors [B, dim] of unit length. They come as a pair because some share parameters. A module that
  reads some fields only names them in an attribute `reads`, and is given those alone. A module that weighs fields or
  channels may tell so in `mean_weights(fields) -> {name: weight}`, which goes into the record of a night.

A module sees its own side only, so items can be embedded once and searched: user and item meet in the dot product alone.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor, nn

from model.config import ModelConfig
from pipelines.contract.strict import StrictModel


class Field(NamedTuple):
    """A feature as a vector: its name, its kind (id, categorical, …, history) and the length of the vector."""

    name: str
    kind: str
    length: int


def tower_names() -> list[str]:
    """Every tower that there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def tower_module(name: str) -> ModuleType:
    """The file of a tower. Raises ValueError that names those that there are."""
    if name not in tower_names():
        raise ValueError(f"model.tower: there is no {name!r}; the towers are {', '.join(tower_names())}")
    return importlib.import_module(f"{__name__}.{name}")


def settings_of(tower: str, given: Mapping[str, Any]) -> StrictModel:
    """The settings of a tower, defaults filled in. Raises ValueError that names what its file does not know."""
    known: type[StrictModel] = tower_module(tower).Settings
    try:
        return known.model_validate(dict(given))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        names = ", ".join(known.model_fields) or "none"
        raise ValueError(f"model.settings of tower {tower}: {wrong} (it has {names})") from None


def build_towers(user: Sequence[Field], item: Sequence[Field], config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """The user and the item tower that a config names. Raises ValueError for fields or settings that do not fit it."""
    settings = settings_of(config.tower, config.settings)
    towers: tuple[nn.Module, nn.Module] = tower_module(config.tower).build(
        user, item, config.dim, config.hidden, settings
    )
    return towers


def fields_read(tower: nn.Module, fields: Sequence[Field]) -> list[str]:
    """Names of the fields that a tower is given, in their order: all, or those in its `reads`."""
    reads = getattr(tower, "reads", None)
    return [field.name for field in fields if reads is None or field.name in reads]


def total_length(fields: Sequence[Field]) -> int:
    """Length of all fields one after another."""
    return sum(field.length for field in fields)


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """[B, inputs] -> [B, outputs]: linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def unit(vectors_Bd: Tensor) -> Tensor:
    """[B, d] of unit length, in float32 under autocast too: components of bfloat16 leave a length of 1 only to a percent."""
    return nn.functional.normalize(vectors_Bd.float(), dim=1)

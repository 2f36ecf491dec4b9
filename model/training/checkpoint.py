"""Checkpoints: a folder of parameters and what training goes on with (safetensors), and description (JSON). No pickles."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load
from torch import Tensor

from model.config import ModelConfig
from model.distributed.collectives import rank
from model.distributed.sharded_embedding import restore, whole_state
from model.io.tensor_file import StreamedTensor, TensorFile, drain, encode
from model.io.urls import read_bytes, write_folder
from model.network.two_tower import TwoTower
from model.training.spec import TrainingResult
from pipelines.contract.schema import Feature, FeatureSchema

PARAMETERS, STATE, DESCRIPTION = "model.safetensors", "training.safetensors", "model.json"
# Prefixes of tensor names in training.safetensors and in intermediate checkpoints.
FREQUENCY, OPTIMIZER, PARAMETER = "frequency.", "optimizer.", "parameter."
VERSION = 3  # 1 had no training.safetensors, and other names of the towers' parameters; 2 no item_row.


class WarmStartError(ValueError):
    """Last night's model does not fit tonight's architecture or features (exit 2)."""

    exit_code = 2


def save_checkpoint(
    directory: str, model: TwoTower, state: Mapping[str, Tensor | StreamedTensor], result: TrainingResult
) -> None:
    """Write a checkpoint so that `directory` holds all of it or is as it was; an older one there is replaced.

    Every rank calls it, and rank 0 writes: of sharded tables the whole, a piece at a time, so that who reads a checkpoint
    knows nothing of shares.
    `state`: what the next night's training goes on with, and serving does not need. Of `result` no times are kept: a training
    that is done again gives the same files.
    """
    if rank() > 0:
        drain(whole_state(model))
        drain(state)
        return
    description = {
        "version": VERSION,
        "schema": model.schema.model_dump(mode="json"),
        "model": model.config.model_dump(mode="json"),
        "result": result.without_timings(),
    }
    files = {
        PARAMETERS: encode(whole_state(model)),
        STATE: encode(state),
        DESCRIPTION: [json.dumps(description, indent=1).encode()],
    }
    write_folder(directory, files)


def load_checkpoint(directory: str) -> TwoTower:
    """The model of a checkpoint, ready to serve: in eval mode, no gradients."""
    description = read_description(directory)
    schema = FeatureSchema.model_validate(description["schema"])
    model = TwoTower(schema, ModelConfig.model_validate(description["model"]))
    model.load_state_dict(load(_read(directory, PARAMETERS)))
    return model.eval().requires_grad_(False)


def read_description(directory: str) -> dict[str, Any]:
    """`model.json`: version, schema, model (architecture), result. Raises ValueError for a version not known here."""
    description = json.loads(_read(directory, DESCRIPTION))
    if description.get("version") != VERSION:
        raise ValueError(
            f"{directory} is a checkpoint of version {description.get('version')}, this code reads {VERSION}: train a new "
            "model from the past days with --bootstrap-days"
        )
    return description


def read_state(directory: str, prefix: str = "") -> dict[str, Tensor]:
    """What training goes on with: the tensors that `save_checkpoint` was given under a prefix, named without it."""
    with state_file(directory) as file:
        return {name.removeprefix(prefix): file.read(name) for name in file.names if name.startswith(prefix)}


def state_file(directory: str) -> TensorFile:
    """The file of what training goes on with."""
    return TensorFile(f"{directory.rstrip('/')}/{STATE}")


def warm_start(model: TwoTower, directory: str) -> dict[str, Any]:
    """Give a new model last night's parameters; returns last night's description.

    Embedding tables may have grown: new rows start from the default one, which stood for them until now.
    Raises WarmStartError naming every other difference.
    """
    description = read_description(directory)
    differences = _differences(description, model)
    if differences:
        raise WarmStartError(
            f"cannot continue from {directory}: {'; '.join(differences)}. Set the config back, or train a new model "
            "from the past days with --bootstrap-days"
        )
    with TensorFile(f"{directory.rstrip('/')}/{PARAMETERS}") as file:
        restore(model, file)
    return description


def _read(directory: str, name: str) -> bytes:
    return read_bytes(f"{directory.rstrip('/')}/{name}")


def _differences(description: dict[str, Any], model: TwoTower) -> list[str]:
    """What keeps tonight's model from taking the described one's parameters, in words."""
    old_config, new_config = description["model"], model.config.model_dump(mode="json")
    found = [
        f"{name} was {old_config.get(name)}, is {value}"
        for name, value in new_config.items()
        if name != "id_dropout" and old_config.get(name) != value
    ]
    old, new = FeatureSchema.model_validate(description["schema"]), model.schema
    for side, before, now in (("user", old.user, new.user), ("item", old.item, new.item)):
        found += _feature_differences(side, before, now)
    for name in ("history", "example_age"):
        if (getattr(old, name) is None) != (getattr(new, name) is None):
            found.append(f"{name} was {'off' if getattr(old, name) is None else 'on'}, no longer is")
    if old.example_age and new.example_age and old.example_age != new.example_age:
        found.append("example_age has another scale")
    if model.config.history_pooling == "attention" and old.history and new.history:
        was, length = old.history.length, new.history.length
        if was != length:
            found.append(f"the history had length {was}, has {length}: attention knows positions by number")
    return found


def _feature_differences(side: str, before: list[Feature], now: list[Feature]) -> list[str]:
    old, new = {feature.name: feature for feature in before}, {feature.name: feature for feature in now}
    found = [f"{side} feature {name} was removed" for name in old if name not in new]
    found += [f"{side} feature {name} was added" for name in new if name not in old]
    if not found and list(old) != list(new):
        found.append(f"{side} features were {', '.join(old)}, are {', '.join(new)}: the order matters")
    for name in (name for name in old if name in new):
        if old[name].kind != new[name].kind:
            found.append(f"{side} feature {name} was {old[name].kind}, is {new[name].kind}")
        elif (was := getattr(old[name], "size", 0)) > (size := getattr(new[name], "size", 0)):
            found.append(f"{side} feature {name} had {was} indices, has {size}: vocabularies only grow")
        elif new[name].kind == "bucket" and was != size:
            found.append(f"{side} feature {name} had {was} buckets, has {size}")
        elif getattr(old[name], "vocabulary", None) != getattr(new[name], "vocabulary", None):
            found.append(f"{side} feature {name} has another vocabulary")
    return found

"""Checkpoints: a folder with parameters, training state and tables of the item-item part (safetensors) and a description
(JSON). No pickles."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow.fs as pafs
from safetensors.torch import load
from torch import Tensor

from model.config import ModelConfig
from model.distributed.collectives import rank
from model.distributed.sharded_embedding import restore, whole_state
from model.io.tensor_file import StreamedTensor, TensorFile, drain, encode
from model.io.urls import read_bytes, resolve, write_folder
from model.network.item_item import ItemItemPart, ItemItemTables
from model.network.two_tower import TwoTower, pooled_items
from model.training.spec import TrainingResult
from pipelines.contract.schema import Feature, FeatureSchema, VectorFeature

PARAMETERS, STATE, DESCRIPTION = "model.safetensors", "training.safetensors", "model.json"
ITEM_ITEM = "item_item.safetensors"  # Only with an item-item part: jobs.train adds it to the folder of a training.
# Prefixes of tensor names in training.safetensors and in intermediate checkpoints.
FREQUENCY, OPTIMIZER, PARAMETER = "frequency.", "optimizer.", "parameter."
# Settings of the model that may change from night to night: those of regularisation, how many items are pooled (unless each
# has a position), and the part that is fitted each night.
CHANGEABLE = (
    "id_dropout", "dropout", "history_dropout", "new_user_share", "context_dropout", "history_items",
    "item_item",
)  # fmt: skip
PRIOR_SCALE = "prior_scale"  # Key in the description of a release with a recency prior.
VERSION = 3  # Version 1 had no training.safetensors and other parameter names; version 2 had no item_row.


class WarmStartError(ValueError):
    """The checkpoint does not fit tonight's architecture or features (exit 2)."""

    exit_code = 2


def save_checkpoint(
    directory: str, model: TwoTower, state: Mapping[str, Tensor | StreamedTensor], result: TrainingResult
) -> None:
    """Write a checkpoint atomically: `directory` holds all of it or keeps its content. Replaces an older checkpoint.

    Every rank calls this, and rank 0 writes. Sharded tables are written whole, a piece at a time, so that readers need not
    know about shards. `state`: tensors that the next night's training continues from and that serving does not need. The
    times in `result` are left out, so that the same training writes the same files.
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
    """Load the model of a checkpoint for serving: in eval mode, without gradients.

    Its vectors have the components of the item-item part if the checkpoint has one, and in a release that of the prior.
    """
    description = read_description(directory)
    schema = FeatureSchema.model_validate(description["schema"])
    model = TwoTower(schema, ModelConfig.model_validate(description["model"]))
    model.load_state_dict(load(_read(directory, PARAMETERS)))
    model.prior_scale = description.get(PRIOR_SCALE)
    model.item_item = item_item_part(model, _read_item_item(directory))
    return model.eval().requires_grad_(False)


def read_description(directory: str) -> dict[str, Any]:
    """Read `model.json`: version, schema, model (architecture) and result. Raises ValueError for another VERSION."""
    description = json.loads(_read(directory, DESCRIPTION))
    if description.get("version") != VERSION:
        raise ValueError(
            f"{directory} is a checkpoint of version {description.get('version')}, this code reads {VERSION}: train a new "
            "model from the past days with --bootstrap-days"
        )
    return description


def with_prior_scale(description: str, scale: float) -> str:
    """The content of `model.json` for a release with a recency prior, from that of its checkpoint."""
    return json.dumps({**json.loads(description), PRIOR_SCALE: scale}, indent=1)


def read_state(directory: str, prefix: str = "") -> dict[str, Tensor]:
    """Read the training state: the tensors whose names start with `prefix`, named without it."""
    with state_file(directory) as file:
        return {name.removeprefix(prefix): file.read(name) for name in file.names if name.startswith(prefix)}


def state_file(directory: str) -> TensorFile:
    """The file of the training state."""
    return TensorFile(f"{directory.rstrip('/')}/{STATE}")


def warm_start(model: TwoTower, directory: str) -> dict[str, Any]:
    """Copy the parameters of a checkpoint into a new model. Returns the description of the checkpoint.

    Embedding tables may have grown: new rows are copies of the default row, which their values used until now.
    Raises WarmStartError that names every other difference.
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


def item_item_part(model: TwoTower, tables: ItemItemTables | None) -> ItemItemPart | None:
    """The part that these tables add to the vectors of a model; None without tables, or if its config switches it off."""
    config = model.config.item_item
    return ItemItemPart(tables, model.schema.item_id.size, config.weight) if config and tables else None


def write_item_item(directory: str, tables: ItemItemTables) -> None:
    """Add the tables of the item-item part to the folder of a checkpoint."""
    filesystem, path = resolve(_item_item_url(directory))
    with filesystem.open_output_stream(path) as file:
        for part in encode(tables._asdict()):
            file.write(part)


def copy_item_item(source: str, directory: str) -> bool:
    """Copy the tables of the item-item part from another checkpoint. Returns whether that has them."""
    tables = _read_item_item(source)
    if tables:
        write_item_item(directory, tables)
    return tables is not None


def has_item_item(directory: str) -> bool:
    """Whether a checkpoint has an item-item part."""
    filesystem, path = resolve(_item_item_url(directory))
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def _read_item_item(directory: str) -> ItemItemTables | None:
    return ItemItemTables(**load(_read(directory, ITEM_ITEM))) if has_item_item(directory) else None


def _item_item_url(directory: str) -> str:
    return f"{directory.rstrip('/')}/{ITEM_ITEM}"


def _read(directory: str, name: str) -> bytes:
    return read_bytes(f"{directory.rstrip('/')}/{name}")


def _differences(description: dict[str, Any], model: TwoTower) -> list[str]:
    """Describe each difference that prevents the model from using the parameters of a checkpoint."""
    # Settings that the checkpoint's version did not have get their defaults.
    old_config = ModelConfig.model_validate(description["model"]).model_dump(mode="json")
    new_config = model.config.model_dump(mode="json")
    for config in (old_config, new_config):
        config["settings"] = {name: value for name, value in config["settings"].items() if name not in CHANGEABLE}
    differences = [
        f"{name} was {old_config[name]}, is {value}"
        for name, value in new_config.items()
        if name not in CHANGEABLE and old_config[name] != value
    ]
    old, new = FeatureSchema.model_validate(description["schema"]), model.schema
    for side in ("user", "item", "context"):
        before, now = getattr(old, side), getattr(new, side)
        differences += _feature_differences(side, before, now)
    for name in ("history", "example_age"):
        if (getattr(old, name) is None) != (getattr(new, name) is None):
            differences.append(f"{name} was off, is on" if getattr(old, name) is None else f"{name} was on, is off")
    if old.example_age and new.example_age and old.example_age != new.example_age:
        differences.append("example_age has another scale")
    has_positions = model.encoder is not None or model.config.history_pooling == "attention"
    if has_positions and old.history and new.history:
        was = pooled_items(old.history, ModelConfig.model_validate(description["model"]))
        length = pooled_items(new.history, model.config)
        if was != length:
            differences.append(
                f"the history had length {was}, has {length}: the model has an embedding for each position"
            )
    return differences


def _feature_differences(side: str, before: list[Feature], now: list[Feature]) -> list[str]:
    old, new = {feature.name: feature for feature in before}, {feature.name: feature for feature in now}
    differences = [f"{side} feature {name} was removed" for name in old if name not in new]
    differences += [f"{side} feature {name} was added" for name in new if name not in old]
    if not differences and list(old) != list(new):
        differences.append(f"{side} features were {', '.join(old)}, are {', '.join(new)}: the order matters")
    for name in (name for name in old if name in new):
        if old[name].kind != new[name].kind:
            differences.append(f"{side} feature {name} was {old[name].kind}, is {new[name].kind}")
        elif (was := getattr(old[name], "size", 0)) > (size := getattr(new[name], "size", 0)):
            differences.append(f"{side} feature {name} had {was} indices, has {size}: vocabularies only grow")
        elif isinstance(one := old[name], VectorFeature) and isinstance(other := new[name], VectorFeature):
            if (one.length, one.width) != (other.length, other.width):
                was, now_is = (f"length {v.length}, width {v.width or 'default'}" for v in (one, other))
                differences.append(f"{side} feature {name} had {was}, has {now_is}")
        elif new[name].kind == "bucket" and was != size:
            differences.append(f"{side} feature {name} had {was} buckets, has {size}")
        elif getattr(old[name], "vocabulary", None) != getattr(new[name], "vocabulary", None):
            differences.append(f"{side} feature {name} has another vocabulary")
    return differences

"""Trials share the fit of the item-item part unless it differs."""

from pathlib import Path
from typing import Any

from jobs.tuning.trials import fit_key
from model.training.spec import TrainingSpec
from tests.model import toy_night


def changed(spec: TrainingSpec, part: dict[str, Any] | None = None, **model: Any) -> str:
    """The key with other settings of the item-item part and of the model."""
    settings = {**spec.model.model_dump(), **model}
    if part and settings["item_item"]:
        settings["item_item"] |= part
    return fit_key(spec.model_copy(update={"model": type(spec.model).model_validate(settings)}), "histories")


def test_a_fit_is_shared_by_trials_that_differ_in_its_weight_or_in_the_towers(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [8])
    spec = spec.model_copy(update={"features": toy_night.schema(history=toy_night.FULL_HISTORY)})
    dim = spec.model.dim
    key = changed(spec)
    assert key == changed(spec, {"weight": 3.0}) == changed(spec, dropout=0.3) == changed(spec, {"rank": dim})
    other = [
        changed(spec, {"penalty": 7.0}),
        changed(spec, {"popularity_exponent": 0.5}),
        changed(spec, {"rank": dim + 1}),
        changed(spec, dim=2 * dim),
        fit_key(spec, "of another night"),
    ]
    assert len({key, *other}) == 6
    off = spec.model_copy(update={"features": toy_night.schema(history=None)})
    assert changed(off) == changed(spec, item_item=None) != key
    assert changed(off, {"penalty": 7.0}) == changed(off), "without a history there is nothing to fit"

"""Training on packed rows: the losses, figures and gradients of the same positives in rows that are not packed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from model.config import LossConfig
from model.data.petastorm_reader import SampleReader, sample_columns
from model.network.embeddings import Batch
from model.training.build import build_step
from model.training.degenerate_loss import DegenerateLossError
from model.training.spec import TrainingSpec
from model.training.step import FIGURES
from model.training.trainer import train
from model.training.validation import validate
from tests.model import packed_night, toy_night

EVERYTHING_AT_ONCE = {"batch_size": 10_000}
LOSSES = [{"kind": kind, "correction": "none"} for kind in ("listwise", "pointwise", "hinge", "logistic")]
LOSSES += [{"correction": correction} for correction in ("classic", "mns", "revisited")]
LOSSES += [{"correction": "mns", "frequencies": "streaming"}]
SEQUENCE = {"width": 16, "dropout": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "dssm": {"history_features": ["category"]},
    "sequence": {"tower": "sequence", "settings": SEQUENCE},
    "sequence with all": {"tower": "sequence", "settings": {**SEQUENCE, "time": "gaps", "actions": True}},
}


def specs(folder: Path, model: dict[str, Any]) -> tuple[TrainingSpec, TrainingSpec]:
    """Two specs of the same positives, packed and not, with earlier versions of items."""
    versions = [toy_night.write_earlier_versions(folder)]
    packed, unpacked = (
        packed_night.make_spec(
            folder, [30, 31], {"id_dropout": 0.0, "new_user_share": 0.0, **model}, None, EVERYTHING_AT_ONCE, packed=packed,
            item_versions=versions,
        )
        for packed in (True, False)
    )  # fmt: skip
    return packed, unpacked


def whole_split(spec: TrainingSpec) -> Batch:
    """All rows of the train split in one batch."""
    columns = sample_columns(spec.features, versions=bool(spec.item_versions), packing=spec.packing)
    with SampleReader(spec.train, columns, spec.training, 0, 0, 1, spec.packing).epoch(0) as batches:
        (batch,) = batches
    return batch


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_packed_rows_have_the_loss_and_gradients_of_rows_that_are_not_packed(
    model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.network.sequence_encoder.UNKNOWN_SHARE", 0.0)
    pair = specs(tmp_path, model)
    batches = [whole_split(spec) for spec in pair]
    distinct_losses = set()
    for loss in LOSSES:
        figures, gradients, valid = [], [], []
        for spec, batch in zip(pair, batches):
            changed = spec.model_copy(update={"loss": LossConfig(learned_temperature=True, **loss)})
            step = build_step(changed)
            step(batch, None)  # A streaming estimator learns from the first pass.
            output = step(batch, None)
            output.loss.backward()
            figures.append(output.figures)
            gradients.append({name: p.grad for name, p in step.named_parameters() if p.grad is not None})
            valid.append(validate(step.eval(), changed))
        packed, unpacked = (dict(zip(FIGURES, values.tolist())) for values in figures)
        assert packed == pytest.approx(unpacked, rel=1e-5)
        assert packed["rows"] == sum(file.positives or 0 for file in pair[0].train)
        assert packed["masked_shared"] > 0
        assert packed["masked_hard"] > 0
        assert valid[0][:2] == pytest.approx(valid[1][:2], rel=1e-5)
        distinct_losses.add(packed["loss"])
        largest = max(float(gradient.abs().max()) for gradient in gradients[1].values())
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[1].items():
            message = f"{name} of {loss}"
            torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=message)
    assert len(distinct_losses) == len(LOSSES)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_process_may_have_no_packed_rows_in_a_step(model: dict[str, Any], tmp_path: Path) -> None:
    spec = packed_night.make_spec(tmp_path, [5, 5], model, None, EVERYTHING_AT_ONCE)
    step = build_step(spec)
    none = {name: values[:0] for name, values in whole_split(spec).items()}
    vectors = step.user_vectors(none)
    assert vectors.shape == (0, spec.model.dim)
    vectors.sum().backward()


def test_a_streaming_estimator_expects_as_many_positives_per_step_as_a_step_has(tmp_path: Path) -> None:
    loss = {"correction": "mns", "frequencies": "streaming"}
    spec = packed_night.make_spec(tmp_path, [30, 30], None, loss, {"batch_size": 50})
    positives = sum(file.positives or 0 for file in spec.train)
    frequency = build_step(spec).frequency
    assert frequency is not None
    assert frequency.rows_per_step == pytest.approx(50, rel=0.1)
    assert frequency.rows_per_step * train(spec).steps == pytest.approx(positives, rel=0.1)


def test_a_degenerate_loss_names_the_positive_of_a_packed_row(tmp_path: Path) -> None:
    rows = packed_night.packed_rows(20)
    rows["weight"][7, 0] = float("nan")
    user, item = rows["user_index"][7], rows["item_index"][7, 0]
    train_files = packed_night.write(tmp_path / "bad", rows, [20], packed=True)
    spec = packed_night.make_spec(tmp_path, [20], training=EVERYTHING_AT_ONCE, train=train_files)
    message = rf"1 of {train_files[0].positives} rows have a loss .* \(user_index, item_index\) \({user}, {item}\):"
    with pytest.raises(DegenerateLossError, match=message):
        train(spec)


def test_packed_files_without_their_number_of_positives_are_refused(tmp_path: Path) -> None:
    spec = packed_night.make_spec(tmp_path, [5, 5], packed=False)
    message = r"pack is 4, but 4 of 4 row groups of samples have no number of positives.*write the samples again"
    with pytest.raises(ValidationError, match=message):
        TrainingSpec(**{**dict(spec), "pack": 4})

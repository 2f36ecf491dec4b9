"""The ramp of hard negatives over a training."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.training.checkpoint import load_checkpoint
from model.training.hard_ramp import hard_scale
from model.training.spec import TrainingSpec
from model.training.trainer import TrainingLoop, train
from pipelines.contract.negative_kinds import HARD
from tests.model import toy_night


def test_scales_of_ramps_by_hand() -> None:
    assert [hard_scale(step, 4, None) for step in range(4)] == [1] * 4
    assert [hard_scale(step, 8, [0.25, 0.75]) for step in range(8)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [hard_scale(step, 4, [0, 1]) for step in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [hard_scale(step, 4, [0.5, 0.5]) for step in range(4)] == [0, 0, 1, 1]
    assert [hard_scale(step, 4, [0, 0]) for step in range(4)] == [1] * 4
    assert [hard_scale(step, 4, [1, 1]) for step in range(4)] == [0] * 4


def make_spec(folder: Path, ramp: list[float] | None) -> TrainingSpec:
    return toy_night.make_spec(
        folder, [64, 64], {"id_dropout": 0.0, "new_user_share": 0.0}, {"hard_ramp": ramp}, epochs=2
    )


def without_hard_negatives(spec: TrainingSpec) -> TrainingSpec:
    """Rewrite the training rows: hard negatives become empty places."""
    for file in spec.train:
        path = file.url.removeprefix("file://")
        rows = pq.read_table(path)
        kinds = np.stack(rows["negative_kinds"].to_numpy())
        empty = np.where(np.isin(kinds, HARD), 0, kinds)
        items = np.where(empty == 0, 0, np.stack(rows["negatives"].to_numpy()))
        for name, values in (("negatives", items), ("negative_kinds", empty)):
            column = pa.array(values.tolist(), rows.schema.field(name).type)
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        pq.write_table(rows, path)
    return spec


def parameters_of(spec: TrainingSpec) -> dict[str, torch.Tensor]:
    train(spec)
    return load_checkpoint(spec.output).state_dict()


@pytest.mark.trains
def test_before_its_start_a_training_learns_nothing_from_hard_negatives(tmp_path: Path) -> None:
    never = parameters_of(make_spec(tmp_path / "never", [1.0, 1.0]))
    none = parameters_of(without_hard_negatives(make_spec(tmp_path / "none", None)))
    always = parameters_of(make_spec(tmp_path / "always", None))
    for name, values in never.items():
        torch.testing.assert_close(values, none[name], rtol=1e-4, atol=1e-5)
    assert not all(torch.allclose(values, always[name], atol=1e-3) for name, values in never.items())


@pytest.mark.trains
def test_every_step_has_the_scale_of_its_number_and_an_update_has_no_ramp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales: list[float] = []
    original = TrainingLoop._step

    def recorded(self: TrainingLoop, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        scales.append(self.step.hard_scale)

    monkeypatch.setattr(TrainingLoop, "_step", recorded)
    spec = make_spec(tmp_path, [0.25, 0.75])
    assert train(spec).steps == 4
    assert scales == [0, 0, 0.5, 1]
    scales.clear()
    update = spec.model_copy(
        update={"incremental": True, "epochs": 1, "warm_start": spec.output, "output": f"{tmp_path}/2"}
    )
    train(update)
    assert scales == [1, 1]

"""The health metrics detect a collapse of the vectors."""

from pathlib import Path

import pytest
import torch

from model.training.checkpoint import load_checkpoint
from model.training.health import effective_dimensions, mean_cosine
from model.training.trainer import train
from tests.model import toy_night


def test_mean_cosine_and_effective_dimensions_of_hand_made_vectors() -> None:
    same = torch.nn.functional.normalize(torch.ones(7, 3), dim=1)
    assert mean_cosine(same) == pytest.approx(1)
    assert effective_dimensions(same) == pytest.approx(0)
    axes = torch.eye(4)
    assert mean_cosine(axes) == pytest.approx(0)
    assert effective_dimensions(axes) == pytest.approx(3), "the common component is removed"
    opposite = torch.cat([axes, -axes])
    assert mean_cosine(opposite) == pytest.approx(-1 / 7)
    assert effective_dimensions(opposite) == pytest.approx(4)
    # Three vectors on one axis, one on another: 3 of 6 pairs are equal, and all points lie on one line.
    assert effective_dimensions(axes[[0, 0, 0, 1]]) == pytest.approx(1)
    assert mean_cosine(axes[[0, 0, 0, 1]]) == pytest.approx(0.5)
    # Variances 4 and 1 along two axes: (4 + 1)^2 / (16 + 1).
    assert effective_dimensions(opposite[[0, 4, 1, 5]] * torch.tensor([2.0, 1, 1, 1])) == pytest.approx(25 / 17)


@pytest.mark.trains
def test_every_point_of_a_run_has_health_metrics(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [400] * 2, epochs=2)
    result = train(spec)
    for point in result.metrics:
        assert 0 < point.effective_dimensions < spec.model.dim
        assert -1 <= point.mean_cosine <= 1
        assert point.memory_mb > 50
        assert 0 < point.step_seconds <= point.seconds
    rows = load_checkpoint(spec.output).tables["item_id"].weight[2:]  # type: ignore[union-attr, index]
    assert result.metrics[-1].embedding_norm == pytest.approx(float(rows.norm(dim=1).mean()), rel=0.05)

"""Learning rate schedules."""

from pathlib import Path

import pytest

from model.config import TrainingConfig
from model.training.optimisers import rate_share
from model.training.trainer import train
from tests.model import toy_night


def factors(steps: int, **config: object) -> list[float]:
    return [rate_share(step, steps, TrainingConfig.model_validate(config)) for step in range(steps)]


def test_factors_of_hand_made_schedules() -> None:
    assert factors(3) == [1, 1, 1]
    assert factors(4, warm_up_steps=3) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    assert factors(4, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert factors(4, schedule="cosine", final_rate_share=0.2) == pytest.approx([1, 0.8829, 0.6, 0.3172], abs=1e-4)
    assert factors(5, warm_up_steps=1, schedule="linear") == pytest.approx([0.5, 1, 0.75, 0.5, 0.25])
    assert factors(2, warm_up_steps=5, schedule="cosine") == pytest.approx([1 / 6, 2 / 6]), (
        "a run shorter than its warm-up"
    )
    assert factors(1, schedule="linear") == [1]


@pytest.mark.parametrize("sparse_rows", [1, 10_000])
@pytest.mark.trains
def test_a_run_follows_its_schedule(tmp_path: Path, sparse_rows: int) -> None:
    """With dense tables and with sparse tables, which have a separate optimiser."""
    rates = {"schedule": "linear", "warm_up_steps": 2, "learning_rate": 0.01, "embedding_rows_sparse": sparse_rows}
    spec = toy_night.make_spec(tmp_path, [64] * 5, training=rates, epochs=2)
    result = train(spec)
    training = spec.training
    expected = [0.01 * rate_share(step, result.steps, training) for step in range(result.steps)]
    assert result.steps == 10
    assert [point.learning_rate for point in result.metrics] == pytest.approx(expected)
    assert expected[-1] == pytest.approx(0.01 / 8)

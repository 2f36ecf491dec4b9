"""NaN or infinite losses and gradients stop training with an error that names the rows; no checkpoint is written."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.training.degenerate_loss import DegenerateLossError
from model.training.trainer import train
from tests.model import toy_night


def test_a_degenerate_loss_stops_training_and_names_the_row(tmp_path: Path) -> None:
    spec = toy_night.make_spec(tmp_path, [50, 50])
    rows = toy_night.sample_rows(50)
    rows["user_income"][3] = np.nan
    pq.write_table(toy_night.table(rows), spec.train[0].url.removeprefix("file://"))
    with pytest.raises(
        DegenerateLossError,
        match=rf"step \d: 1 of \d+ rows .*_index\) \({rows['user_index'][3]}, {rows['item_index'][3]}\)",
    ):
        train(spec)
    assert not Path(spec.output).exists()

    spec = toy_night.make_spec(tmp_path, [50, 50], loss={"temperature": 1e-40})
    with pytest.raises(DegenerateLossError, match="Degenerate loss in step 1"):
        train(spec)


@pytest.mark.parametrize(("column", "value"), [("weight", np.nan), ("weight", np.inf), ("user_income", np.nan)])
@pytest.mark.parametrize("loss", [{"kind": "pointwise"}, {"correction": "revisited"}, {"kind": "hinge"}])
def test_a_row_with_a_bad_value_is_named_for_every_loss(tmp_path: Path, column: str, value: float, loss: dict) -> None:
    spec = toy_night.make_spec(tmp_path, [50], loss=loss)
    rows = toy_night.sample_rows(50)
    rows[column][3] = value
    pq.write_table(toy_night.table(rows), spec.train[0].url.removeprefix("file://"))
    pair = rf"\({rows['user_index'][3]}, {rows['item_index'][3]}\)"
    with pytest.raises(DegenerateLossError, match=rf"1 of 50 rows have a loss that is not finite, .*_index\) {pair}"):
        train(spec)


def test_a_degenerate_gradient_stops_training_and_names_rows(tmp_path: Path) -> None:
    """A weight near the float32 maximum: the loss is finite, the gradient (divided by the temperature) is not."""
    spec = toy_night.make_spec(tmp_path, [50], loss={"temperature": 0.01})
    rows = toy_night.sample_rows(50)
    rows["weight"][3] = 1e37
    pq.write_table(toy_night.table(rows), spec.train[0].url.removeprefix("file://"))
    with pytest.raises(
        DegenerateLossError, match=r"norm of the gradient is inf.*\(user_index, item_index\) \(\d+, \d+\)"
    ):
        train(spec)
    assert not Path(spec.output).exists()

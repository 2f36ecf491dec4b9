"""The job train: how a first night chooses its number of passes."""

import pytest

from jobs.common.config import Config
from jobs.train import early_stopping
from model.training.spec import EarlyStopping
from pipelines.contract.errors import UsageError

AUTO = Config.model_validate({"training": {"bootstrap_epochs": "auto", "bootstrap_patience": 2}})
DS = "2024-03-05"


def test_auto_has_the_patience_of_the_config(caplog: pytest.LogCaptureFixture) -> None:
    assert early_stopping(Config(), DS, 0) is None
    assert early_stopping(AUTO, DS, 100) == EarlyStopping(patience=2)
    assert not caplog.records


def test_few_held_out_positives_are_a_warning_and_none_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert early_stopping(AUTO, DS, 99) is not None
    assert "on 99 positives in the last hours of ds=2024-03-05 (positives.valid_hours = 2)" in caplog.text
    with pytest.raises(UsageError, match=r"there is none: raise positives\.valid_hours") as caught:
        early_stopping(AUTO, DS, 0)
    assert caught.value.exit_code == 2

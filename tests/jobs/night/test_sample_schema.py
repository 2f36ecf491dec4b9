"""Errors of jobs/train.py before training, which need only the manifest of the samples."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.common.config import Config
from jobs.common.config_checks import expected_schema
from jobs.common.runner import Context
from jobs.night.sample_schema import schema_of
from jobs.night.training_inputs import TrainingInputs
from pipelines.contract.errors import InputError, UsageError
from pipelines.storage.manifest import Manifest, Recipe

DS = "2024-03-01"
RECIPE = Recipe("", {}, "")
FEATURES = {
    "user": [{"kind": "categorical", "name": "age"}],
    "item": [{"kind": "categorical", "name": "category"}, {"kind": "numeric", "name": "price"}],
}
BUCKETS = {"kind": "numeric", "name": "price", "boundaries": [1.0, 2.0]}
LATER = [{"kind": "categorical", "name": "brand"}, FEATURES["item"][1]]


def config_of(**features: Any) -> Config:
    return Config.model_validate({"features": FEATURES | features})


def samples(rows: list[int], schema: dict[str, Any] | None = None) -> Manifest:
    """The manifest of samples. `rows`: number of rows of each row group for training."""
    groups = [{"path": f"{place}.parquet", "rows": count} for place, count in enumerate(rows)]
    facts = {"splits": {"train": {"rows": sum(rows), "groups": groups}}, "schema": schema or {}}
    return Manifest("samples", DS, "", {}, sum(rows), facts)


def schema(**features: Any) -> dict[str, Any]:
    return expected_schema(config_of(**features)).model_dump(mode="json")


def context_of(processes: int, update: object | None = None) -> Context:
    config = Config.model_validate({"training": {"processes": processes}})
    warehouse: Any = SimpleNamespace(update=update, path=lambda table, ds: f"file:///{table}/ds={ds}")
    return Context(config, None, warehouse, argparse.Namespace(), DS)  # type: ignore[arg-type]


def test_more_processes_than_row_groups_are_refused_with_the_remedy() -> None:
    assert TrainingInputs({"samples": samples([5, 5])}, None, RECIPE).processes(context_of(2)) == 2
    message = (
        rf"training\.processes: 4 processes cannot share the 2 row groups of samples ds={DS} \(10 rows for training\): lower "
        r"training\.processes to 2, or raise samples\.trainers or lower samples\.row_group_rows"
    )
    with pytest.raises(UsageError, match=message) as refused:
        TrainingInputs({"samples": samples([5, 5])}, None, RECIPE).processes(context_of(4))
    assert refused.value.exit_code == 2


def test_row_groups_of_packed_samples_have_their_number_of_positives() -> None:
    packed = samples([5, 5])
    for group, positives in zip(packed.facts["splits"]["train"]["groups"], (12, 9)):
        group["positives"] = positives
    folder = f"file:///samples/ds={DS}"
    unpacked = TrainingInputs({"samples": packed}, None, RECIPE).row_groups(context_of(1), "train")
    assert unpacked == [{"url": f"{folder}/{name}.parquet", "rows": 5} for name in (0, 1)]
    packed.facts["pack"] = 3
    groups = TrainingInputs({"samples": packed}, None, RECIPE).row_groups(context_of(1), "train")
    assert [group["positives"] for group in groups] == [12, 9]


def test_an_update_uses_at_most_as_many_processes_as_it_has_row_groups() -> None:
    update = context_of(4, update=object())
    assert TrainingInputs({"samples": samples([5, 5])}, None, RECIPE).processes(update) == 2


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"item": LATER}, "item feature brand is in the config and not in the samples; item feature category is in the samp"),
        ({"item": [FEATURES["item"][0], BUCKETS]}, "item feature price is numeric in the samples and bucket in the config"),
        ({"user": []}, "user feature age is in the samples and not in the config"),
        ({"history": None}, "features.history was on for the samples and is off now"),
        ({"history": {"ages": True}}, "features.history.ages was off for the samples and is on now"),
        ({"history": {"actions": True}}, "features.history.actions was off for the samples and is on now"),
        ({"example_age": True}, "features.example_age was off for the samples and is on now"),
    ],
)  # fmt: skip
def test_samples_of_another_config_are_refused(features: dict[str, Any], says: str) -> None:
    assert schema_of(samples([5], schema()), config_of()).model_dump(mode="json") == schema()
    with pytest.raises(InputError) as refused:
        schema_of(samples([5], schema()), config_of(**features))
    message = str(refused.value)
    assert f"table samples ds={DS} was made with another config: {says}" in message
    assert f"run build_positives and build_negatives for ds={DS} again" in message
    assert refused.value.exit_code == 3


def test_samples_whose_schema_cannot_be_read_are_refused() -> None:
    other = schema()
    other["item"][1]["size"] = "many"
    with pytest.raises(InputError, match=rf"table samples ds={DS}: schema\.item\.1\.categorical\.size .*--force"):
        schema_of(samples([5], other), config_of())

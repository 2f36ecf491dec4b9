"""Example age: bounded, frozen on the first night, and without loss of recall when serving at age 0."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.network.embeddings import scaled_age
from model.serving.embed import embed_items, embed_users
from model.training.checkpoint import load_checkpoint
from model.training.trainer import train
from pipelines.contract.schema import AgeFeature, FeatureSchema, NumericFeature
from pipelines.features.feature_schema import example_age
from tests.model import toy_night

AGE = {"name": "example_age", "kind": "age", "column": "example_age"}


def test_example_age_is_bounded_and_frozen() -> None:
    """0 when serving, 1 for the oldest event of the first night and for anything older. Later nights keep this scale."""
    age = FeatureSchema.model_validate({**toy_night.SCHEMA, "example_age": {**AGE, "days": 330.0}}).example_age
    assert isinstance(age, AgeFeature)
    values = scaled_age(age, {"example_age": torch.tensor([0.0, 1.0, 30.0, 330.0, 4000.0])})[:, 0]
    assert values[[0, 3, 4]].tolist() == [0, 1, 1]
    assert (values[1:4] > values[:3]).all()
    first = example_age(330, {})
    assert example_age(1, {"schema": {"example_age": first.model_dump()}}) == first
    raw = {"name": "example_age", "kind": "numeric", "column": "example_age", "mean": 0.0, "std": 1.0}
    assert example_age(30, {"schema": {"example_age": raw}}) == NumericFeature.model_validate(raw), (
        "a schema from an older program version keeps its numeric feature"
    )


@pytest.mark.parametrize("days", [1, 330])
@pytest.mark.slow
def test_example_age_does_not_reduce_recall(tmp_path: Path, days: int) -> None:
    """Trains on ages up to `days` and serves at age 0. An unscaled number of days would lose a third of the recall or more."""
    recalls = {}
    for name, entry in (("off", None), ("on", {**AGE, "days": float(days)})):
        spec = toy_night.make_spec(
            tmp_path / name, [400] * 4, features=toy_night.schema(example_age=entry),
            model={"id_dropout": 0.02, "new_user_share": 0.0},
            loss={"temperature": 0.1}, training={"learning_rate": 5e-3, "embedding_learning_rate": 2e-2}, epochs=3,
        )  # fmt: skip
        for file in spec.train:
            path = file.url.removeprefix("file://")
            table = pq.read_table(path)
            place = table.schema.get_field_index("example_age")
            ages = (table.column(place).to_numpy() * days).astype(np.float32)
            pq.write_table(table.set_column(place, "example_age", [ages]), path)
        train(spec)
        model, rows = load_checkpoint(spec.output), toy_night.sample_rows(400, seed=9)
        scores = embed_users(model, rows) @ embed_items(model, toy_night.item_rows()).T
        best = toy_night.item_rows()["item_index"][np.argsort(-scores, axis=1)[:, :10]]
        recalls[name] = float((best == rows["item_index"][:, None]).any(1).mean())
    assert recalls["on"] > recalls["off"] - 0.05, recalls

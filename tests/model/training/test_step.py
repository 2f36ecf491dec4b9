"""One training step: expected counts of candidates, exact and estimated."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from model.data.petastorm_reader import SampleReader, sample_columns
from model.data.popularity import read_log_popularity
from model.loss.candidates import StepCandidates
from model.loss.losses import MASKED
from model.loss.objective import batch_loss, logits_of, vectors_of
from model.training.build import build_step
from tests.model import toy_night


def test_expected_counts_are_those_of_the_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night with few rows: a floor on the frequency of positives would outweigh the draws of all other items."""
    spec = toy_night.make_spec(tmp_path, [12])
    step = build_step(spec)
    stats = pq.read_table(spec.item_stats[0]).to_pydict()
    q = {name: dict(zip(stats["item_index"], stats[f"q_{name}"])) for name in ("in_batch", "uniform", "popularity")}
    recorded: list[tuple[StepCandidates, torch.Tensor]] = []

    def record(*arguments: Any) -> Any:
        recorded.append((arguments[4], arguments[5]))
        return batch_loss(*arguments)

    monkeypatch.setattr("model.training.step.batch_loss", record)
    for files, training in ((spec.train, True), (spec.valid, False)):
        with SampleReader(files, sample_columns(spec.features), spec.training, 0, 0, 1).epoch(0) as batches:
            batch = next(batches)
        step.train(training)(batch, 64)
        candidates, expected_U = recorded.pop()
        drawn_only = 0
        for item, expected in zip(candidates.items_U.tolist(), expected_U.tolist()):
            others = candidates.uniform * q["uniform"][item] + candidates.popularity * q["popularity"][item]
            if item in batch["item_index"] and not q["in_batch"][item]:
                assert not training
                least = min(value for value in q["in_batch"].values() if value)
                assert expected == pytest.approx(others + candidates.rows * least / 2), (
                    "half the frequency of the rarest positive"
                )
            else:
                drawn_only += not q["in_batch"][item]
                assert expected == pytest.approx(others + candidates.rows * q["in_batch"][item])
        assert drawn_only > 3


def test_frequencies_are_read_before_they_learn_from_the_batch(tmp_path: Path) -> None:
    """The estimator learns in training only."""
    streaming = {"correction": "mns", "frequencies": "streaming"}
    spec = toy_night.make_spec(tmp_path, [64], loss=streaming, training={"batch_size": 64})
    step = build_step(spec)
    assert step.frequency is not None
    with SampleReader(spec.train, sample_columns(spec.features), spec.training, 0, 0, 1).epoch(0) as batches:
        batch = next(batches)
    distinct_items = len(batch["item_index"].unique())
    hits_when_read: list[int] = []
    probabilities = step.frequency.probabilities

    def record(items: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        hits_when_read.append(int(step.frequency.hits_mH.sum()))  # type: ignore[union-attr]
        return probabilities(items, rows)

    step.frequency.probabilities = record  # type: ignore[method-assign]
    for _ in range(2):
        step(batch, 64)
    assert hits_when_read == [0, 2 * distinct_items]
    step.eval()(batch, 64)
    assert int(step.frequency.step) == 2


def test_the_validation_loss_has_no_weights_of_top_k(tmp_path: Path) -> None:
    """They grow with the quality of the model. An update within the day trains with them, in eval mode."""
    losses: dict[tuple[int | None, bool], float] = {}
    for top_k in (None, 3):
        loss = {"top_k": top_k, "top_k_temperature": 0.1, "stage_weight": 0}
        spec = toy_night.make_spec(tmp_path, [64], loss=loss, training={"batch_size": 64})
        step = build_step(spec).eval()
        with SampleReader(spec.train, sample_columns(spec.features), spec.training, 0, 0, 1).epoch(0) as batches:
            batch = next(batches)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                losses[top_k, gradients] = float(step(batch, 64).loss.detach())
    assert losses[3, True] < losses[None, True] - 0.01
    assert losses[3, False] == losses[None, False] == losses[None, True]


def test_lift_adds_the_log_popularity_of_each_item_to_its_logit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared candidates, positives and hard negatives alike. The vectors that a release gets do not have it."""
    spec = toy_night.make_spec(tmp_path, [64], loss={"lift": True, "temperature": 0.5}, training={"batch_size": 64})
    step = build_step(spec).eval()
    recorded: list[Any] = []

    def record(*arguments: Any) -> Any:
        recorded.append(arguments)
        return batch_loss(*arguments)

    monkeypatch.setattr("model.training.step.batch_loss", record)
    with SampleReader(spec.train, sample_columns(spec.features), spec.training, 0, 0, 1).epoch(0) as batches:
        batch = next(batches)
    output = step(batch, 64)
    users, items, hard, _, candidates, *_ = recorded.pop()

    def logits(width: int) -> Any:
        return logits_of(
            vectors_of(users[:, :width], items[:, :width], hard[..., :width], candidates, 0.5), candidates, None
        )

    popularity_M = read_log_popularity(spec.features, spec.item_stats)
    with_it, without = logits(users.shape[1]), logits(users.shape[1] - 1)
    torch.testing.assert_close(with_it.positive_B - without.positive_B, popularity_M[batch["item_index"]])
    compared_BU = without.shared_BU > MASKED / 2
    added_BU = popularity_M[candidates.items_U].expand(compared_BU.shape)
    torch.testing.assert_close((with_it.shared_BU - without.shared_BU)[compared_BU], added_BU[compared_BU])
    compared_BK = without.hard_BK > MASKED / 2
    assert compared_BK.any()
    added_BK = popularity_M[candidates.hard_BK]
    torch.testing.assert_close((with_it.hard_BK - without.hard_BK)[compared_BK], added_BK[compared_BK])
    assert torch.equal(output.items_Ud, items[:, :-1])

"""Item versions: samples see the features of an item as of their day, in the catalogue, in the loss and in training."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import LossConfig
from model.data.catalogue import Catalogue, SamplingProbabilities
from model.data.item_versions import Versions
from model.loss.candidates import BatchRows, StepCandidates, collect_candidates
from model.loss.logq import expected_counts
from model.loss.objective import positive_ranks, row_losses
from model.training.build import build_step
from model.training.spec import TrainingSpec
from model.training.step import StepOutput
from model.training.trainer import train
from pipelines.contract.negative_kinds import COARSE, FINE, POPULARITY, UNIFORM
from tests.model import toy_night
from tests.model.loss import random_batch

MONDAY, TUESDAY, WEDNESDAY = toy_night.DAYS
GONE = toy_night.ITEMS + 1  # The item of the toy night without a current row.


@pytest.mark.parametrize("memory_mb", [None, 0])
def test_each_snapshot_sees_its_version(memory_mb: int | None) -> None:
    catalogue = Catalogue(toy_night.schema(), toy_night.item_rows(), memory_mb, toy_night.earlier_versions())
    current = {
        name: dict(zip(toy_night.item_rows()["item_index"].tolist(), values))
        for name, values in toy_night.item_rows().items()
    }
    days = torch.tensor([MONDAY, TUESDAY, WEDNESDAY])
    items = torch.tensor([3, 5, 4, GONE, 0, 1])
    rows = catalogue.rows(items[:, None], days)
    assert (catalogue.versions.items(rows) == items[:, None]).all()
    features = catalogue.gather(rows)
    assert (features["item_index"] == items[:, None]).all()
    now = [int(current["item_category"][item]) for item in (3, 5, 4)]
    assert features["item_category"].tolist() == [
        [5, 3, now[0]],
        [4, 4, now[1]],
        [now[2]] * 3,
        [2] * 3,
        [1] * 3,
        [1] * 3,
    ]
    assert features["item_tags"][0].tolist() == [[8, 0, 0], [3, 4, 0], current["item_tags"][3].tolist()]
    assert features["item_tags_weights"][0, 1].tolist() == [1, 0.5, 0]
    assert catalogue.gather(catalogue.rows(items))["item_category"].tolist() == [*now, 1, 1, 1], (
        "an item that has left has no current features"
    )
    plain = Catalogue(toy_night.schema(), toy_night.item_rows())
    for name, values in catalogue.gather(catalogue.rows(plain.present)).items():
        assert values.equal(plain.gather(plain.present)[name])
    history = catalogue.history_columns(torch.tensor([[0, 3], [5, 3]]), toy_night.schema().item[1:2], days[:2])
    assert history["history_item_category"].tolist() == [[0, 5], [4, 3]]


# -- loss -------------------------------------------------------------------------------------------------------------


def make(seed: int) -> random_batch.Case:
    """A random batch with rows of three days. Half of the items have up to three versions."""
    case, rng = random_batch.make(seed), np.random.default_rng(1000 + seed)
    case["snapshots"] = rng.choice([MONDAY, TUESDAY, WEDNESDAY], random_batch.ROWS)
    pairs = [
        (item, day) for item in range(2, random_batch.ITEMS, 2) for day in (TUESDAY, WEDNESDAY) if rng.random() < 0.7
    ]
    items, days = np.array(pairs).T
    case["versions"] = Versions.build(items, days)[0]
    vectors = rng.normal(size=(random_batch.ITEMS + len(pairs), random_batch.DIM))
    case["row_vectors"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return case


def row_of(case: random_batch.Case, item: int, day: int) -> int:
    return int(case["versions"].rows(torch.tensor([item]), torch.tensor([day])))


def candidates_of(case: random_batch.Case, once: bool) -> StepCandidates:
    rows = replace(random_batch.rows_of(case), snapshots=torch.from_numpy(case["snapshots"]))
    return collect_candidates(rows, rows, torch.from_numpy(case["history"]), case["versions"], positives_once=once)


def losses_of(case: random_batch.Case, config: LossConfig, once: bool) -> torch.Tensor:
    candidates = candidates_of(case, once)
    vectors = torch.from_numpy(case["row_vectors"])
    expected_U = None if config.correction == "none" else random_batch.expected_of(case, candidates, once)
    return row_losses(
        torch.from_numpy(case["user_vectors"]), vectors[candidates.rows_U], vectors[candidates.hard_BK],
        candidates, expected_U, config.temperature, config,
    ).losses_B  # fmt: skip


def oracle(case: random_batch.Case, config: LossConfig, once: bool) -> np.ndarray:
    """Loss per row, from a list of all entries (item, row of the catalogue, weight). Expected counts are per item."""
    items, days, kinds = case["items"], case["snapshots"], case["kinds"]
    entries = [
        (item, row_of(case, item, day), 1 / (items == item).sum() if once else 1.0) for item, day in zip(items, days)
    ]
    easy = np.argwhere((kinds == UNIFORM) | (kinds == POPULARITY))
    entries += [(case["negatives"][n, k], row_of(case, case["negatives"][n, k], days[n]), 1.0) for n, k in easy]
    uniform, popularity = (kinds == UNIFORM).sum(), (kinds == POPULARITY).sum()
    in_batch = case["chance"] if once else random_batch.ROWS * case["q"][0]
    expected = in_batch + uniform * case["q"][1] + popularity * case["q"][2]
    draws = sum(weight for _, _, weight in entries)
    result = []
    for row in range(random_batch.ROWS):
        p, day = items[row], days[row]
        banned = {p, *case["history"][row]}
        if case["users"][row] > 1:
            banned |= set(items[case["users"] == case["users"][row]])
        score = case["row_vectors"] @ case["user_vectors"][row] / config.temperature
        positive = score[row_of(case, p, day)]
        own = case["negatives"][row][(kinds[row] == COARSE) | (kinds[row] == FINE)]
        hard = score[[row_of(case, item, day) for item in own if item not in banned]]
        shared = [(score[place], weight, expected[item]) for item, place, weight in entries if item not in banned]
        if not shared and not len(hard):
            result.append(0.0)
            continue
        if config.kind == "pointwise":
            parts = []
            if shared:
                weights = [w / (1.0 if config.correction == "none" else e) for _, w, e in shared]
                parts.append(
                    (1 - config.hard_share, np.average([np.log1p(np.exp(s)) for s, _, _ in shared], weights=weights))
                )
            if len(hard):
                parts.append((config.hard_share, np.mean(np.log1p(np.exp(hard)))))
            mean = sum(a * b for a, b in parts) / sum(a for a, _ in parts)
            result.append(np.log1p(np.exp(-positive)) + config.negatives_per_positive * mean)
        elif config.correction == "revisited":
            n = max(1.0, draws - sum(w for item, _, w in entries if item == p))
            odds = sum(w * np.exp(s) / e for s, w, e in shared) * max(1.0, draws - expected[p])
            partition = np.exp(positive) + odds / n + np.exp(hard).sum()
            result.append(-(1 - np.exp(positive) / partition) * (positive - np.log(odds + n * np.exp(hard).sum())))
        else:
            numerator = np.exp(positive) / (expected[p] if config.correction == "classic" else 1.0)
            others = sum(w * np.exp(s) / (1.0 if config.correction == "none" else e) for s, w, e in shared)
            result.append(-np.log(numerator / (numerator + others + np.exp(hard).sum())))
    return np.array(result)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(
    ("kind", "correction"), [*itertools.product(["listwise"], random_batch.CORRECTIONS), ("pointwise", "mns")]
)
def test_losses_of_items_with_several_versions_equal_the_oracle(kind: Any, correction: Any, once: bool) -> None:
    for seed in random_batch.SEEDS:
        case = make(seed)
        candidates = candidates_of(case, once)
        assert len(candidates.items_U) > len(candidates.items_U.unique()), (
            "at least one item has several versions among the candidates"
        )
        config = LossConfig(kind=kind, correction=correction, temperature=0.5, hard_share=0.3)
        np.testing.assert_allclose(losses_of(case, config, once), oracle(case, config, once), rtol=1e-5)


def test_expected_counts_are_per_item() -> None:
    """Two rows of different days have the same positive, in two versions. Neither version is a negative of either row."""
    versions, _ = Versions.build(np.array([3]), np.array([TUESDAY]))
    rows = BatchRows(
        torch.tensor([1, 1, 1]), torch.tensor([3, 3, 4]), torch.tensor([[4], [4], [3]]), torch.tensor([[1], [3], [1]]),
        torch.tensor([MONDAY, TUESDAY, MONDAY]),
    )  # fmt: skip
    candidates = collect_candidates(rows, rows, None, versions)
    assert candidates.items_U.tolist() == [3, 3, 4]
    assert candidates.rows_U.tolist() == [3, 4, 5]
    assert candidates.counts_U.tolist() == [2, 1, 2]
    assert candidates.item_counts_U.tolist() == [3, 3, 2]
    assert candidates.positive_B.tolist() == [0, 1, 2]
    assert sorted(zip(candidates.excluded_rows_E.tolist(), candidates.excluded_places_E.tolist())) == [(0, 1), (1, 0)]
    assert candidates.hard_BK.tolist() == [[0], [5], [0]]
    half = torch.full((6,), 0.5)
    expected_U = expected_counts(candidates, 3 * half[candidates.items_U], SamplingProbabilities(half, half, half))
    assert expected_U.tolist() == [2.5] * 3
    once = collect_candidates(rows, rows, None, versions, positives_once=True)
    assert once.counts_U.tolist() == [1.5, 0.5, 2], "its two versions share one entry"
    scores = torch.tensor([[0.9], [0.8], [0.5]])
    assert positive_ranks(torch.ones(3, 1), scores, candidates).tolist() == [0, 0, 1], (
        "an item with two versions counts once"
    )


# -- training ---------------------------------------------------------------------------------------------------------


def batch_of(rows: int) -> dict[str, torch.Tensor]:
    batch = {
        name: torch.from_numpy(values.astype(np.int64 if values.dtype.kind == "i" else np.float32))
        for name, values in toy_night.sample_rows(rows, seed=3).items()
    }
    return {**batch, "item_snapshot": torch.arange(rows) % 3 + MONDAY}


def step_losses(spec: TrainingSpec, earlier: bool) -> StepOutput:
    step = build_step(spec if earlier else spec.model_copy(update={"item_versions": []})).eval()
    return step(batch_of(80), 80)


@pytest.mark.parametrize("frequencies", ["exact", "streaming"])
@pytest.mark.parametrize("correction", random_batch.CORRECTIONS)
def test_earlier_versions_with_current_features_do_not_change_the_loss(
    tmp_path: Path, correction: str, frequencies: str
) -> None:
    same = {name: np.repeat(values[::2], 2, axis=0) for name, values in toy_night.item_rows().items()}
    same["valid_before"] = np.resize(np.array([TUESDAY, WEDNESDAY], np.int32), len(same["item_index"]))
    loss = {"correction": correction, "frequencies": frequencies}
    spec = toy_night.with_earlier_versions(
        toy_night.make_spec(tmp_path, [60, 60], loss=loss, model={"history_features": ["category"]}), same
    )
    versioned, plain = step_losses(spec, True), step_losses(spec, False)
    assert len(versioned.candidates.items_U) > len(plain.candidates.items_U)
    torch.testing.assert_close(versioned.losses_B, plain.losses_B, rtol=1e-4, atol=1e-5)


def test_training_reads_the_version_of_each_row(tmp_path: Path) -> None:
    """Training runs and continues on the next night. The item tower gets the version of each row."""
    spec = toy_night.with_earlier_versions(
        toy_night.make_spec(tmp_path, [60, 60], model={"history_features": ["category"]}), toy_night.earlier_versions()
    )
    result = train(spec)
    assert np.isfinite(result.epochs[-1].valid_loss)
    step = build_step(spec.model_copy(update={"warm_start": spec.output})).eval()
    output, batch = step(batch_of(80), 80), batch_of(80)
    gathered = step.catalogue.gather(output.candidates.rows_U)["item_category"][output.candidates.positive_B]
    now = dict(zip(toy_night.item_rows()["item_index"].tolist(), toy_night.item_rows()["item_category"].tolist()))
    old = {(3, MONDAY): 5, (3, TUESDAY): 3, (5, MONDAY): 4, (5, TUESDAY): 4} | {
        (GONE, day): 2 for day in (MONDAY, TUESDAY, WEDNESDAY)
    }
    rows = list(zip(batch["item_index"].tolist(), batch["item_snapshot"].tolist()))
    assert set(rows) & set(old)
    assert gathered.tolist() == [old.get(row, now.get(row[0])) for row in rows]

"""The cost of masks, logQ correction and frequency estimation: a full training step relative to one with a bare softmax.

    python -m benchmarks.loss            # last line JSON: full_over_bare, and the ratio of each correction

Both steps run the same towers on the same batches of 4,096 rows (ids, a category, tags, a history of 50; 1M items and 100,000
users with sparse gradients), with backward pass and optimiser. `bare` is the usual in-batch sampled softmax: cross entropy of
u v' / tau against the diagonal, without masks or correction. `full` is the step of a night, with streaming frequencies,
correction and all masks. The steps run in turns; each figure is a ratio of medians.

Positives follow Zipf's law (`zipf`), or are 4,096 distinct items (`distinct`), so that embedding each candidate only once
saves nothing. `full_over_bare` is the largest ratio over both and over all corrections.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.support import say
from model.config import LossConfig, ModelConfig, StreamingConfig, TrainingConfig
from model.data.catalogue import Catalogue, SamplingProbabilities
from model.loss.streaming_frequency import FrequencyEstimator
from model.network.embeddings import Batch
from model.network.two_tower import TwoTower
from model.training.optimisers import build_optimizers, clip_gradients
from model.training.step import RetrievalStep
from pipelines.contract.schema import FeatureSchema

BATCH, HISTORY, TAGS = 4096, 50, 4
ITEMS, USERS = 1_000_000, 100_000
TAU = 0.07
SCHEMA = {
    "version": 1,
    "user": [
        {"name": "user_id", "kind": "id", "column": "user_index", "vocabulary": "user_id", "size": USERS},
        {"name": "age", "kind": "categorical", "column": "user_age", "vocabulary": "user.age", "size": 10},
    ],
    "item": [
        {"name": "item_id", "kind": "id", "column": "item_index", "vocabulary": "item_id", "size": ITEMS},
        {"name": "category", "kind": "categorical", "column": "item_category", "vocabulary": "category", "size": 500},
        {
            "name": "tags", "kind": "multi_categorical", "column": "item_tags", "vocabulary": "tags", "size": 5000,
            "length": TAGS,
        },
    ],
    "history": {
        "name": "history", "kind": "history", "column": "history", "vocabulary": "item_id", "size": ITEMS,
        "length": HISTORY,
    },
}  # fmt: skip


def batches(count: int, seed: int, distinct: bool) -> list[Batch]:
    """Batches whose positives and histories follow Zipf's law. `distinct`: all positives of a batch are different items."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        items = np.minimum(ITEMS - 3, (ITEMS ** rng.random((BATCH, 1 + HISTORY))).astype(np.int64)) + 2
        if distinct:
            items[:, 0] = rng.choice(np.arange(2, ITEMS), BATCH, replace=False)
        result.append(
            {
                "user_index": torch.from_numpy(rng.integers(2, USERS, BATCH)),
                "user_age": torch.from_numpy(rng.integers(2, 10, BATCH)),
                "item_index": torch.from_numpy(items[:, 0].copy()),
                "history": torch.from_numpy(items[:, 1:].copy()),
                "weight": torch.ones(BATCH),
                "negatives": torch.zeros(BATCH, 1, dtype=torch.int64),
                "negative_kinds": torch.zeros(BATCH, 1, dtype=torch.int64),
            }
        )
    return result


def make_step(loss: LossConfig) -> RetrievalStep:
    """A step with a new model, so that steps do not share caches."""
    torch.manual_seed(0)
    schema = FeatureSchema.model_validate(SCHEMA)
    rng = np.random.default_rng(1)
    index = np.arange(2, ITEMS)
    catalogue = Catalogue(
        schema,
        {
            "item_index": index,
            "item_category": rng.integers(2, 500, len(index)),
            "item_tags": rng.integers(2, 5000, (len(index), TAGS)),
        },
    )
    towers = TwoTower(schema, ModelConfig(hidden=[128], dim=64), sparse_rows=50_000)
    q = SamplingProbabilities(*(torch.full((ITEMS,), 1 / ITEMS) for _ in range(3)))
    streaming = loss.frequencies == "streaming" and loss.correction != "none"
    frequency = FrequencyEstimator(StreamingConfig(slots=2 * ITEMS), ITEMS / BATCH, BATCH) if streaming else None
    return RetrievalStep(towers, catalogue, q, loss, frequency)


def bare_loss(step: RetrievalStep, batch: Batch) -> Tensor:
    """In-batch softmax without masks and correction."""
    items_Bd = step.towers.item_vectors(step.catalogue.gather(batch["item_index"]))
    logits_BB = step.towers.user_vectors(batch) @ items_Bd.T / TAU
    return F.cross_entropy(logits_BB, torch.arange(BATCH))


def full_loss(step: RetrievalStep, batch: Batch) -> Tensor:
    """The loss of a night."""
    return step(batch, BATCH).loss


def measure(losses: dict[str, LossConfig | None], steps: int, distinct: bool) -> dict[str, list[float]]:
    """Seconds of each step, by name of the loss. None is the bare softmax. Losses run in turns, batch by batch."""
    models = {name: make_step(loss or LossConfig(correction="none", temperature=TAU)) for name, loss in losses.items()}
    optimizers = {
        name: build_optimizers(step, TrainingConfig(embedding_rows_sparse=50_000)) for name, step in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number, batch in enumerate(batches(steps + 2, seed=2, distinct=distinct)):
        for name, step in models.items():
            loss_of: Callable[[RetrievalStep, Batch], Tensor] = full_loss if losses[name] else bare_loss
            started = time.perf_counter()
            loss = loss_of(step, batch)
            for optimizer in optimizers[name]:
                optimizer.zero_grad()
            loss.backward()
            clip_gradients(step.parameters(), [], 10.0)
            for optimizer in optimizers[name]:
                optimizer.step()
            if number >= 2:  # the first two steps warm up
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--steps", type=int, default=15)
    options = flags.parse_args()
    losses: dict[str, LossConfig | None] = {"bare": None}
    losses |= {
        name: LossConfig(temperature=TAU, correction=name, frequencies="streaming")
        for name in ("classic", "mns", "revisited")
    }
    losses["classic, exact"] = LossConfig(temperature=TAU, correction="classic")
    ratios: dict[str, dict[str, float]] = {}
    for positives in ("zipf", "distinct"):
        seconds = measure(losses, options.steps, distinct=positives == "distinct")
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, value in medians.items():
            say(f"{positives:8} {name:15} {1000 * value:6.1f} ms per step, {value / medians['bare']:.2f} of bare")
        ratios[positives] = {
            name: round(value / medians["bare"], 3) for name, value in medians.items() if name != "bare"
        }
    full = max(ratios[positives][name] for positives in ratios for name in ("classic", "mns", "revisited"))
    print(json.dumps({"full_over_bare": full, **ratios}))


if __name__ == "__main__":
    main()

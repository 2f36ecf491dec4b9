"""Tests whether sampled softmax learns the same as full softmax, on a small catalogue with a known truth and skewed samplers.

    python -m benchmarks.consistency            # prints a table, last line JSON; draws docs/plots/consistency.png

There are 200 items and 16 kinds of users; p(item | kind) is a known softmax. The model is a table of logits, so it can
represent the truth exactly. Positives are drawn from the truth. The candidates of a batch are its positives, a uniform pool,
and a pool that follows Zipf's law over a random order of the items. Two measures of the result: KL(truth || learned), and the
mean over kinds of log learned - log truth, by how often an item was sampled.

Shapes: R kinds of users, M items, B rows.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.support import PLOTS, panels, save, say
from model.config import LossConfig, StreamingConfig
from model.data.catalogue import SamplingProbabilities
from model.loss.candidates import BatchRows, collect_candidates
from model.loss.logq import expected_counts
from model.loss.objective import row_losses
from model.loss.streaming_frequency import FrequencyEstimator
from pipelines.contract.indices import DEFAULT
from pipelines.contract.negative_kinds import POPULARITY, UNIFORM

ITEMS, KINDS = 200, 16
BATCH, UNIFORM_DRAWS, POPULARITY_DRAWS = 256, 64, 192
FULL = "full softmax"
CORRECTIONS = ("none", "classic", "mns", "revisited")
FIRST = 2  # index of the first item: 0 is padding, 1 is default


@dataclass(frozen=True)
class Problem:
    """The true distribution and the samplers."""

    log_truth_RM: Tensor
    q: SamplingProbabilities

    @classmethod
    def make(cls, seed: int) -> "Problem":
        """The truth is a popularity shared by all kinds of users, plus a taste of each kind."""
        rng = np.random.default_rng(seed)
        logits_RM = rng.normal(0, 0.7, ITEMS) + rng.normal(0, 0.7, (KINDS, ITEMS))
        log_truth_RM = torch.from_numpy(logits_RM).float().log_softmax(1)
        zipf_M = 1 / rng.permutation(np.arange(1, ITEMS + 1))
        reserved = torch.zeros(FIRST)
        return cls(
            log_truth_RM,
            SamplingProbabilities(
                torch.cat([reserved, log_truth_RM.exp().mean(0)]),
                torch.cat([reserved, torch.full((ITEMS,), 1 / ITEMS)]),
                torch.cat([reserved, torch.from_numpy(zipf_M / zipf_M.sum()).float()]),
            ),
        )

    def expected(self) -> Tensor:
        """Expected number of entries [M] of each item in the candidates of a batch."""
        q = self.q
        return (BATCH * q.in_batch_M + UNIFORM_DRAWS * q.uniform_M + POPULARITY_DRAWS * q.popularity_M)[FIRST:]


def learn(problem: Problem, name: str, steps: int, seed: int, frequencies: str = "exact") -> Tensor:
    """Log probabilities [R, M] of the table after training. `name`: FULL, or the correction of a sampled softmax."""
    rng = torch.Generator().manual_seed(seed)
    table_MR = nn.Parameter(torch.zeros(ITEMS + FIRST, KINDS))
    optimizer = torch.optim.Adam([table_MR], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    config = LossConfig(temperature=1.0, correction="none" if name == FULL else name)
    frequency = (
        FrequencyEstimator(StreamingConfig(hashes=3), ITEMS / BATCH, BATCH) if frequencies == "streaming" else None
    )
    truth_RM = problem.log_truth_RM.exp()
    for _ in range(steps):
        kinds_B = torch.randint(KINDS, (BATCH,), generator=rng)
        items_B = FIRST + torch.multinomial(truth_RM[kinds_B], 1, generator=rng).squeeze(1)
        users_BR = F.one_hot(kinds_B, KINDS).float()
        if name == FULL:
            loss = F.cross_entropy(users_BR @ table_MR[FIRST:].T, items_B - FIRST)
        else:
            rows = _rows(problem, items_B, rng)
            candidates = collect_candidates(rows, rows, None, positives_once=frequency is not None)
            expected_U = None
            if config.correction != "none":
                exact_U = BATCH * problem.q.in_batch_M[candidates.items_U]
                in_batch_U = frequency.probabilities(candidates.items_U) if frequency else exact_U
                expected_U = expected_counts(candidates, in_batch_U, problem.q)
            if frequency:
                frequency.update(items_B)
            hard_BKR = table_MR[candidates.hard_BK]
            losses_B, _ = row_losses(
                users_BR, table_MR[candidates.items_U], hard_BKR, candidates, expected_U, 1.0, config
            )
            loss = losses_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return table_MR.detach()[FIRST:].T.log_softmax(1)


def _rows(problem: Problem, items_B: Tensor, rng: torch.Generator) -> BatchRows:
    """A batch of unknown users, so that only accidental hits are masked. The pools are spread over its rows."""
    uniform = torch.multinomial(problem.q.uniform_M, UNIFORM_DRAWS, replacement=True, generator=rng)
    popularity = torch.multinomial(problem.q.popularity_M, POPULARITY_DRAWS, replacement=True, generator=rng)
    negatives = torch.cat([uniform, popularity]).reshape(BATCH, -1)
    kinds = torch.tensor([UNIFORM] * UNIFORM_DRAWS + [POPULARITY] * POPULARITY_DRAWS).reshape(BATCH, -1)
    return BatchRows(torch.full_like(items_B, DEFAULT), items_B, negatives, kinds)


def divergence(problem: Problem, learned_RM: Tensor) -> float:
    """Mean over kinds of KL(truth || learned), in nats."""
    truth_RM = problem.log_truth_RM
    return float((truth_RM.exp() * (truth_RM - learned_RM)).sum(1).mean())


def tilt(problem: Problem, learned_RM: Tensor) -> float:
    """Slope of log learned - log truth over log expected entries: 0 if sampling has no effect, -1 without any correction."""
    error_M = (learned_RM - problem.log_truth_RM).mean(0).numpy()
    return float(np.polyfit(problem.expected().log().numpy(), error_M, 1)[0])


def plot(problem: Problem, learned: dict[str, Tensor], path: Path) -> None:
    """Plot the error of the learned log probability by how often an item is sampled, one panel per loss."""
    figure, axes = panels(len(learned), (3 * len(learned), 3.2))
    for panel, (name, log_RM) in zip(axes, learned.items(), strict=True):
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.scatter(problem.expected(), (log_RM - problem.log_truth_RM).mean(0), s=8)
        panel.set(
            title=f"{name}\nKL {divergence(problem, log_RM):.4f}", xscale="log", xlabel="expected entries per batch"
        )
    axes[0].set_ylabel("log learned - log truth")
    save(figure, path)


def main() -> None:
    """Train with every loss, print the table and draw the plot."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--steps", type=int, default=6000)
    flags.add_argument("--seed", type=int, default=1)
    options = flags.parse_args()
    problem = Problem.make(options.seed)
    learned, figures = {}, {}
    runs = [(name, name, "exact") for name in (FULL, *CORRECTIONS)] + [("mns, streaming", "mns", "streaming")]
    for title, name, frequencies in runs:
        log_RM = learned[title] = learn(problem, name, options.steps, options.seed, frequencies)
        figures[title] = {"kl": divergence(problem, log_RM), "tilt": tilt(problem, log_RM)}
        say(f"{title:15} KL {figures[title]['kl']:.4f}, tilt {figures[title]['tilt']:+.3f}")
    plot(problem, learned, PLOTS / "consistency.png")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""Repeats the simulation of frequency estimation of Yi et al. (RecSys 2019, section 6.1) with our estimator.

    python -m benchmarks.frequency            # two tables, last line JSON; draws docs/plots/frequency.png

There are 1,000 items. Each step draws 128 distinct items in proportion to q ~ i^2, and after step 10,000 to q ~ (999 - i)^2.
The error of a step is sum |estimate - 128 q| / (2 x 128). Arrays start at A = 0, B = 100. A plateau is the mean error of the
last 2,000 steps before the change (or before the end), averaged over runs with different seeds.

`paper` is read from figures 4 and 5 of the paper. Figure 5 does not give alpha; 0.05 fits best. `rerun` is from an independent
implementation. `warm_up` is an addition of Nightjar: the first gaps of a slot get full weight.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.support import PLOTS, panels, save, say
from model.config import StreamingConfig
from model.loss.streaming_frequency import FrequencyEstimator

ITEMS, BATCH, STEPS, CHANGE = 1000, 128, 20_000, 10_000
INITIAL_GAP = 100
MEASURE_EVERY, PLATEAU = 50, 2000  # steps
ALPHAS = {
    0.01: {"paper": 0.10, "rerun": 0.113},
    0.05: {"paper": 0.12, "rerun": 0.140},
    0.1: {"paper": 0.145, "rerun": 0.165},
}
ALPHA_SLOTS = (1, 5000)
HASHES = {(1, 4000): 0.165, (2, 2000): 0.117, (4, 1000): 0.097}
HASHES_ALPHA = 0.05


def simulate(config: StreamingConfig, seed: int, steps: int = STEPS, change: int = CHANGE) -> np.ndarray:
    """Errors [steps / MEASURE_EVERY] of an estimator during one run."""
    rng = np.random.default_rng(seed)
    ids = int(rng.integers(2, 2**30)) + torch.arange(ITEMS)  # consecutive, like the indices of a vocabulary
    estimator = FrequencyEstimator(config, INITIAL_GAP, BATCH)
    weights = np.arange(ITEMS) ** 2.0
    with np.errstate(divide="ignore"):
        phases = [
            (np.log(q), BATCH * torch.from_numpy(q)) for q in (weights / weights.sum(), weights[::-1] / weights.sum())
        ]
    errors = []
    for step in range(1, steps + 1):
        log_q, expected = phases[step > change]
        # Gumbel top-k: draws without replacement in proportion to q.
        batch = np.argpartition(-(log_q + rng.gumbel(size=ITEMS)), BATCH)[:BATCH]
        estimator.update(ids[torch.from_numpy(batch)])
        if step % MEASURE_EVERY == 0:
            errors.append(float((estimator.probabilities(ids) - expected).abs().sum()) / (2 * BATCH))
    return np.array(errors)


def plateaus(errors: np.ndarray) -> tuple[float, float]:
    """Mean error at the end of the first phase and of the second phase."""
    width, middle = PLATEAU // MEASURE_EVERY, CHANGE // MEASURE_EVERY
    return float(errors[middle - width : middle].mean()), float(errors[-width:].mean())


def _mean_curve(name: str, config: dict[str, Any], seeds: int) -> np.ndarray:
    curve = np.mean([simulate(StreamingConfig(**config), seed) for seed in range(seeds)], axis=0)
    first, second = plateaus(curve)
    say(f"{name}: {first:.3f} before the change, {second:.3f} after it")
    return curve


def _plot(alphas: dict[str, np.ndarray], hashes: dict[str, np.ndarray], path: Path) -> None:
    figure, axes = panels(2, (11, 4))
    titles = ("one hash function of 5,000 slots", f"slots and hash functions, alpha {HASHES_ALPHA}")
    for panel, curves, title in zip(axes, (alphas, hashes), titles, strict=True):
        for name, curve in curves.items():
            dashes = "--" if "warm" in name else "-"
            panel.plot(np.arange(1, len(curve) + 1) * MEASURE_EVERY, curve, dashes, label=name, linewidth=1)
        panel.set(title=title, xlabel="step", ylim=(0, 0.6))
        panel.legend()
    axes[0].set_ylabel("error")
    save(figure, path)


def main() -> None:
    """Run the simulations, print both tables, draw both plots."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seeds", type=int, default=3)
    options = flags.parse_args()
    torch.set_num_threads(1)  # the arrays are too small for more threads
    alphas, hashes, figures = {}, {}, {}
    for alpha, published in ALPHAS.items():
        config = {"alpha": alpha, "hashes": ALPHA_SLOTS[0], "slots": ALPHA_SLOTS[1]}
        for warm_up in (False, True):
            name = f"alpha {alpha}{', warm-up' if warm_up else ''}"
            alphas[name] = curve = _mean_curve(name, {**config, "warm_up": warm_up}, options.seeds)
            first, second = plateaus(curve)
            figures[name] = {
                "plateau": first,
                "after": second,
                "step_500": float(curve[500 // MEASURE_EVERY - 1]),
                **published,
            }
    for (count, slots), paper in HASHES.items():
        name = f"(m, H) = ({count}, {slots})"
        config = {"alpha": HASHES_ALPHA, "hashes": count, "slots": slots, "warm_up": False}
        hashes[name] = curve = _mean_curve(name, config, options.seeds)
        first, second = plateaus(curve)
        figures[name] = {"plateau": first, "after": second, "paper": paper, "rerun": paper}
    for name, row in figures.items():
        row["over_rerun"] = row["plateau"] / row["rerun"]
        say(f"{name:22} " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    _plot(alphas, hashes, PLOTS / "frequency.png")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

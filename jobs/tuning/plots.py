"""The plots of a study, for MLflow."""

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")  # jobs run without a display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from jobs.tuning.plan import CONFIG
from jobs.tuning.study import KIND

PANELS = 6  # settings that are shown


def history(trials: list[FrozenTrial], k: int) -> Figure:
    """Recall@k of each trial in order, the best so far, and the config's figure. Pruned trials at their last pass."""
    figure, axes = plt.subplots(figsize=(8, 4))
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    numbers, values = [trial.number for trial in completed], [float(trial.value or 0.0) for trial in completed]
    axes.scatter(numbers, values, label="completed")
    axes.step(numbers, np.maximum.accumulate(values), where="post", label="best so far")
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
    axes.scatter([trial.number for trial in pruned], last, marker="x", color="grey", label="pruned")
    for value in [trial.value for trial in completed if trial.user_attrs.get(KIND) == CONFIG][:1]:
        axes.axhline(value, linestyle="--", color="firebrick", label="config")
    axes.legend()
    axes.set(xlabel="trial", ylabel=f"Recall@{k}", title="Trials")
    return _done(figure)


def slices(trials: list[FrozenTrial], k: int) -> Figure | None:
    """Recall@k by value of the settings whose values differ most in it. None with fewer than three completed trials."""
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(completed) < 3:
        return None
    names = sorted({name for trial in completed for name in trial.params}, key=lambda name: -_spread(completed, name))
    figure, grid = plt.subplots(2, PANELS // 2, figsize=(12, 6), sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names[:PANELS]):
        _slice(axes, completed, name)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"Recall@{k}")
    return _done(figure)


def _spread(trials: list[FrozenTrial], name: str) -> float:
    """How much the figure depends on a setting: its correlation with numbers, or the share of variance between choices."""
    values = np.array([trial.value for trial in trials], float)
    settings = [trial.params.get(name) for trial in trials]
    if len({str(setting) for setting in settings}) < 2 or not values.std():
        return 0.0
    if all(isinstance(setting, float) for setting in settings):
        return float(abs(np.corrcoef(np.log(np.array(settings, float)), values)[0, 1]) ** 2)
    groups = [values[[s == choice for s in settings]] for choice in dict.fromkeys(settings)]
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups) / len(values)
    return float(between / values.var()) * (1 - (len(groups) - 1) / len(values))


def _slice(axes: Axes, trials: list[FrozenTrial], name: str) -> None:
    values = [float(trial.value or 0.0) for trial in trials]
    settings: list[Any] = [trial.params.get(name) for trial in trials]
    if all(isinstance(setting, int | float) and not isinstance(setting, bool) for setting in settings):
        axes.scatter(settings, values)
        if all(isinstance(setting, float) and setting > 0 for setting in settings):
            axes.set_xscale("log")
    else:
        labels = [_label(setting) for setting in settings]
        choices = list(dict.fromkeys(labels))
        axes.scatter([choices.index(label) for label in labels], values)
        axes.set_xticks(range(len(choices)), choices, rotation=20)
    axes.set_title(name)


def _label(stored: Any) -> str:
    """A choice as a short text."""
    if isinstance(stored, str) and stored.startswith("{"):
        return ", ".join(json.loads(stored))[:12] + "…"
    return str(stored)[:16]


def _done(figure: Figure) -> Figure:
    figure.tight_layout()
    plt.close(figure)
    return figure

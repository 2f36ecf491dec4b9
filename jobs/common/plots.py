"""The plots of a night, for MLflow."""

from typing import Any

import matplotlib

matplotlib.use("Agg")  # jobs run without a display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def loss_curve(points: list[dict[str, float]]) -> Figure:
    """Loss by step, and those of self-supervision and of the order of stages if there are any."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in ("loss", "self_loss", "stage_loss"):
        if any(point[name] for point in points):
            axes.plot([p["step"] for p in points], [p[name] for p in points], label=name)
    axes.legend()
    axes.set(xlabel="step", ylabel="loss", title="Training loss")
    return _done(figure)


def tower_weights(weights: dict[str, float]) -> Figure:
    """The weight of each field or channel (SIDE.NAME) in its tower."""
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.3 * len(weights)))
    axes.barh(list(weights)[::-1], list(weights.values())[::-1])
    axes.set(xlabel="mean weight", title="weights of the towers")
    return _done(figure)


def heat_map(values: np.ndarray, names: list[str], title: str) -> Figure:
    """A heat map of a square table with its numbers. Colours are scaled per row."""
    size = 2.5 + 0.7 * len(names)
    figure, axes = plt.subplots(figsize=(size, size * 0.85))
    off_diagonal = np.where(np.eye(len(names), dtype=bool), 0, values)
    shade = off_diagonal / np.maximum(off_diagonal.max(axis=1, keepdims=True), 1e-9)
    axes.imshow(shade, cmap="Blues")
    for row, column in np.ndindex(values.shape):
        colour = "white" if shade[row, column] > 0.6 else "black"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title)
    return _done(figure)


def recall_by_third(rows: list[dict[str, Any]], k: int) -> Figure:
    """Recall@k of each model, over all targets and by popularity third, with 95% intervals."""
    slices = ["all", "head", "mid", "tail"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 4))
    width = 0.8 / max(len(models), 1)
    for number, model in enumerate(models):
        by_slice = {r["slice"]: r for r in rows if r["model"] == model and r["metric"] == "recall" and r["k"] == k}
        values = np.array([by_slice[s]["value"] if s in by_slice else np.nan for s in slices], float)
        low = np.array([by_slice[s]["low"] if s in by_slice else np.nan for s in slices], float)
        high = np.array([by_slice[s]["high"] if s in by_slice else np.nan for s in slices], float)
        places = np.arange(len(slices)) + (number - (len(models) - 1) / 2) * width
        bars = np.nan_to_num(np.array([values - low, high - values]))
        axes.bar(places, values, width, label=model, yerr=np.maximum(bars, 0), capsize=2)
    axes.set_xticks(range(len(slices)), slices)
    axes.set(ylabel=f"Recall@{k}", title=f"Recall@{k} by popularity third (95% intervals)")
    axes.legend()
    return _done(figure)


def popularity_before_after(before: np.ndarray, after: np.ndarray) -> Figure:
    """Share of positives by item, sorted by popularity, before and after down-sampling."""
    figure, axes = plt.subplots(figsize=(7, 4))
    order = np.argsort(-before, kind="stable")
    ranks = np.arange(1, len(before) + 1)
    for counts, label in ((before, "before (window)"), (after, "after (this night's rows)")):
        share = counts[order].astype(float)
        axes.plot(ranks, np.cumsum(share) / max(share.sum(), 1.0), label=label)
    axes.set_xscale("log")
    axes.set(
        xlabel="items, most popular first", ylabel="cumulative share of positives", title="Popularity down-sampling"
    )
    axes.legend()
    return _done(figure)


def negatives_by_kind(kinds: dict[str, int], quotas: dict[str, int], rows: int) -> Figure:
    """Negatives per row by kind, and the quota."""
    names = list(quotas)
    figure, axes = plt.subplots(figsize=(6, 4))
    places = np.arange(len(names))
    axes.bar(places - 0.2, [kinds.get(name, 0) / max(rows, 1) for name in names], 0.4, label="drawn")
    axes.bar(places + 0.2, [quotas[name] for name in names], 0.4, label="quota")
    axes.set_xticks(places, names)
    axes.set(ylabel="negatives per row", title="Negatives by kind")
    axes.legend()
    return _done(figure)


def input_rows(by_day: dict[str, dict[str, int]], limits: tuple[float | None, float | None]) -> Figure:
    """Rows of each input by day (table -> ds -> rows), with the range around the earlier median that the checks allow."""
    figure, axes = plt.subplots(len(by_day), 1, figsize=(8, 2.5 * len(by_day)), squeeze=False)
    for (table, days), panel in zip(by_day.items(), axes[:, 0]):
        names = sorted(days)
        panel.bar(names, [days[name] for name in names], width=0.6)
        if len(names) > 1:
            usual = float(np.median([days[name] for name in names[:-1]]))
            for limit in limits:
                if limit is not None:
                    panel.axhline(limit * usual, color="firebrick", linewidth=1, linestyle="--")
        panel.set(ylabel="rows", title=table)
        panel.tick_params(axis="x", rotation=30)
    return _done(figure)


def null_shares(shares: dict[str, dict[str, float]]) -> Figure:
    """Share of nulls by input and column (table -> column -> share)."""
    rows = [(f"{table}.{name}", share) for table, columns in shares.items() for name, share in sorted(columns.items())]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.3 * len(rows)))
    axes.barh([name for name, _ in rows][::-1], [share for _, share in rows][::-1])
    axes.set(xlim=(0, 1), xlabel="share of nulls", title="Nulls")
    return _done(figure)


def index_sweep(points: list[dict[str, float]], exact_seconds: float, factory: str) -> Figure:
    """Recall against exact search, and speed. Each point is a setting (value, recall, seconds), labelled with its value."""
    figure, axes = plt.subplots(figsize=(7, 4))
    faster, recall = [exact_seconds / point["seconds"] for point in points], [point["recall"] for point in points]
    axes.plot(faster, recall, marker="o")
    for x, y, point in zip(faster, recall, points):
        axes.annotate(str(point["value"]), (x, y), fontsize=8)
    axes.set(xscale="log", xlabel="times as fast as exact search", ylabel="recall", title=f"{factory}, by its setting")
    return _done(figure)


def _done(figure: Figure) -> Figure:
    figure.tight_layout()
    plt.close(figure)  # otherwise pyplot keeps every figure of the night in memory
    return figure

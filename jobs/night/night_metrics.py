"""The metrics of an evaluation on the run of a night, which the table of nights shows."""

import math
from collections.abc import Mapping
from typing import Any

from jobs.night.baselines import BASELINES
from jobs.night.margin import MODEL, Margin

DECIMALS = 4


def evaluation_metrics(rows: Mapping[str, Mapping[str, Any]], k: int, margin: Margin | None) -> dict[str, float]:
    """Recall@k of the model with its interval, of the baselines, and the margin over the best of them.

    `rows`: model -> its row of `evaluations` for Recall@k over all targets.
    """
    values: dict[str, float] = {}
    if row := rows.get(MODEL):
        values[f"eval/recall_at_{k}"] = row["value"]
        values |= {f"eval/recall_at_{k}_{end}": row[end] for end in ("low", "high")}
    values |= {f"eval/{name}": rows[name]["value"] for name in (*BASELINES, "best_reachable") if name in rows}
    if margin:
        low = math.nan if margin.low is None else margin.low
        values |= {"eval/best_baseline": margin.baseline_recall, "eval/above_best_baseline": margin.difference}
        values["eval/above_best_baseline_low"] = low
    return rounded(values)


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Values as a table shows them. The UI does not round; the runs of the steps have the exact values."""
    return {name: round(value, DECIMALS) for name, value in values.items()}

"""Sets a night's model beside the best simple baseline: the best window of popularity, and whether the model is certainly
better.
"""

import re
from typing import Any

import numpy as np
import pandas as pd

from jobs.night.margin import MODEL, Margin
from model.evaluation.ranking_metrics import bootstrap_interval

POPULARITY = "popularity"
BASELINES = (POPULARITY, "item_cf")
WINDOW = re.compile(r"popularity_(\d+)d")  # the name of popularity over one window, in the scores of users


def with_best_popularity(scored: pd.DataFrame, k: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Keep one window of popularity, the one with the highest Recall@k, and name it `popularity`.

    It is chosen on the very targets that it is measured on, so the baseline is rather too strong than too weak. Of equal
    windows the shortest is kept. Returns the rows, and facts: the days of that window, and the recall of every window.

    `scored`: from `score_users`.
    """
    means = _recalls(scored, k).mean()
    recalls = {int(match[1]): float(means[name]) for name in means.index if (match := WINDOW.fullmatch(str(name)))}
    best = max(recalls, key=lambda days: (recalls[days], -days))
    others = [f"popularity_{days}d" for days in recalls if days != best]
    rows = scored[~scored["model"].isin(others)]
    rows = rows.assign(model=rows["model"].replace(f"popularity_{best}d", POPULARITY))
    return rows, {"days": best, "recall": {str(days): recall for days, recall in sorted(recalls.items())}}


def margin_of(scored: pd.DataFrame, k: int, samples: int, seed: int) -> Margin:
    """Compare the model with the baseline that has the highest Recall@k. `samples`: number of bootstrap resamples."""
    by_user = _recalls(scored, k)
    means = by_user.mean()
    baseline = max(BASELINES, key=lambda name: float(means[name]))
    low, high = bootstrap_interval((by_user[MODEL] - by_user[baseline]).to_numpy(np.float64), samples, seed)
    return Margin(
        k=k,
        users=len(by_user),
        baseline=baseline,
        model_recall=float(means[MODEL]),
        baseline_recall=float(means[baseline]),
        difference=float(means[MODEL] - means[baseline]),
        low=low if samples else None,
        high=high if samples else None,
    )


def _recalls(scored: pd.DataFrame, k: int) -> pd.DataFrame:
    """Recall@k over all targets: a row per user, a column per model."""
    rows = scored[(scored["slice"] == "all") & (scored["k"] == k)]
    return rows.pivot(index="user_id", columns="model", values="recall").sort_index()

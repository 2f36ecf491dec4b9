"""Sets a night's model beside the best simple baseline: the best window of popularity, and whether the model is certainly
better.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from model.evaluation.ranking_metrics import bootstrap_interval

MODEL, POPULARITY = "two_tower", "popularity"
BASELINES = (POPULARITY, "item_cf")
WINDOW = re.compile(r"popularity_(\d+)d")  # the name of popularity over one window, in the scores of users


@dataclass(frozen=True)
class Margin:
    """Recall@k of the model minus that of the best baseline, with a 95% interval (paired bootstrap over users).

    `low` and `high` are None if evaluation.bootstrap_samples is 0.
    """

    k: int
    users: int
    baseline: str  # the one with the highest recall
    model_recall: float
    baseline_recall: float
    difference: float
    low: float | None
    high: float | None

    @property
    def certain(self) -> bool:
        """Whether the model is better with certainty: the whole interval is above 0."""
        return self.low is not None and self.low > 0

    def line(self) -> str:
        """The comparison as one line, for the log and the report."""
        interval = "without interval: evaluation.bootstrap_samples is 0"
        if self.low is not None and self.high is not None:
            interval = f"[{self.low:+.4f}, {self.high:+.4f}]"
        return (
            f"{MODEL} is {'' if self.certain else 'not '}certainly better than {self.baseline}: Recall@{self.k} "
            f"{self.model_recall:.4f} against {self.baseline_recall:.4f}, difference {self.difference:+.4f} {interval} over "
            f"{self.users:,} users"
        )

    def metrics(self) -> dict[str, float]:
        """The difference and its interval, for MLflow. NaN without interval."""
        name = f"{MODEL}.recall_at_{self.k}.above_best_baseline"
        ends = {"low": self.low, "high": self.high}
        return {name: self.difference} | {f"{name}.{end}": np.nan if v is None else v for end, v in ends.items()}

    def tags(self) -> dict[str, str]:
        """The best baseline, and whether the model is certainly better, for MLflow."""
        return {"best_baseline": self.baseline, "certainly_better": str(self.certain).lower()}


def margin_in(facts: dict[str, Any]) -> Margin | None:
    """The margin in the facts of table `evaluations`; None if an earlier version wrote them."""
    return Margin(**facts["margin"]) if "margin" in facts else None


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

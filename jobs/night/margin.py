"""How much better a night's model is than the best simple baseline, and whether that is certain."""

import math
from dataclasses import dataclass
from typing import Any

MODEL = "two_tower"


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
        return {name: self.difference} | {f"{name}.{end}": math.nan if v is None else v for end, v in ends.items()}

    def tags(self) -> dict[str, str]:
        """The best baseline, and whether the model is certainly better, for MLflow."""
        return {"best_baseline": self.baseline, "certainly_better": str(self.certain).lower()}


def margin_in(facts: dict[str, Any]) -> Margin | None:
    """The margin in the facts of table `evaluations`; None if an earlier version wrote them."""
    return Margin(**facts["margin"]) if "margin" in facts else None

"""Settings of a release: its index and its recency prior."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from model.index_factory import PATTERN
from pipelines.contract.strict import StrictModel


class IndexConfig(StrictModel):
    """The Faiss index of a release."""

    factory: str | None = Field(
        None,
        pattern=PATTERN,
        description="Flat (exact), IVFn,Flat, IVFn,SQ8, IVFn,PQm or HNSWm; null: chosen by the number of items.",
    )
    recall_target: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Target recall against exact search. The release uses the smallest nprobe or efSearch that reaches it at "
        "the lower confidence bound.",
    )
    recall_at: PositiveInt = Field(100, description="Items per user in this recall. Use as many as you serve.")
    sweep_queries: PositiveInt = Field(
        1000,
        description="Users whose vectors measure this recall, chosen by hash. 1000 give it to about half a percent.",
    )


class PriorConfig(StrictModel):
    """The recency prior: items with many recent positives score higher. A night chooses its half-life and its strength."""

    beta: list[NonNegativeFloat] = Field(
        [0.0, 0.25, 0.5, 1.0, 2.0],
        min_length=1,
        description="Strengths to try: factors of log p_recent in the score. Another one than the one nearest to 1 (without "
        "loss.lift: than the smallest) is chosen only if its gain on the held-out events is certain. [0]: no prior.",
    )
    half_life_days: list[PositiveFloat] = Field(
        [3.0, 7.0, 14.0, 30.0, 90.0, 365.0, 730.0, 3650.0],
        min_length=1,
        description="Half-lives of the counts to try, in days. A night takes the one whose counts predict the positives of "
        "the later days of the window best. 3650: all days of most windows count alike. With evaluation.split: last_positive "
        "it takes the longest, because the last positives of users are of any time.",
    )
    unseen_count: PositiveFloat = Field(
        0.5,
        description="Added to the recent count of each item, so that an item without recent positives has the probability of "
        "this many of the window's positives. Smaller values push such items further down.",
    )

    @field_validator("beta", "half_life_days")
    @classmethod
    def _each_once(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError("a value is listed twice")
        return sorted(values)

    @property
    def is_on(self) -> bool:
        """Whether a night may choose a prior. Vectors then have one more component, also on nights that choose beta 0."""
        return max(self.beta) > 0

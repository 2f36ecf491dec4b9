"""What a training run is told and what it tells back. Both are JSON, so a run may be another process or machine."""

from typing import Any

from pydantic import Field, PositiveInt

from model.config import LossConfig, ModelConfig, TrainingConfig
from model.data.petastorm_reader import SampleFile
from model.training.health import Health
from pipelines.contract.schema import FeatureSchema
from pipelines.contract.strict import StrictModel


class TrainingSpec(StrictModel):
    """Everything that decides a run."""

    features: FeatureSchema = Field(description="Facts `schema` of the samples' manifest.")
    train: list[SampleFile] = Field(description="Facts `splits.train.groups`, with whole URLs.")
    valid: list[SampleFile] = Field([], description="Facts `splits.valid.groups`; empty: no validation.")
    item_features: list[str] = Field(description="Parquet files of `item_features`.")
    item_versions: list[str] = Field(
        [],
        description="Parquet files of `item_versions`, where it has rows: samples then see items as of `item_snapshot`.",
    )
    item_stats: list[str] = Field([], description="Parquet files of `item_stats`; needed for a logQ correction.")
    item_relations: list[list[float]] | None = Field(
        None,
        description="Mutual information of the item features, in their order; for self_supervision.mask correlated.",
    )
    negatives: int = Field(ge=0, description="Facts `negatives`: K of a row.")
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    seed: int = Field(description="Of parameters, order and dropout.")
    epochs: PositiveInt = Field(
        1, description="Passes over `train`: the caller's choice of training.epochs or its bootstrap."
    )
    incremental: bool = Field(
        False,
        description="An update within the day: embedding tables of ids alone learn, rows come in the order of the files, "
        "and nothing is drawn. Everything else stays as it was, bit for bit.",
    )
    warm_start: str | None = Field(None, description="Checkpoint folder to continue from; None: from nothing.")
    output: str = Field(description="Folder that the checkpoint is moved to when it is complete.")
    resume: str | None = Field(
        None, description="Folder for checkpoints on the way: the same run, killed, goes on from there. None: neither."
    )
    progress: bool = Field(False, description="A progress bar on stderr.")


class StepMetrics(Health):
    """Means since the point before, except learning_rate and a look at the step itself; `seconds` since the start."""

    step: int
    loss: float
    self_loss: float = Field(description="Of self-supervision, before its weight; 0 without it.")
    learning_rate: float
    gradient_norm: float
    rows_per_second: float
    data_wait_share: float
    step_seconds: float
    seconds: float


class RecorderState(StrictModel):
    """What has been recorded up to a step, with the sums of the point that is not closed yet."""

    step: int
    points: list[StepMetrics]
    totals: list[float] = Field(description="Over all steps, in the order of model.step.FIGURES.")
    figures: list[float] = Field(description="Since the last point, in that order.")
    steps: int = Field(description="Since the last point, like what follows.")
    norms: float
    waited: float
    elapsed: float
    seconds: float = Field(description="Since the start.")


class EpochMetrics(StrictModel):
    """One pass. The valid figures are None without validation files."""

    epoch: int
    loss: float
    valid_loss: float | None
    valid_recall_in_batch: float | None = Field(description="Share of positives among the 10 best shared candidates.")
    weights: dict[str, float] = Field(
        {},
        description="SIDE.NAME -> what a field (senet) or channel (parallel) weighs on average; empty for other towers.",
    )
    seconds: float


_MEASURED = {"rows_per_second", "data_wait_share", "step_seconds", "seconds", "memory_mb"}


class TrainingResult(StrictModel):
    """What a run did."""

    parameters: int
    steps: int
    rows: int
    metrics: list[StepMetrics]
    epochs: list[EpochMetrics]
    masked: dict[str, int] = Field(
        description="Candidates masked, by where they were: shared (one in history twice counts twice) or hard."
    )
    rows_without_negatives: int = Field(description="Rows whose candidates were all masked: their loss is 0.")
    temperature: float
    seconds: float

    def without_timings(self) -> dict[str, Any]:
        """As JSON, without what the clock and the machine say: the same training tells the same."""
        measured: Any = {"seconds": True, "metrics": {"__all__": _MEASURED}, "epochs": {"__all__": {"seconds"}}}
        return self.model_dump(mode="json", exclude=measured)

"""Input and output of a training run. Both are JSON, so that a run may be in another process or on another machine."""

import logging
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from model.config import LossConfig, ModelConfig, TrainingConfig
from model.data.packed_rows import Packing
from model.data.petastorm_reader import SampleFile
from model.training.health import Health
from pipelines.contract.schema import FeatureSchema
from pipelines.contract.strict import StrictModel


class EarlyStopping(StrictModel):
    """Train until the loss of the valid split stops falling, and keep the best epoch (model/training/early_stopping.py)."""

    patience: PositiveInt = Field(
        1, description="Epochs in a row that are no better than the best one before it stops."
    )


class TrainingSpec(StrictModel):
    """All settings and inputs of a run."""

    features: FeatureSchema = Field(description="`schema` in the manifest of `samples`.")
    train: list[SampleFile] = Field(
        description="Training files: `splits.train.groups` in the manifest of `samples`, as full URLs."
    )
    valid: list[SampleFile] = Field([], description="Validation files: `splits.valid.groups`. Empty: no validation.")
    item_features: list[str] = Field(description="Parquet files of `item_features`.")
    item_versions: list[str] = Field(
        [],
        description="Parquet files of `item_versions`, if it has rows. Samples then see items as of their `item_snapshot`.",
    )
    item_stats: list[str] = Field([], description="Parquet files of `item_stats`. Required for a logQ correction.")
    item_relations: list[list[float]] | None = Field(
        None,
        description="Mutual information between item features, in their order. Used by self_supervision.mask `correlated`.",
    )
    negatives: int = Field(
        ge=0, description="`negatives` in the manifest of `samples`: number of negatives per positive, K."
    )
    pack: PositiveInt | None = Field(
        None,
        description="`pack` in the manifest of `samples`: the most positives per packed row, T. None: a row has one positive.",
    )
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    seed: int = Field(description="Seed of the initial parameters, the order of rows, and dropout.")
    epochs: PositiveInt = Field(
        1, description="Passes over `train`. The job sets it from training.epochs, or from its bootstrap value."
    )
    early_stopping: EarlyStopping | None = Field(
        None,
        description="Makes `epochs` the largest number and keeps the model of the best epoch. Needs `valid` and `resume`.",
    )
    incremental: bool = Field(
        False,
        description="An update within the day: only embedding tables of ids are trained, rows are read in the order of the "
        "files, and nothing is random. All other parameters keep their values, bit for bit.",
    )
    warm_start: str | None = Field(None, description="Checkpoint folder to continue from. None: random parameters.")
    output: str = Field(description="Folder of the checkpoint, which appears there when it is complete.")
    resume: str | None = Field(
        None,
        description="Folder of intermediate checkpoints. A killed run resumes from them. None: writes and reads none.",
    )
    progress: bool = Field(False, description="Show a progress bar on stderr.")
    log_level: int = Field(logging.INFO, description="Level from which training processes log.")

    @model_validator(mode="after")
    def _check_early_stopping(self) -> "TrainingSpec":
        if self.early_stopping and not (self.resume and any(file.rows for file in self.valid)):
            lacking = "`resume`, where the best epoch is kept" if not self.resume else "rows in `valid` to measure on"
            raise ValueError(f"early_stopping needs {lacking}")
        return self

    @model_validator(mode="after")
    def _check_positives(self) -> "TrainingSpec":
        files = [*self.train, *self.valid]
        uncounted = [file.url for file in files if file.positives is None]
        if self.pack is not None and uncounted:
            raise ValueError(
                f"pack is {self.pack}, but {len(uncounted)} of {len(files)} row groups of samples have no number of positives "
                f"in the manifest, for instance {uncounted[0]}: write the samples again with build_negatives"
            )
        return self

    @property
    def packing(self) -> Packing | None:
        """The layout of packed rows; None: rows are not packed."""
        return None if self.pack is None else Packing(self.features, self.pack)


class StepMetrics(Health):
    """One recorded point: means since the previous point, except learning_rate and Health, which are of the last step."""

    step: int
    loss: float
    self_loss: float = Field(description="Self-supervised loss before its weight; 0 without self-supervision.")
    stage_loss: float = Field(description="Loss of the order of stages before its weight; 0 without it.")
    learning_rate: float
    gradient_norm: float
    rows_per_second: float
    data_wait_share: float
    step_seconds: float
    seconds: float = Field(description="Since the start of the run.")


class RecorderState(StrictModel):
    """State of a Recorder after a step, with the sums of the current point."""

    step: int
    points: list[StepMetrics]
    totals: list[float] = Field(description="Sums over all steps, in the order of model.training.step.FIGURES.")
    figures: list[float] = Field(description="Sums since the last point, in the same order.")
    steps: int = Field(description="Steps since the last point.")
    norms: float = Field(description="Sum of gradient norms since the last point.")
    waited: float = Field(description="Seconds spent waiting for data since the last point.")
    elapsed: float = Field(description="Seconds since the last point.")
    seconds: float = Field(description="Seconds since the start of the run.")


class EpochMetrics(StrictModel):
    """Metrics of one epoch. The validation metrics are None without validation files."""

    epoch: int
    loss: float
    valid_loss: float | None
    valid_recall_in_batch: float | None = Field(
        description="Share of rows whose positive is among the 10 best shared candidates."
    )
    step: int = Field(0, description="Steps of the run at the end of the epoch.")
    weights: dict[str, float] = Field(
        {},
        description="SIDE.NAME -> mean weight of a field (senet) or channel (parallel); empty for other towers.",
    )
    seconds: float


_TIMINGS = {"rows_per_second", "data_wait_share", "step_seconds", "seconds", "memory_mb"}


class TrainingResult(StrictModel):
    """Result of a run."""

    parameters: int
    steps: int
    rows: int
    metrics: list[StepMetrics]
    epochs: list[EpochMetrics]
    best_epoch: int | None = Field(None, description="With early stopping: the epoch whose state was kept, from 0.")
    masked: dict[str, int] = Field(
        description="Number of masked candidates: `shared` (one that is in the history twice counts twice) and `hard`."
    )
    rows_without_negatives: int = Field(description="Rows whose candidates were all masked; their loss is 0.")
    temperature: float
    lift: bool = Field(False, description="Whether the vectors leave popularity out (loss.lift).")
    seconds: float

    @property
    def kept_epoch(self) -> EpochMetrics:
        """The epoch after which the model was kept: the best one with early stopping, otherwise the last."""
        return self.epochs[-1 if self.best_epoch is None else self.best_epoch]

    @property
    def kept_metrics(self) -> StepMetrics:
        """The last recorded point before the end of the kept epoch."""
        before = [point for point in self.metrics if point.step <= self.kept_epoch.step]
        return (before or self.metrics[:1])[-1]

    def without_timings(self) -> dict[str, Any]:
        """As JSON, without times and memory, so that repeated training gives equal results."""
        timings: Any = {"seconds": True, "metrics": {"__all__": _TIMINGS}, "epochs": {"__all__": {"seconds"}}}
        return self.model_dump(mode="json", exclude=timings)

"""The config: one YAML file plus `--set a.b=c` overrides. Unknown keys are refused with the nearest known name."""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator, model_validator

from jobs.common.config_checks import contradictions, tracking_uri_fault
from model.config import LossConfig, ModelConfig, TrainingConfig
from model.release_config import IndexConfig, PriorConfig
from pipelines.config import Checks, Inputs, Negatives, Positives, Samples, Simulation
from pipelines.contract.errors import UsageError
from pipelines.contract.strict import StrictModel
from pipelines.feature_config import Features
from pipelines.session import refuse_fixed
from pipelines.storage.manifest import digest


class Evaluation(StrictModel):
    """The data that a night's model is evaluated on."""

    split: Literal["next_days", "last_positive"] = Field(
        "next_days",
        description="next_days: the positives of the days after ds, where they exist; last_positive: each user's last "
        "positive, held out of everything; for data in which users appear once",
    )
    days: int = Field(1, ge=1, description="number of days of next_days")
    new_items_only: bool = Field(
        True, description="count only items that are new to the user, and remove known items from the rankings"
    )
    ks: list[PositiveInt] = Field([10, 50, 100], min_length=1, description="cut-offs of recall, NDCG and hit rate")
    max_users: int = Field(
        20_000, ge=1, description="number of users evaluated, chosen by hash; enough for a narrow interval"
    )
    popularity_days: list[PositiveInt] = Field(
        [1, 7, 30],
        min_length=1,
        description="windows (days) of the popularity baseline; the one with the highest recall counts, so that the baseline "
        "is as strong as it can be. One number is one window",
    )
    new_item_days: int = Field(7, ge=1, description="days after its publish_time for which an item counts as new")
    item_cf_neighbours: int = Field(100, ge=1, description="neighbours per item in the item-item baseline")
    item_cf_items: int = Field(100, ge=2, description="latest known items per user in the item-item baseline")
    simulated_truth: bool = Field(False, description="compare with the best reachable ranking (simulated logs only)")
    bootstrap_samples: int = Field(500, ge=0, description="bootstrap resamples of the users for each 95% interval")

    @field_validator("popularity_days", mode="before")
    @classmethod
    def _one_window(cls, days: Any) -> Any:
        return [days] if isinstance(days, int) else days

    @field_validator("ks", "popularity_days")
    @classmethod
    def _each_once(cls, values: list[int]) -> list[int]:
        if len(set(values)) < len(values):
            raise ValueError("a number is listed twice")
        return values

    @property
    def shown_k(self) -> int:
        """The cut-off that tables and plots show: 50 if it is measured, else the largest."""
        return 50 if 50 in self.ks else max(self.ks)


class Gates(StrictModel):
    """Conditions that a release must meet to become the current one. If refused: exit 4, and `current` stays."""

    recall_loss: float = Field(
        0.05,
        description="largest share of Recall@`recall_at` that may be lost against the release in use, on the same held-out "
        "events; only a certain loss counts (paired bootstrap over users, 97.5%)",
    )
    recall_at: int = Field(50, ge=1, description="K of the comparison")
    beats_popularity: float = Field(
        0.0,
        description="largest share of recent popularity's Recall@`recall_at` (the best window of evaluation.popularity_days) "
        "that the model may certainly lack on the held-out events; a tie passes; 1: never refuses",
    )
    slow_loss: float = Field(
        0.1,
        description="largest certain loss against the best of the last `slow_nights` nights, in the ratio of recall to "
        "popularity's recall on the same events; catches small losses that add up",
    )
    slow_nights: int = Field(14, ge=1, description="number of earlier nights that `slow_loss` compares with")
    least_users: int = Field(
        100,
        ge=1,
        description="smallest number of users with held-out events for a comparison; with fewer, the gates pass with a note",
    )
    held_out: int = Field(
        5000,
        ge=1,
        description="largest number of events to compare on: the positives of the last positives.valid_hours, including those "
        "that down-sampling and the cap remove from training",
    )
    bootstrap_samples: int = Field(1000, ge=100, description="bootstrap resamples of the users")
    day_recall: float = Field(
        0.6,
        ge=0,
        description="smallest recall of the release in use on the events of ds before training, relative to its median of the "
        "last 7 nights; a lower value suggests that the day's data is wrong",
    )
    coverage: float = Field(0.5, ge=0, description="smallest number of distinct items, relative to the release in use")
    rows: float = Field(
        0.5, ge=0, description="smallest number of training rows, relative to the median of the last 7 nights"
    )
    unknown_users: float = Field(
        0.5, ge=0, le=1, description="largest share of held-out events whose user has no index"
    )
    effective_dimensions: float = Field(2.0, ge=0, description="smallest participation ratio of the item vectors")
    mean_cosine: float = Field(0.95, le=1, description="largest mean cosine of two items")
    embedding_growth: float = Field(
        2.0, gt=0, description="largest norm of the item embeddings, relative to last night's"
    )
    vocabulary_growth: float = Field(1.5, ge=1, description="largest size of a vocabulary, relative to last night's")


class Tracking(StrictModel):
    """Where MLflow stores its record."""

    uri: str | None = Field(
        None,
        description="URI of an MLflow server or of a database, e.g. sqlite:////data/mlflow.db; default: sqlite in the "
        "warehouse (local warehouses only)",
    )
    experiment: str = Field("nightjar", description="name of the MLflow experiment")
    registered_model: str = Field("nightjar", description="name under which releases are registered")

    @field_validator("uri")
    @classmethod
    def _no_folder(cls, uri: str | None) -> str | None:
        if uri is not None and (fault := tracking_uri_fault(uri)):
            raise ValueError(fault)
        return uri


class Report(StrictModel):
    """The page of a night (report.html)."""

    item_title: str | None = Field(
        None,
        description="column of items that names an item on the page; default: the first of title, name, item_name, "
        "item_title, product_name and display_name that is text, else the id",
    )


class Config(StrictModel):
    """The whole config."""

    warehouse: str = Field("warehouse", description="folder or URI that contains all tables")
    seed: int = Field(17, description="determines every random choice, together with ds")
    inputs: Inputs = Inputs()
    features: Features = Features()
    positives: Positives = Positives()
    negatives: Negatives = Negatives()
    samples: Samples = Samples()
    checks: Checks = Checks()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: Evaluation = Evaluation()
    gates: Gates = Gates()
    index: IndexConfig = IndexConfig()
    prior: PriorConfig | None = Field(
        PriorConfig(), description="Recency prior of a release, chosen every night; null: off, needs loss.lift: false"
    )
    tracking: Tracking = Tracking()
    report: Report = Report()
    simulation: Simulation = Simulation()
    spark: dict[str, str | int | float | bool] = Field({}, description="Spark settings, e.g. spark.driver.memory")

    @field_validator("spark")
    @classmethod
    def _fixed(cls, spark: dict[str, Any]) -> dict[str, Any]:
        refuse_fixed(spark)
        return spark

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        self._choose_history_order()
        if faults := contradictions(self):
            raise ValueError("; ".join(faults))
        return self

    def _choose_history_order(self) -> None:
        """Replace the order null by the one that fits the question and the tower (docs/algorithms.md)."""
        history = self.features.history
        if history is None or history.order is not None:
            return
        positives, model = self.positives, self.model
        reads_order = model.tower == "sequence" or model.history_pooling != "mean" or self.samples.pack is not None
        reads_order |= history.ages or history.actions or positives.known_items <= history.length
        if positives.ahead_days is not None:
            order = "ahead"
        elif self.evaluation.split == "next_days" and not reads_order:
            order = "leave_one_out"
        else:
            order = "strictly_before"
        features = self.features.model_copy(update={"history": history.model_copy(update={"order": order})})
        self.__dict__["features"] = features  # The config is frozen for everybody else.

    @property
    def prior_in_use(self) -> PriorConfig | None:
        """`prior`, or None if its only strength is 0: releases are then as without it.

        Of the half-lives only the longest with `evaluation.split: last_positive`: those positives are of any time in the past,
        so what predicts the next days best is no answer to them.
        """
        if not self.prior or not self.prior.is_on:
            return None
        if self.evaluation.split == "last_positive":
            return self.prior.model_copy(update={"half_life_days": [max(self.prior.half_life_days)]})
        return self.prior

    @property
    def expected_beta(self) -> float:
        """The strength of the prior without evidence for another one: a model of lift lacks exactly log p(item)."""
        return 1.0 if self.loss.lift else 0.0

    def hash_of(self, *sections: str) -> str:
        """A digest of some sections and the seed: the parts of the config that determine a step's output."""
        dump = self.model_dump(mode="json")
        return digest({name: dump[name] for name in ("seed", *sections)})


def load_config(path: str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, and check everything. Raises UsageError with file, key and remedy."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {error.strerror}") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"config {path} must be a mapping of sections, not a {type(tree).__name__}")
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"config {path}: " + "; ".join(_explain(tree, e) for e in error.errors())) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override!r}: write it as section.key=value, for example --set training.epochs=2")
    *parents, last = key.split(".")
    # Spark's own settings have dots in their names: --set spark.spark.driver.memory=8g
    if parents and parents[0] == "spark":
        parents, last = ["spark"], key[len("spark.") :]
    node = tree
    for name in parents:
        if not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[name]
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {override!r}: the value is not valid YAML") from None


def _explain(tree: dict[str, Any], error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if not place:  # A check across sections. Its message names the keys.
        return str(error["msg"].removeprefix("Value error, "))
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.80})"
    known = _known_keys(error["loc"][:-1])
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"{place}: there is no such key; {hint}"


def _known_keys(parents: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at the path of an error. A discriminated union appears in the path as its tag."""
    model: Any = Config
    for part in parents:
        if isinstance(part, int):
            continue
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _section_of(model.model_fields[str(part)].annotation)
        elif isinstance(model, list):
            model = next((m for m in model if part in str(m.model_fields["kind"].annotation)), Config)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _section_of(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as `History | None`; a list if there are more, as in `list[Feature]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_section_of(arg) for arg in getattr(annotation, "__args__", ())]
    flat = [m for found in inner for m in (found if isinstance(found, list) else [found]) if m is not None]
    return None if not flat else flat[0] if len(flat) == 1 else flat
